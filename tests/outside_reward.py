"""Rewards of another package, named `outside_reward:graded` and so on in a configuration; and things that are none."""

import math
import os

import numpy as np

NO_FUNCTION = 3


def graded(prompt, response, row):
    """How much of ten characters the response has: a number between 0 and 1."""
    return min(len(response) / 10, 1.0)


def minus_length(prompt, response, row):
    """Below 0 always; raises where the response is `broken`."""
    if response == "broken":
        raise ValueError("broken")
    return -len(response)


def parts(prompt, response, row):
    """Three parts, one of them from the row, one from the prompt."""
    return {"right": row.get("answer", "none") in response, "short": -len(response), "asked": np.float32(len(prompt))}


def sees(prompt, response, row):
    """Raises what it was asked with."""
    raise ValueError(f"{prompt}|{response}|{row}")


def text(prompt, response, row):
    return "1.0"


def nan(prompt, response, row):
    return math.nan


def infinite_part(prompt, response, row):
    return {"a": 1, "b": math.inf}


def nothing(prompt, response, row):
    return None


def empty(prompt, response, row):
    return {}


def dies(prompt, response, row):
    os._exit(3)


def hangs(prompt, response, row):
    while True:
        pass


def two_arguments(prompt, response):
    return 1.0


def nan_where_even(prompt, response, row):
    return math.nan if sum(map(ord, response)) % 2 == 0 else 1.0

"""A reward of your own: `task.reward=my_reward:reward`.

It is called for every response, in a process of its own that is killed where it hangs. What it raises, or a value that
is no number, costs that response its reward and is told; the run goes on.
"""

import math
import re


def reward(prompt: str, response: str, row: dict) -> dict[str, float]:
    """The parts of the reward: the sum of them, each by its weight in `task.reward_weights`, is what trains.

    prompt: what the model read. response: what it wrote. row: the line of problems.jsonl, all its columns. A single
    number may be returned in place of a dict.
    """
    found = re.match(r"\d+", response)
    if found is None:
        return {"right": 0.0, "near": 0.0, "number": 0.0}
    away = abs(int(found[0]) - int(row["answer"]))
    return {"right": float(response == row["answer"]), "near": math.exp(-away / 10), "number": 1.0}

"""Small files of problems for tests, and the released ones where they are."""

import pandas as pd
import pytest

from steer_core.problems import sets
from steer_core.problems.prompts import question_of
from steer_core.problems.rows import read_file


def user(text):
    return [{"role": "user", "content": text}]


def row(text, truth="2", **others):
    return {"prompt": user(text), "reward_model": {"ground_truth": truth, "style": "rule"}, **others}


def write(folder, rows, name="aime24.parquet"):
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / name)
    return folder


def released(name):
    """The folder of the released files, found as `load_set` finds it; the test is skipped where they are not."""
    folder = sets.data_folder()
    if folder is None or not (folder / sets.facts_of(name).file).is_file():
        pytest.skip(f"the released file of {name} is in no local folder")
    return folder


def released_rows(name):
    """(bare question, `extra_info` or {}) of every row of a released file."""
    table = read_file(released(name) / sets.facts_of(name).file)
    extras = table["extra_info"] if "extra_info" in table.column_names else [{}] * len(table)
    return [(question_of(messages)[1], extra) for messages, extra in zip(table["prompt"], extras, strict=True)]

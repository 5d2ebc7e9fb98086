"""Verdicts beside responses: the columns that a table of responses gets from its graders."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa

from steer_core.rewards.base import Grader


def graded(responses: pa.Table, graders: Sequence[Grader]) -> pa.Table:
    """The table with every grader's verdict on each `response` by its `reference`, and the seconds it took them all.

    Adds `NAME/status`, `NAME/answer` and `NAME/detail` of each grader, and `time/graded_seconds`. Raises what the
    graders raise.
    """
    began = time.perf_counter()
    references, texts = (responses[name].to_pylist() for name in ("reference", "response"))
    for grader in graders:
        verdicts = grader.grade(references, texts)
        columns = {
            "status": [verdict.status for verdict in verdicts],
            "answer": [verdict.answer for verdict in verdicts],
            "detail": [verdict.detail for verdict in verdicts],
        }
        for name, values in columns.items():
            responses = responses.append_column(f"{grader.name}/{name}", pa.array(values, pa.string()))
    seconds = [time.perf_counter() - began] * len(responses)
    return responses.append_column("time/graded_seconds", pa.array(seconds, pa.float64()))

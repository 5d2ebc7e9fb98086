"""The raw rows of the experiment on when entropy matters, stage by stage, and what its choices read from them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pipeline.rows import curve, read_rows

_LAST = 3
"""Evaluations at a run's end whose mean is its pass@1 on the plateau."""


def rows_path(out: Path, setting: str, stage: str) -> Path:
    """Where the rows of a stage lie."""
    return out / f"{setting}-{stage}.jsonl.xz"


def whole_stage(out: Path, setting: str, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage that came to its end; none of one that did not, from which nothing may be chosen."""
    about, rows = read_rows(rows_path(out, setting, stage))
    planned = len(about["plan"]["arms"]) * len(about["plan"]["seeds"]) if rows else 0
    return rows if sum(row["finished"] for row in rows) == planned else []


def plateau_pass1(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By arm, the mean over its runs of pass@1 over the last three evaluations of each."""
    ends = defaultdict(list)
    for row in rows:
        ends[row["arm"]].append(curve(row, 1)[-_LAST:].mean() if row["evaluations"] else np.nan)
    return {arm: float(np.mean(values)) for arm, values in ends.items()}

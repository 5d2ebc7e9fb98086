"""Verdicts of anyone's evaluation: a file with a row a sample, its problem and whether it was right."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from steer_core.common.errors import SteerError, one_line
from steer_core.common.records import Record, columns, read_records, value_at
from steer_core.evaluation.foreign import PROBLEM, PROMPT, SET
from steer_core.stats.outcomes import is_right

CORRECT = ("correct", "is_correct", "right", "is_right", "passed", "exact_match", "acc", "accuracy", "score", "verdict",
           "reward")  # fmt: skip
"""Usual names of the column that says whether a sample was right."""
GRADER = "given"
"""What the verdicts of such a file are called, beside those of graders."""
NAMELESS = "all"
"""The set of rows that name none."""


def read_verdicts(path: Path, problem: str | None = None, correct: str | None = None) -> pd.DataFrame:
    """A row a sample, with the columns that `tables.paired_evaluations` reads.

    problem, correct: the columns to read; None: the first usual one that is there. A row may hold a list of verdicts.
    A file with columns NAME/status, as this package writes, keeps these. Raises SteerError naming file, row, column and
    remedy.
    """
    records = _records(path)
    own = [name for name in records[0] if name.endswith("/status")] if correct is None else []
    column = None if own else _column(records, correct, CORRECT, "--correct", path)
    name = _column(records, problem, PROBLEM, "--problem", path)
    rows = []
    for number, record in enumerate(records, 1):
        who = value_at(record, name)
        if not isinstance(who, str | int) or not str(who).strip():
            raise SteerError(
                f"{path}, row {number}, {name}: {str(who)[:40]!r} names no problem; name another --problem"
            )
        base = {
            "benchmark": next((str(record[key]) for key in SET if record.get(key)), NAMELESS),
            "problem": str(who),
            "prompt": next((str(found) for key in PROMPT if (found := value_at(record, key))), ""),
            "reference": str(record.get("reference", "")),
        }
        if column is None:
            rows.append(base | {key: record[key] for key in own})
            continue
        value = value_at(record, column)
        for one in value if isinstance(value, list) and value else [value]:
            right = is_right(one, f"{path}, row {number}, {column}")
            rows.append(base | {f"{GRADER}/status": "right" if right else "wrong"})
    return pd.DataFrame(rows)


def _records(path: Path) -> list[Record]:
    if path.suffix.lower() != ".csv":
        return read_records(path, "FILE")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found: list[dict[str, Any]] = list(csv.DictReader(file, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise SteerError(f"FILE: {path} is not read ({one_line(error)}); write it again") from error
    if not found:
        raise SteerError(f"FILE: {path} holds no row below its head; name a file that does")
    return found


def _column(records: list[Record], told: str | None, usual: tuple[str, ...], option: str, path: Path) -> str:
    for name in [told] if told else usual:
        if any(value_at(record, name) is not None for record in records):
            return name
    reason = f"no column {told!r}" if told else f"none of the usual columns ({', '.join(usual[:4])}, ...)"
    hint = "; responses without verdicts are judged by `steer grade`" if option == "--correct" and not told else ""
    raise SteerError(f"{path}: has {reason}; it has {columns(records)}: name one with {option} COLUMN{hint}")

"""The logs of a run: a JSON object a line, read strictly; a checkpoint keeps those up to its rollout.

metrics.jsonl  one line a rollout, every value a number
evaluations.jsonl  one line an evaluation, see `evaluation.held_out.Evaluation`
notes.jsonl  {"step": ..., "note": "..."}
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError
from steer_core.common.files import read_json_lines

LOGS = ("metrics.jsonl", "evaluations.jsonl", "notes.jsonl")
Row = dict[str, Any]
_LONGEST_LINE = 1 << 16
REMEDY = "put it back from a copy, mend that line, or have `steer train --resume` write it again from a checkpoint"
"""What to do about a log that is damaged."""


def read(path: Path) -> list[Row]:
    """The lines of a log, none where there is no file; a last line that a kill cut short is left out.

    Raises SteerError naming file, line and remedy where a line is no row of a log, or steps do not go up.
    """
    if not path.exists():
        return []
    rows, last = read_json_lines(path, "log", REMEDY), -1
    for line, row in enumerate(rows, 1):
        why = problem(row)
        if why is None and path.name != "notes.jsonl" and row["step"] <= last:
            why = f"step {row['step']} stands after step {last}"
        if why is not None:
            raise SteerError(f"log {path}, line {line}: {why}; {REMEDY}")
        last = row["step"]
    return rows


def last_row(path: Path) -> Row | None:
    """The last whole line of a log that may still be growing; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LONGEST_LINE))
        lines = file.read().split(b"\n")
    try:
        row = json.loads(lines[-2]) if len(lines) > 1 else None
    except ValueError:  # damaged; who reads the whole log tells
        return None
    return row if isinstance(row, dict) and problem(row) is None else None


def text_of(rows: Iterable[Row]) -> str:
    """Rows as the text of a log."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def until(rows: Iterable[Row], rollout_index: int) -> list[Row]:
    """The rows of a run's first rollouts."""
    return [row for row in rows if row["step"] <= rollout_index]


def keep(run: Path, checkpoint: Path) -> None:
    """Have a checkpoint keep the logs of a run, gzipped."""
    for name in LOGS:
        if (run / name).exists():
            whole = (run / name).read_bytes()
            (checkpoint / f"{name}.gz").write_bytes(gzip.compress(whole, compresslevel=1, mtime=0))


def kept(checkpoint: Path) -> dict[str, list[Row]] | None:
    """The rows of every log that a checkpoint keeps; None for one of a version that kept none."""
    if not (checkpoint / "metrics.jsonl.gz").is_file():
        return None
    found = {}
    for name in LOGS:
        path = checkpoint / f"{name}.gz"
        text = gzip.decompress(path.read_bytes()).decode() if path.is_file() else ""
        found[name] = [json.loads(line) for line in text.splitlines()]
    return found


def problem(row: Row) -> str | None:
    """What makes a line no row of a log; None where it is one."""
    if not _is_count(row.get("step")):
        return f"step is {row.get('step')!r}, no number of rollouts"
    for key, value in row.items():
        if not _kind(key)(value):
            return f"{key} holds {str(value)[:40]!r}, which it cannot"
    if "correct" in row and not all(count <= row.get("samples", -1) for count in row["correct"]):
        return f"correct holds a count above samples ({row.get('samples')})"
    return None


def _kind(key: str) -> Callable[[Any], bool]:
    """What the values under a key of a log are."""
    return {"note": _is_text, "correct": _are_counts, "samples": _is_count}.get(key, _is_number)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_count, value))


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 53)

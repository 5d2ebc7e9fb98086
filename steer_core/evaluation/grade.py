"""Judge kept responses again: `steer grade`.

    evaluation.json  responses.parquet  problems.csv  summary.json  table.md

The folder is one that `steer paired` compares with others. The file that is judged stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import json_text, sha256, write_atomically
from steer_core.common.places import refuse_others
from steer_core.common.records import Record
from steer_core.evaluation import tables
from steer_core.evaluation.foreign import Names, References, kinds_of, read_responses
from steer_core.evaluation.grading import graded
from steer_core.evaluation.problem_sets import write_table
from steer_core.problems.own import is_own, load_own, own_names
from steer_core.problems.sets import load_set
from steer_core.rewards import Thinking, graders_of

PROBLEMS = "problems.csv"
"""Responses and right ones by benchmark, problem and grader."""
_TYPES = {"benchmark": pa.string(), "problem": pa.string(), "sample": pa.int64(), "prompt": pa.string(),
          "reference": pa.string(), "response": pa.string(), "finish_reason": pa.string(),
          "tokens": pa.float64()}  # fmt: skip


def grade_file(
    file: Path,
    out: Path,
    names: Names | None = None,
    benchmark: str | None = None,
    sandbox: str = "bubblewrap",
    thinking: Thinking = "skip",
) -> dict[str, str]:
    """Judge the responses of a file by every grader of their kind; by grader, how its verdicts differ from kept ones.

    file: see `foreign.read_responses`; or the folder of an evaluation. benchmark: a problem set, by name or in a
    file, that holds the references. sandbox, thinking: see `graders_of`. Raises SteerError for what does not fit,
    and where `out` holds results.
    """
    if (out / tables.RECORD).exists() or (out / tables.RESPONSES).exists():
        raise SteerError(f"--out: {out} holds an evaluation; name another folder")
    refuse_others(out, tables.RECORD)
    file = _file_of(file)
    names = names or Names()
    rows = read_responses(file, names, _known(benchmark) if benchmark else None)
    kinds = kinds_of(rows, file)
    parts = []
    for name, kind in kinds.items():
        part = [row for row in rows if row["benchmark"] == name]
        parts.append(graded(_table(part), graders_of(kind, sandbox, thinking)))
    about = {"graded": str(file.resolve()), "sha256": sha256(file), "columns": vars(names), "benchmark": benchmark,
             "graders": kinds}  # fmt: skip
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / tables.RECORD, json_text({"about": about, "environment": environment()}))
        write_table(pa.concat_tables(parts, promote_options="default"), out / tables.RESPONSES)
        frame = tables.read_responses(out)
        write_atomically(out / PROBLEMS, tables.problem_lines(frame).to_csv(index=False))
    except OSError as error:
        raise SteerError(f"--out: {out} cannot be written ({error.strerror}); name another folder") from error
    return _differences(rows, parts)


def _file_of(path: Path) -> Path:
    """The file of responses that a path names. Raises SteerError for a folder that holds none."""
    if not path.is_dir():
        return path
    if (path / tables.RESPONSES).is_file():
        return path / tables.RESPONSES
    kept = sorted(path.glob("rollouts/*.parquet"))
    example = f", such as {kept[-1]}" if kept else ""
    raise SteerError(f"FILE: {path} holds no {tables.RESPONSES}; name a file of responses{example}")


def _known(benchmark: str) -> References:
    """The references of a problem set, by name or in a file."""
    if not is_own(benchmark):
        return References.of(load_set(benchmark))
    path, field = Path(benchmark), "--benchmark"
    return References.of(load_own(path, field), own_names(path, field))


def _table(rows: list[Record]) -> pa.Table:
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in _TYPES}
    try:
        return pa.table({name: pa.array(values, _TYPES[name]) for name, values in columns.items()})
    except (pa.ArrowException, UnicodeError) as error:
        raise SteerError(f"FILE: a value does not fit its column ({error}); write the file again") from error


def _differences(rows: list[Record], parts: list[pa.Table]) -> dict[str, str]:
    """`3 of 120`: how many verdicts of each grader are other ones than the file held, where it held any."""
    found = {}
    kept = {name for row in rows for name in row if name.endswith("/status")}
    ordered = [row for name in dict.fromkeys(row["benchmark"] for row in rows) for row in rows
               if row["benchmark"] == name]  # fmt: skip
    table = pa.concat_tables(parts, promote_options="default")
    for name in sorted(kept & set(table.column_names)):
        pairs = [(row.get(name), new) for row, new in zip(ordered, table[name].to_pylist(), strict=True)]
        compared = [old != new for old, new in pairs if old is not None and new is not None]
        found[name.removesuffix("/status")] = f"{sum(compared)} of {len(compared)}"
    return found

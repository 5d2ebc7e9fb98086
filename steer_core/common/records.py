"""Files of records, as this field's tools write them: Parquet, JSON Lines, or one JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steer_core.common.errors import SteerError, one_line

SUFFIXES = (".parquet", ".jsonl", ".json")
"""Names of the files that are read."""
Record = dict[str, Any]


def read_records(path: Path, field: str) -> list[Record]:
    """The records of a file by the end of its name; see `json_records`.

    field: what named the file, for messages. Raises SteerError for a file that is missing, damaged, empty or of
    another kind, and naming the place of what is no record.
    """
    if not path.is_file():
        raise SteerError(f"{field}: {path} is no file; give the path of a {', '.join(SUFFIXES[:2])} or .json file")
    if path.suffix.lower() not in SUFFIXES:
        raise SteerError(f"{field}: {path} is none of {', '.join(SUFFIXES)}; write its records in one of these forms")
    try:
        if path.suffix.lower() == ".parquet":
            found = pq.read_table(path, partitioning=None).to_pylist()
        else:
            found = list(json_records(path, path.suffix.lower() == ".jsonl"))
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise SteerError(f"{field}: {path} is not read ({one_line(error)}); write it again") from error
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict):
            raise SteerError(f"{field}: {path}, record {number}: {str(record)[:60]!r} is no object with named columns")
    if not found:
        raise SteerError(f"{field}: {path} holds no record; name a file that does")
    return found


def json_records(path: Path, lines: bool) -> Iterator[Record]:
    """The records of a JSON file. Raises ValueError naming the line that is no JSON.

    lines: the file has a record a line; else it is a list of them, one alone, or an object of them by key: as pandas
    writes, {column: {index: value}}, or {index: record}.
    """
    with path.open(encoding="utf-8-sig") as file:
        if lines:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parsed(line, number)
            return
        whole = _loads(file.read())
    if isinstance(whole, list):
        yield from whole
    elif not (isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values())):
        yield whole
    elif all(key.isdigit() for key in whole):
        yield from whole.values()
    else:
        for index in next(iter(whole.values())):
            yield {column: values.get(index) for column, values in whole.items()}


def columns(records: list[Record]) -> str:
    """The names of the columns, for a message."""
    return ", ".join(dict.fromkeys(name for record in records for name in record)) or "none"


def value_at(record: Record, path: str) -> Any:
    """What a record holds under a name, or under names within one another, joined by dots; None where it has none."""
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _parsed(line: str, number: int) -> Any:
    try:
        return _loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _loads(text: str) -> Any:
    """A JSON text. Raises ValueError where it is none, or holds half of a character, which no text of ours may."""
    value = json.loads(text)
    if "\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()
    return value

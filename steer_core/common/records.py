"""Files of records, as this field's tools write them: Parquet, JSON, JSON Lines, CSV, a folder of `datasets`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from steer_core.common.errors import SteerError, one_line

_LONGEST_FIELD = 1 << 30
"""Characters of a value in a CSV file at most; the tests of a program are long."""

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""Names of the files that are read."""
WRAPPERS = ("data", "samples", "records", "rows", "examples", "instances", "results", "request_states")
"""Names under which an object holds the list of records."""
Record = dict[str, Any]


def read_records(path: Path, field: str) -> list[Record]:
    """The records of a file by the end of its name, or of a folder of `datasets`; see `json_records`, `csv_records`.

    field: what named the file, for messages. Raises SteerError for a file that is missing, damaged, empty or of
    another kind, and naming the place of what is no record.
    """
    suffix = path.suffix.lower()
    if path.is_dir():
        found = folder_records(path, field)
    elif not path.is_file():
        raise SteerError(f"{field}: {path} is no file; give the path of a {', '.join(SUFFIXES[:-1])} or .csv file")
    elif suffix not in SUFFIXES:
        raise SteerError(f"{field}: {path} is none of {', '.join(SUFFIXES)}; write its records in one of these forms")
    try:
        if suffix == ".parquet":
            found = pq.read_table(path, partitioning=None).to_pylist()
        elif suffix == ".csv":
            found = list(csv_records(path))
        elif suffix in SUFFIXES:
            found = list(json_records(path, suffix == ".jsonl"))
    except (OSError, ValueError, RecursionError, csv.Error, pa.ArrowException) as error:
        raise SteerError(f"{field}: {path} is not read ({one_line(error)}); write it again") from error
    for number, record in enumerate(found, 1):
        if not isinstance(record, dict):
            raise SteerError(f"{field}: {path}, record {number}: {str(record)[:60]!r} is no object with named columns")
    if not found:
        raise SteerError(f"{field}: {path} holds no record; name a file that does")
    return found


def folder_records(path: Path, field: str) -> list[Record]:
    """The records of a folder that `save_to_disk` of `datasets` wrote. Raises SteerError where it holds none."""
    import datasets

    if (path / "dataset_dict.json").is_file():
        splits = sorted(str(part) for part in path.iterdir() if (part / "dataset_info.json").is_file())
        raise SteerError(
            f"{field}: {path} holds several splits; name one of them: {', '.join(splits) or 'none is there'}"
        )
    try:
        return datasets.load_from_disk(str(path), keep_in_memory=True).to_list()
    except Exception as error:  # datasets wraps what pyarrow raises in errors of several kinds
        raise SteerError(
            f"{field}: {path} is no data set that save_to_disk wrote ({one_line(error)}); name a file, or such a folder"
        ) from error


def csv_records(path: Path) -> Iterator[Record]:
    """The rows of a CSV file under its header, all values text. Raises ValueError naming a row that does not fit."""
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise ValueError("its header names a column twice")
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(f"line {reader.line_num} has {len(cells)} values where the header names {len(header)}")
            if cells:
                yield dict(zip(header, cells, strict=True))


def json_records(path: Path, lines: bool) -> Iterator[Record]:
    """The records of a JSON file. Raises ValueError naming the line that is no JSON.

    lines: the file has a record a line; else it is a list of them, one alone, an object that holds such a list under
    a usual name, or an object of them by key: as pandas writes, {column: {index: value}}, {column: [value, ...]}, or
    {index: record}. Lines under a name for one text are read as lines.
    """
    with path.open(encoding="utf-8-sig") as file:
        if lines:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _parsed(line, number)
            return
        text = file.read()
    try:
        whole = _loaded(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        yield from (_parsed(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        return
    if isinstance(whole, dict):
        whole = next((whole[name] for name in WRAPPERS if _are_records(whole.get(name))), whole)
    if isinstance(whole, list):
        yield from whole
    elif _are_columns(whole):
        yield from (dict(zip(whole, values, strict=True)) for values in zip(*whole.values(), strict=True))
    elif not (isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values())):
        yield whole
    elif all(key.isdigit() for key in whole):
        yield from whole.values()
    else:
        for index in next(iter(whole.values())):
            yield {column: values.get(index) for column, values in whole.items()}


def columns(records: list[Record], most: int = 40) -> str:
    """The names of the columns, and of those within them, for a message; no more than `most`."""
    found = list(dict.fromkeys(name for record in records for name in _paths(record, "")))
    return ", ".join([*found[:most], *(["..."] if len(found) > most else [])]) or "none"


def value_at(record: Record, path: str) -> Any:
    """What a record holds under a name, or under names within one another, joined by dots; None where it has none."""
    if path in record:
        return record[path]
    value: Any = record
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _loaded(text: str) -> Any:
    """The value of a JSON text; half a surrogate pair, which no tokenizer and no file takes, becomes `?`."""
    value = json.loads(text)
    if "\\ud" in text or "\\uD" in text:
        value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    return value


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _are_columns(whole: Any) -> bool:
    """Whether an object holds columns, each the list of its values."""
    values = list(whole.values()) if isinstance(whole, dict) else []
    lengths = {len(one) if isinstance(one, list) else 0 for one in values}
    return len(values) > 1 and len(lengths) == 1 and lengths.pop() > 1


def _paths(record: Record, before: str) -> Iterator[str]:
    for name, value in record.items():
        if isinstance(value, dict) and value:
            yield from _paths(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def _parsed(line: str, number: int) -> Any:
    try:
        return _loaded(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None

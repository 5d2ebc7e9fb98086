r"""Rows of problems as files and the hub hold them, read through `datasets`: (chat messages, ground truth).

A file in verl's format holds `prompt`, a list of chat messages, and `reward_model`, whose `ground_truth` is the right
answer. On the hub every set has columns of its own; its `Hub` in the manifest says how they become the same rows.
"""

from __future__ import annotations

import base64
import glob
import io
import json
import math
import pickle
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass

from steer_core.common.errors import SteerError, one_line
from steer_core.common.records import json_records
from steer_core.common.settings import STRICT
from steer_core.problems.problem import Row

if TYPE_CHECKING:
    import datasets


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Hub:
    """Where a set lies on the hub, and how its columns become rows."""

    id: str
    """Repository of the set."""
    revision: str = "main"
    """Commit, branch or tag."""
    config: str | None = None
    """Which of its configurations, where it has several."""
    split: str = "train"
    """Which split."""
    files: tuple[str, ...] = ()
    """JSON files to read, in place of what `datasets.load_dataset` finds by itself."""
    form: Literal["columns", "verl", "livecodebench"] = "columns"
    """A question and an answer column, verl's columns, or LiveCodeBench's."""
    question: str = "problem"
    """The column of the bare question."""
    answer: str = "answer"
    """The column of the answer."""
    take: Literal["text", "box", "after ####", "list"] = "text"
    """What of the answer column is the ground truth: all, the last box, what follows ####, or its parts, joined."""
    since: str = ""
    """First contest day (2024-08-01) that counts."""
    before: str = "9999"
    """First contest day that no longer counts."""


def read_file(file: str | Path, field: str = "task.file") -> datasets.Dataset:
    """A parquet file in verl's format, held in memory; nothing is written beside it.

    field: what named the file, for messages. Raises SteerError naming what does not fit.
    """
    import datasets

    if not Path(file).is_file():
        raise SteerError(f"{field}: {file} is no file; give the path of a parquet file")
    try:
        with tempfile.TemporaryDirectory() as cache, _quiet():
            table = datasets.Dataset.from_parquet(glob.escape(str(file)), cache_dir=cache, keep_in_memory=True)
    except Exception as error:  # datasets wraps what pyarrow raises in errors of several kinds
        raise SteerError(f"{field}: {file} is not read as parquet ({_reason(error)}); give a parquet file") from error
    absent = [name for name in ("prompt", "reward_model") if name not in table.column_names]
    if absent:
        raise SteerError(
            f"{field}: {file} has the columns {', '.join(table.column_names)}; "
            f"add {' and '.join(absent)}, as verl's data files have them"
        )
    return table


def rows_of(table: datasets.Dataset, file: str | Path, field: str = "task.file") -> list[Row]:
    """(messages, ground truth) of every row in verl's format. Raises SteerError naming the row that does not fit."""
    records = table.select_columns(["prompt", "reward_model"]).to_list()
    return [verl_row(f"{field}: {file}, row {i}", **record) for i, record in enumerate(records)]


def read_rows(file: str | Path, field: str = "task.file") -> list[Row]:
    """(messages, ground truth) of every row of a parquet file in verl's format; see `read_file` and `rows_of`."""
    return rows_of(read_file(file, field), file, field)


def verl_row(where: str, prompt: Any, reward_model: Any, **_: Any) -> Row:
    """A row in verl's format, checked; `where` names it for messages. Raises SteerError naming what does not fit."""
    messages = prompt if isinstance(prompt, list) else []
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            messages = []
    if not messages:
        raise SteerError(
            f"{where}: prompt {str(prompt)[:80]!r} is no list of chat messages; give each a `role` and a `content`"
        )
    truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if not isinstance(truth, str):
        raise SteerError(
            f"{where}: reward_model {str(reward_model)[:80]!r} has no text as its ground_truth; add the right answer"
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages], truth.strip()


def hub_rows(hub: Hub, field: str) -> list[Row]:
    """The rows of a set on the hub. Raises SteerError for columns that are not there, and what `datasets` raises.

    Rows that are equal share one object: the hub's DAPO-Math-17k holds every row a hundred times.
    """
    pool: dict[str, Row] = {}
    rows = []
    for i, record in enumerate(_hub_records(hub)):
        where = f"{field}: {hub.id}, row {i}"
        absent = [name for name in _columns(hub) if name not in record]
        if absent:
            raise SteerError(f"{where} has the columns {', '.join(record)}, not {absent[0]}; name a revision that has")
        if hub.form == "livecodebench" and not hub.since <= str(record["contest_date"])[:10] < hub.before:
            continue
        row = _hub_row(hub, record, where)
        rows.append(pool.setdefault(json.dumps(row), row))
    return rows


def _hub_records(hub: Hub) -> Iterable[dict[str, Any]]:
    import datasets

    if not hub.files:
        return datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    client = datasets.DownloadManager()
    paths = {file: client.download(f"hf://datasets/{hub.id}@{hub.revision}/{file}") for file in hub.files}
    return (record for file, path in paths.items() for record in json_records(Path(path), file.endswith("l")))


def _columns(hub: Hub) -> tuple[str, ...]:
    return {
        "columns": (hub.question, hub.answer),
        "verl": ("prompt", "reward_model"),
        "livecodebench": ("question_content", "public_test_cases", "private_test_cases", "contest_date"),
    }[hub.form]


def _hub_row(hub: Hub, record: dict[str, Any], where: str) -> Row:
    if hub.form == "verl":
        return verl_row(where, **record)
    if hub.form == "livecodebench":
        return livecodebench_row(record)
    return [{"role": "user", "content": str(record[hub.question]).strip()}], truth_of(record[hub.answer], hub.take)


def truth_of(answer: Any, take: str) -> str:
    """The ground truth in an answer column; empty where there is none. See `Hub.take`."""
    if take == "list" or isinstance(answer, list):
        return ", ".join(str(part).strip().strip("$") for part in answer or [])
    if isinstance(answer, float):  # NaN is what pandas writes where there is none
        answer = None if math.isnan(answer) else int(answer) if answer.is_integer() else answer
    text = "" if answer is None else str(answer).strip()
    if take == "after ####":
        return text.rpartition("####")[2].strip().replace(",", "")
    return last_box(text) if take == "box" else text


def last_box(text: str) -> str:
    r"""The contents of the last \boxed{...} of a text, braces balanced; empty without one."""
    _, found, rest = text.rpartition(r"\boxed{")
    depth = 1
    for i, character in enumerate(rest if found else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:i].strip()
    return ""


def livecodebench_row(record: dict[str, Any]) -> Row:
    """A problem of LiveCodeBench; its hidden tests are a compressed pickle of one JSON text."""
    hidden = record["private_test_cases"]
    try:
        tests = json.loads(hidden)
    except json.JSONDecodeError:
        packed = zlib.decompress(base64.b64decode(hidden))
        tests = json.loads(_PlainUnpickler(io.BytesIO(packed)).load())
    tests = [*json.loads(record["public_test_cases"]), *tests]
    if name := json.loads(record.get("metadata") or "{}").get("func_name"):
        tests = [{**test, "func_name": name} for test in tests]
    start = (record.get("starter_code") or "").rstrip()
    question = record["question_content"].strip() + (f"\n\nStart from:\n```python\n{start}\n```" if start else "")
    return [{"role": "user", "content": question}], json.dumps(tests)


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values; refuses whatever a pickle would import, for that could run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"refused {module}.{name}")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no log of `datasets` for the time."""
    import datasets

    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _reason(error: BaseException) -> str:
    """The innermost cause, in one short line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)

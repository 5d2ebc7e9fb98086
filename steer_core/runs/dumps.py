"""A dump of a run's tokens: a row a response, a list of numbers for each of its tokens; Parquet or JSON Lines.

This is the one home of the format, which docs/diagnose.md tells in words. Any trainer may write it: `write` here, the
hooks of `integrations` for TRL and verl, `train.dump_every` of this package. Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from steer_core.common.errors import SteerError, one_line
from steer_core.common.files import PARTIAL, json_ready, written_whole
from steer_core.common.records import Record, columns, read_records

Kind = Literal["numbers", "flags", "texts", "ids", "number", "whole", "flag", "text"]
"""The first four hold a value a token; `advantage` may hold one number or one a token."""


@dataclass(frozen=True)
class Column:
    """A column: what it holds, what it means, and the names that other trainers give it."""

    kind: Kind
    meaning: str
    others: tuple[str, ...] = ()

    @property
    def by_token(self) -> bool:
        """Whether it holds a value for each token."""
        return self.kind in ("numbers", "flags", "texts", "ids")


COLUMNS = {
    "logprob": Column("numbers", "ln p of each token under the policy being updated, nats",
                      ("log_prob", "log_probs", "logprobs", "logps", "per_token_logps")),
    "advantage": Column("numbers", "advantage, one number a response or one a token", ("advantages",)),
    "old_logprob": Column("numbers", "ln p under the policy that sampled, as the trainer scores it",
                          ("old_log_prob", "old_log_probs", "old_logprobs", "old_per_token_logps")),
    "sampler_logprob": Column("numbers", "ln p as the sampler gave it (vLLM, SGLang)",
                              ("rollout_log_probs", "rollout_logprobs", "sampling_per_token_logps")),
    "entropy": Column("numbers", "entropy at each token's state, nats, under the policy being updated",
                      ("entropies", "entropys", "per_token_entropy", "token_entropy")),
    "old_entropy": Column("numbers", "entropy under the policy that sampled", ("old_entropies", "old_entropys")),
    "mask": Column("flags", "1 at the tokens that count in the loss; all, where it is missing",
                   ("response_mask", "completion_mask", "loss_mask")),
    "tokens": Column("texts", "the text of each token", ("token_texts",)),
    "token_ids": Column("ids", "the id of each token", ("response_ids", "completion_ids", "responses_ids")),
    "step": Column("whole", "number of the optimiser step or rollout", ("global_step", "global_steps")),
    "group": Column("text", "what tells the prompt from others", ("uid", "prompt_id", "problem", "problem_id")),
    "prompt": Column("text", "the prompt", ("input", "question")),
    "response": Column("text", "the response", ("text", "output", "completion")),
    "reward": Column("number", "the response's reward", ("rewards", "score", "scores", "token_level_rewards")),
    "truncated": Column("flag", "whether the response was cut off at its length", ("is_truncated", "clipped")),
    "logged_entropy": Column("number", "the entropy that the trainer logged at this step", ("actor/entropy",)),
    "clip_low": Column("number", "with A < 0 the gradient stops below the ratio 1 - clip_low", ("epsilon_low",)),
    "clip_high": Column("number", "with A > 0 it stops above 1 + clip_high", ("epsilon_high",)),
    "dual_clip": Column("number", "with A < 0 it stops above this ratio", ("clip_ratio_c",)),
    "max_tokens": Column("whole", "the most tokens that a response may have", ("max_completion_length",)),
    "vocabulary": Column("whole", "how many tokens the model knows", ("vocab_size",)),
}  # fmt: skip
"""Every column by its name. `logprob` and `advantage` must be there; what needs another is left undecided without."""
REQUIRED = ("logprob", "advantage")
SETTINGS = ("clip_low", "clip_high", "dual_clip", "max_tokens", "vocabulary")
"""Columns that hold one value throughout."""
RESPONSE = ("step", "group", "prompt", "response", "reward", "truncated", "logged_entropy")
SUFFIXES = (".parquet", ".jsonl")
_REMEDY = "docs/diagnose.md tells the columns"
_ROUNDING = 1e-2
"""How far above 0 a log-prob of a half-precision pass may lie."""
_FIELD = "DUMP"
FOLDER = "dumps"
"""Where a run of this package keeps what `train.dump_every` writes."""


@dataclass(frozen=True)
class Dump:
    """The tokens of a dump that count in the loss, flat (N,), and their responses.

    responses: a row each, with `length` (tokens that count), `written` (tokens of its lists, the others too) and those
    of RESPONSE that the dump has; `where` names file and row. tokens: by column an array (N,), and `row`, the place of
    the token's response, and `position`, its place in the response. settings: those of SETTINGS that it has. left_out:
    rows without a token that counts. course: entropy by step, where more is known of it than the dump holds.
    notes: what a reader must know of where it is from.
    """

    source: str
    responses: pd.DataFrame
    tokens: dict[str, np.ndarray]
    settings: dict[str, float] = field(default_factory=dict)
    left_out: int = 0
    course: dict[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens["row"])

    @property
    def steps(self) -> list[int]:
        """The steps, in order."""
        return sorted(int(step) for step in self.responses.step.unique())

    def of_step(self, step: int) -> Dump:
        """The responses of one step."""
        kept = self.responses.step == step
        places = np.cumsum(kept.to_numpy()) - 1
        inside = kept.to_numpy()[self.tokens["row"]]
        tokens = {name: values[inside] for name, values in self.tokens.items()}
        tokens["row"] = places[tokens["row"]]
        return replace(self, responses=self.responses[kept].reset_index(drop=True), tokens=tokens)


def dump_path(run: str | Path, step: int) -> Path:
    """The file of a rollout's tokens in a run's folder."""
    return Path(run) / FOLDER / f"step_{step:06d}.parquet"


def rewind(run: Path, step: int) -> None:
    """Drop what a run dumped after a rollout, and what a killed process left half done."""
    for path in (run / FOLDER).glob("*.parquet"):
        if path.name.startswith(PARTIAL) or path.name > dump_path(run, step).name:
            path.unlink()


def write(path: str | Path, rows: Iterable[Record]) -> None:
    """Write rows under the names of COLUMNS, whole or not at all; Parquet, or JSON Lines by the end of the name.

    Raises SteerError, naming row and column, for what `read` would refuse.
    """
    path, kept = Path(path), [dict(row) for row in rows]
    for number, row in enumerate(kept, 1):
        unknown = next((name for name in row if name not in COLUMNS), None)
        if unknown:
            raise SteerError(f"{_FIELD} {path}, row {number}: {unknown} is no column of a dump; {_REMEDY}")
        _read_row(row, f"{_FIELD} {path}, row {number}")
    with written_whole(path) as partial:
        if path.suffix == ".jsonl":
            partial.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        else:
            names = [name for name in COLUMNS if any(name in row for row in kept)]
            table = pa.table({name: pa.array([row.get(name) for row in kept], _type(name, kept)) for name in names})
            pq.write_table(table, partial, compression="zstd")


def read(path: str | Path) -> Dump:
    """The dump in a file, or in all files of a folder, in the order of their names.

    Raises SteerError naming file, row, column and remedy.
    """
    path = Path(path)
    return _dump([part for file in files_of(path) for part in _rows_of(file)], str(path))


def of_rows(rows: Iterable[Record], source: str) -> Dump:
    """The dump that rows under the names of COLUMNS make. Raises SteerError as `read` does."""
    return _dump([_read_row(row, f"{_FIELD} {source}, row {n}") for n, row in enumerate(rows, 1)], source)


def _dump(parts: list[dict[str, Any]], source: str) -> Dump:
    rows = [row for row in parts if row["length"]]
    if not rows:
        raise SteerError(f"{_FIELD} {source}: no row has a token that counts; check the mask")
    for name in COLUMNS:
        with_it = [row for row in rows if name in row]
        if with_it and len(with_it) < len(rows):
            without = next(row for row in rows if name not in row)
            raise SteerError(
                f"{with_it[0]['where']} has {name}, {without['where']} has not; write it in every row or in none"
            )
    return Dump(source, _responses(rows), _tokens(rows), _settings(rows), len(parts) - len(rows))


def files_of(path: Path) -> list[Path]:
    """The files of a dump. Raises SteerError where there is none."""
    if not path.is_dir():
        if not path.is_file():
            raise SteerError(f"{_FIELD}: {path} is no file or folder; give a dump, a folder of them or a run's folder")
        if path.suffix.lower() not in SUFFIXES:
            raise SteerError(f"{_FIELD}: {path} is none of {', '.join(SUFFIXES)}; write its rows in one of these forms")
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(PARTIAL))
    if not found:
        raise SteerError(f"{_FIELD}: {path} holds no {' or '.join(SUFFIXES)} file; name the folder of a dump")
    return found


def _line(row: Record) -> str:
    return json.dumps(json_ready({name: _plain(value) for name, value in row.items()}), allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


def _type(name: str, rows: Sequence[Record]) -> pa.DataType:
    """The Parquet type of a column; `advantage` is a list where any row has one a token."""
    kind = COLUMNS[name].kind
    if name == "advantage" and not any(_is_list(row.get(name)) for row in rows):
        return pa.float64()
    return {
        "numbers": pa.list_(pa.float32()), "flags": pa.list_(pa.int8()), "texts": pa.list_(pa.string()),
        "ids": pa.list_(pa.int64()), "number": pa.float64(), "whole": pa.int64(), "flag": pa.bool_(),
        "text": pa.string(),
    }[kind]  # fmt: skip


def _rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of one file, read and checked."""
    records = read_records(file, _FIELD)
    names = {name: found for name in COLUMNS if (found := _name_in(records, name))}
    for name in REQUIRED:
        if name not in names:
            usual = " or ".join((name, *COLUMNS[name].others[:2]))
            raise SteerError(f"{_FIELD} {file}: has no column {usual}; it has {columns(records)}; {_REMEDY}")
    rows = []
    for number, record in enumerate(records, 1):
        given = {name: record[found] for name, found in names.items() if record.get(found) is not None}
        missing = next((name for name in REQUIRED if name not in given), None)
        where = f"{_FIELD} {file}, row {number}"
        if missing:
            raise SteerError(f"{where}: {names[missing]} is missing; give it in every row")
        rows.append(_read_row(given, where))
    return rows


def _name_in(records: list[Record], name: str) -> str | None:
    """The name under which the records have a column: its own, or one that another trainer gives it."""
    return next(
        (one for one in (name, *COLUMNS[name].others) if any(record.get(one) is not None for record in records)), None
    )


def _read_row(given: Record, where: str) -> dict[str, Any]:
    """A row as arrays over the tokens that count, and plain values. Raises SteerError naming row and column."""
    missing = next((name for name in REQUIRED if given.get(name) is None), None)
    if missing:
        raise SteerError(f"{where}: {missing} is missing; give it in every row")
    count = len(_listed(given["logprob"], f"{where}, logprob"))
    mask = _mask(given.get("mask"), count, where)
    row: dict[str, Any] = {"where": where, "written": count, "length": int(mask.sum()), "position": mask.nonzero()[0]}
    for name, value in given.items():
        if value is None or name == "mask":
            continue
        place = f"{where}, {name}"
        if name == "advantage" and not _is_list(value):
            row[name] = np.full(row["length"], _number(value, place))
        elif COLUMNS[name].by_token:
            row[name] = _by_token(value, name, count, mask, place)
        else:
            row[name] = _single(value, COLUMNS[name].kind, place)
    return row


def _mask(value: Any, count: int, where: str) -> np.ndarray:
    if value is None:
        return np.ones(count, dtype=bool)
    flags = _listed(value, f"{where}, mask")
    if len(flags) != count:
        raise SteerError(f"{where}, mask: has {len(flags)} values and logprob {count}; give one a token")
    odd = next((one for one in flags if one not in (0, 1)), None)
    if odd is not None:
        raise SteerError(f"{where}, mask: {odd!r} is neither 0 nor 1; write 1 at the tokens that count")
    return np.array(flags, dtype=bool)


def _by_token(value: Any, name: str, count: int, mask: np.ndarray, place: str) -> np.ndarray:
    values = _listed(value, place)
    if len(values) != count:
        raise SteerError(f"{place}: has {len(values)} values and logprob {count}; give one a token")
    kept = [one for one, inside in zip(values, mask, strict=True) if inside]
    if COLUMNS[name].kind == "texts":
        return np.array([str(one) for one in kept], dtype=object)
    try:
        numbers = np.array(kept, dtype=np.int64 if COLUMNS[name].kind == "ids" else np.float64)
    except (TypeError, ValueError, OverflowError):
        odd = next((one for one in kept if isinstance(one, bool) or not isinstance(one, int | float)), kept[0])
        raise SteerError(f"{place}: {str(odd)[:40]!r} is no number; give one a token") from None
    wrong = ~np.isfinite(numbers)
    if wrong.any():
        raise SteerError(f"{place}: {numbers[wrong][0]} at token {_at(wrong, mask)}; leave it out by the mask")
    if name.endswith("logprob") and (numbers > _ROUNDING).any():
        told = numbers[numbers > _ROUNDING][0]
        raise SteerError(
            f"{place}: {told:g} at token {_at(numbers > _ROUNDING, mask)} is above 0; write ln p, not -ln p"
        )
    return numbers


def _at(wrong: np.ndarray, mask: np.ndarray) -> int:
    """The place in a row's lists, from 1, of the first wrong value among those that count."""
    return int(mask.nonzero()[0][int(wrong.argmax())]) + 1


def _single(value: Any, kind: str, place: str) -> Any:
    if kind == "text":
        return str(value)
    if kind == "flag":
        if value not in (0, 1):
            raise SteerError(f"{place}: {str(value)[:40]!r} is neither true nor false; write one of them")
        return bool(value)
    number = _number(sum(value) if _is_list(value) and kind == "number" and value else value, place)
    if kind == "whole" and (number != int(number) or number < 0):
        raise SteerError(f"{place}: {number:g} is no whole number from 0 on; write one")
    return int(number) if kind == "whole" else number


def _number(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
        raise SteerError(f"{place}: {one_line(value, 40)!r} is no finite number; write one")
    return float(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _listed(value: Any, place: str) -> Sequence[Any]:
    if not _is_list(value):
        raise SteerError(f"{place}: {one_line(value, 40)!r} is no list; give one value a token")
    return value.tolist() if isinstance(value, np.ndarray) else value


def _responses(rows: list[dict[str, Any]]) -> pd.DataFrame:
    names = [name for name in RESPONSE if name in rows[0]]
    frame = pd.DataFrame({name: [row[name] for row in rows] for name in ("where", "length", "written", *names)})
    return frame if "step" in frame else frame.assign(step=0)


def _tokens(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    lengths = [row["length"] for row in rows]
    names = [name for name, column in COLUMNS.items() if column.by_token and name != "mask" and name in rows[0]]
    flat = {name: np.concatenate([row[name] for row in rows]) for name in ("position", *names)}
    return {"row": np.repeat(np.arange(len(rows)), lengths), **flat}


def _settings(rows: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for name in SETTINGS:
        if name not in rows[0]:
            continue
        found[name] = rows[0][name]
        other = next((row for row in rows if row[name] != found[name]), None)
        if other:
            raise SteerError(
                f"{other['where']}, {name}: {other[name]:g} is not the {found[name]:g} of the first row; "
                "write a dump for each setting"
            )
    return found

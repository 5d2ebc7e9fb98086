"""Sampled responses in a Parquet file: a row a response, a value a token.

This is the one home of the format; `rollouts.py` says which files a run has. Any reader of Parquet opens such a file
(`pandas.read_parquet`). Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from steer_core.common.errors import SteerError, one_line
from steer_core.common.files import written_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what a part of a UTF-8 character decodes to


@dataclass(frozen=True)
class Response:
    """A sampled response; the lists hold a value for each of its tokens, the end token included.

    problem: the problem's id. sample: which response of its group, from 0. prompt, response: text, the
    end token left out of it. finish_reason: "stop" where an end token, the last of its
    tokens, ended it, "text" where a text of rollout.stop did, or "length" where it was cut off.
    tokens: each token's text, see `token_texts`. probability, logprob, entropy (nats): of the policy
    that sampled, at its temperature. lambda_ (column `lambda`): the intervention's weight on the
    token's loss in the update. omega: the estimated entropy change that the update was planned by:
    dH of one token's step, in nats at unit step, positive where it raises entropy (what
    `ENTROPY_CHANGE[form]` gives, so minus the paper's Omega in the paper's form).
    """

    problem: str
    sample: int
    prompt: str
    response: str
    reward: float
    advantage: float
    finish_reason: str
    tokens: list[str]
    token_ids: list[int]
    probability: list[float]
    logprob: list[float]
    entropy: list[float]
    lambda_: list[float]
    omega: list[float]


_KINDS = {
    str: pa.string(), int: pa.int32(), float: pa.float64(),
    list[str]: pa.list_(pa.string()), list[int]: pa.list_(pa.int32()), list[float]: pa.list_(pa.float32()),
}  # fmt: skip
COLUMNS = {name.rstrip("_"): _KINDS[kind] for name, kind in get_type_hints(Response).items()}
"""The columns and their types, in the order of `Response`."""
TOKEN_COLUMNS = [name for name, kind in COLUMNS.items() if pa.types.is_list(kind)]
_VERSION = {b"steer.rollouts": b"1"}
_WRITTEN_AGAIN = "write it with steer_core.runs.responses.write"


def write(path: str | Path, rows: Iterable[Response]) -> None:
    """Write responses, aside and then renamed: a kill leaves the old file or the new one, whole.

    Raises SteerError for a row whose lists differ in length or that does not fit the columns, and
    OSError where the folder cannot be written.
    """
    path, rows = Path(path), list(rows)
    try:
        columns = {
            name: pa.array([getattr(row, field.name) for row in rows], COLUMNS[name])
            for name, field in zip(COLUMNS, fields(Response), strict=True)
        }
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError) as error:
        told = one_line(error)
        raise SteerError(f"responses {path}: a value does not fit its column ({told}); see Response") from error
    table = pa.table(columns, schema=pa.schema(COLUMNS, metadata=_VERSION))
    _check_rows(table, path, "give every token column a value a token")
    with written_whole(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read(path: str | Path) -> list[Response]:
    """The responses of a file, in its order. Columns that are no part of the format are left out.

    Raises SteerError naming the file, the column and the remedy: where it is missing or damaged, lacks
    a column or a value, or holds another type.
    """
    return _rows(_checked(_table(Path(path)), Path(path)))


def join(paths: Mapping[int, Path], path: Path) -> None:
    """Make one file, whole or not at all, of those of several rollouts by number, which a column `step` tells.

    Raises SteerError as `read` does, and OSError where it cannot be written.
    """
    parts = []
    for step, one in paths.items():
        table = _checked(_table(one), one)
        parts.append(table.add_column(0, "step", pa.array([step] * len(table), pa.int32())))
    with written_whole(path) as partial:
        pq.write_table(pa.concat_tables(parts).replace_schema_metadata(_VERSION), partial, compression="zstd")


def read_rollout(path: Path, step: int) -> list[Response]:
    """The responses of one rollout in a file that `join` made. Raises SteerError as `read` does."""
    table = _table(path)
    if "step" not in table.column_names:
        raise SteerError(f"responses {path}: column step is missing; {_WRITTEN_AGAIN}")
    return _rows(_checked(table.filter(pc.equal(table["step"], step)), path))


def _table(path: Path) -> pa.Table:
    if path.exists() and not path.is_file():
        raise SteerError(f"responses {path}: is no regular file; move it away")
    try:
        return pq.read_table(path, partitioning=None)
    except FileNotFoundError as error:
        raise SteerError(f"responses {path}: no such file; name one that `steer train` wrote") from error
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise SteerError(
            f"responses {path}: damaged or no Parquet ({one_line(error)}); delete it, and train again if you need it"
        ) from error


def _checked(table: pa.Table, path: Path) -> pa.Table:
    """A file's columns of the format, checked. Raises SteerError where one is missing or holds something else."""
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise SteerError(
            f"responses {path}: column {missing[0]} is missing; it was not written by `steer train`: {_WRITTEN_AGAIN}"
        )
    table = pa.table({name: _typed(table[name], name, path) for name in COLUMNS})
    _check_rows(table, path, _WRITTEN_AGAIN)
    return table


def _rows(table: pa.Table) -> list[Response]:
    return [Response(*row.values()) for row in table.to_pylist()]


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int], ended: bool) -> list[str]:
    """The text of each token; joined, they are the response as it decodes, then the end token's name.

    ids: the response's tokens. ended: the last one is the end token, shown under its own name. A
    character whose bytes are spread over several tokens belongs to the last of them, the others get
    "". Special tokens within the response keep their names.
    """
    body = list(ids[:-1] if ended else ids)
    whole = tokenizer.decode(body) if body else ""
    alone = {token: tokenizer.decode([token]) for token in set(body)}
    texts = [alone[token] for token in body]
    for slower in (_in_windows, _in_prefixes):
        if "".join(texts) == whole:
            break
        texts = slower(tokenizer.decode, body, whole)
    return [*texts, tokenizer.convert_ids_to_tokens(ids[-1])] if ended else texts


def _in_windows(decode: Callable[[list[int]], str], ids: list[int], whole: str) -> list[str]:
    """Each token's text beside the tokens just before it; waits for the end of a character."""
    texts, start, told = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[start:told]) if told > start else "", decode(ids[start:end])
        if now.endswith(_INCOMPLETE) and end < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, told = told, end
    return texts


def _in_prefixes(decode: Callable[[list[int]], str], ids: list[int], whole: str) -> list[str]:
    """Each token's share of the whole: how much further the text of the tokens up to it agrees with it."""
    texts, told = [], 0
    for end in range(1, len(ids) + 1):
        prefix = decode(ids[:end]).rstrip(_INCOMPLETE)
        reach = len(whole) if end == len(ids) else max(told, _agreement(prefix, whole))
        texts.append(whole[told:reach])
        told = reach
    return texts


def _agreement(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _typed(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    try:
        return column.cast(COLUMNS[name])
    except (pa.ArrowException, UnicodeError) as error:
        raise SteerError(
            f"responses {path}: column {name} holds {column.type}, not {COLUMNS[name]}; {_WRITTEN_AGAIN}"
        ) from error


def _check_rows(table: pa.Table, path: Path, remedy: str) -> None:
    """Raise SteerError where a value is missing, or the token columns of a row differ in length."""
    lengths = pc.list_value_length(table["tokens"])
    for name in table.column_names:
        column = table[name]
        if column.null_count or (name in TOKEN_COLUMNS and pc.list_flatten(column).null_count):
            raise SteerError(f"responses {path}: column {name} lacks a value; {remedy}")
        if name in TOKEN_COLUMNS:
            equal = pc.equal(pc.list_value_length(column), lengths).to_pylist()
            if not all(equal):
                row = equal.index(False)
                found, wanted = len(column[row].as_py()), lengths[row].as_py()
                raise SteerError(
                    f"responses {path}: row {row} has {found} values of {name} and {wanted} tokens; {remedy}"
                )

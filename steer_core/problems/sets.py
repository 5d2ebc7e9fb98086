"""Problem sets by name, read through `datasets` from a local folder or the hub, checked at load.

The facts about each set live in `manifest.yaml`. A file's content is compared with them before anything is done
with it. What is broken in the released files is not mended here: `steer data audit` shows it.

Rows are grouped by the problem's identity, for a file may hold a problem in many rows: the AIME files store their
avg@32 as 32 copies of each.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass as checked_dataclass

from steer_core.common.errors import SteerError, nearest, one_line
from steer_core.common.files import sha256
from steer_core.common.places import CHECKOUT
from steer_core.common.settings import STRICT, build, read_yaml
from steer_core.problems.problem import Messages, Problem, Row
from steer_core.problems.prompts import question_of
from steer_core.problems.rows import Hub, hub_rows, read_rows
from steer_core.rewards.code_tests import first_tests, parse_tests

MANIFEST = Path(__file__).parent / "manifest.yaml"
BESIDE = CHECKOUT.resolve().parent / "shared" / "data"
"""Where data lie when STEER_DATA names no folder: beside the checkout that the package runs from."""
State = Literal["verified", "other encoding", "changed", "unverified"]


@checked_dataclass(config=STRICT, kw_only=True, frozen=True)
class Facts:
    """What the manifest says of a set; None where nobody has looked."""

    title: str
    """For people."""
    use: Literal["training", "evaluation"]
    """What the paper does with it."""
    grader: Literal["maths", "code"]
    """Who judges a response."""
    samples: int
    """Responses to a problem in the paper's tables."""
    file: str
    """Name of the released file."""
    hub: Hub
    """Where it is found without the file."""
    rows: int | None = None
    """Rows of the file."""
    problems: int | None = None
    """Distinct problems of the file."""
    sha256: str | None = None
    """SHA-256 of the file."""
    content: str | None = None
    """`content_hash` of its rows."""


@dataclass(frozen=True)
class Release:
    """The rows of a set as they are, and what is known of them. file: None where they come from the hub."""

    name: str
    facts: Facts
    rows: list[Row] = field(repr=False)
    source: str
    file: Path | None
    digest: str
    state: State


@dataclass(frozen=True)
class ProblemSet:
    """Problems that are graded alike. grader: who grades them. samples: responses to each.

    source, digest: where they come from, and the `content_hash` of all rows there; empty for problems that are made.
    state: whether these are the manifest's problems; `own` for a file of one's own, `made` for Countdown. of: how many
    problems there are, of which these are the first.
    """

    name: str
    grader: Literal["maths", "code", "countdown"]
    samples: int
    problems: list[Problem] = field(repr=False)
    source: str
    digest: str
    state: State | Literal["own", "made"] = "made"
    of: int = 0


def names() -> list[str]:
    """Every set of the manifest."""
    return list(manifest())


@lru_cache(maxsize=1)
def manifest() -> dict[str, Facts]:
    """The facts about every set, by name."""
    return {name: build(Facts, facts, name) for name, facts in read_yaml(MANIFEST).items()}


def facts_of(name: str) -> Facts:
    """The facts about a set. Raises SteerError for an unknown name."""
    if name not in manifest():
        raise SteerError(f"data: {name!r} is unknown; {nearest(name, names())}")
    return manifest()[name]


def data_folder(folder: Path | None = None) -> Path | None:
    """Where files are looked for: `folder`, else STEER_DATA, else ../shared/data beside the checkout, else nowhere.

    Raises SteerError for a folder that was asked for and is none.
    """
    told = os.environ.get("STEER_DATA")
    asked, by = (folder, "--data") if folder else (Path(told) if told else None, "STEER_DATA")
    if asked is None:
        return BESIDE if BESIDE.is_dir() else None
    if not asked.is_dir():
        raise SteerError(f"{by}: {asked} is no folder; give the folder that holds the parquet files")
    return asked


def find_file(file: str, field: str = "task.file") -> Path:
    """The file of that path or, for a bare name, of that name here or in `data_folder()`. Raises SteerError."""
    path, folder = Path(file), data_folder()
    if path.exists() or path.name != file:
        return path
    if folder is None:
        raise SteerError(f"{field}: {file} is no file here; set STEER_DATA to the folder that holds it")
    if not (folder / file).exists():
        raise SteerError(f"{field}: {file} is no file here or in {folder}; put it there, or set STEER_DATA")
    return folder / file


def load_set(name: str, folder: Path | None = None, accept_changed: bool = False) -> ProblemSet:
    """The set of that name, every problem once, in the file's order, without a prompt yet.

    Problems without an answer, with another answer in another row, or of code with tests that cannot be run, are left
    out with a warning.
    Raises SteerError for an unknown name, a set that is not found, and a file that is not the manifest's,
    unless `accept_changed`.
    """
    release = read_release(name, folder, accept_changed)
    facts, where = release.facts, f"data {name}"
    rows = distinct(release.rows, release.source, row_identity, where)
    if facts.grader == "code":
        rows = runnable(rows, release.source, field=where)
    problems = [
        Problem(problem_id(name, text), "", truth, question_of(messages)[1], messages)
        for text, (messages, truth) in rows.items()
    ]
    return ProblemSet(
        name, facts.grader, facts.samples, problems, release.source, release.digest, release.state, len(problems)
    )


def read_release(name: str, folder: Path | None = None, accept_changed: bool = False) -> Release:
    """Every row of a set, compared with the manifest. Raises as `load_set` does."""
    facts, folder = facts_of(name), data_folder(folder)
    file = folder / facts.file if folder else None
    if file is None or not file.exists():
        return _from_hub(name, facts, folder)
    rows = read_rows(file, f"data {name}")
    digest = content_hash(rows)
    state: State = "unverified"
    if facts.sha256 is not None:
        same = sha256(file) == facts.sha256
        state = "verified" if same else "other encoding" if digest == facts.content else "changed"
    if state == "changed" and not accept_changed:
        raise SteerError(
            f"data {name}: {file} holds other content than the manifest says ({len(rows)} rows, {digest[:12]}, "
            f"where {facts.rows} rows, {(facts.content or 'unknown')[:12]} are expected); put the released file there, "
            "or accept this one (accept_changed=True, --accept-changed)"
        )
    if state in ("changed", "unverified"):
        why = "differs from the manifest" if state == "changed" else "has no hash in the manifest"
        warnings.warn(f"data {name}: {file.name} {why}; its content is not verified", stacklevel=3)
    return Release(name, facts, rows, facts.file, file, digest, state)


def _from_hub(name: str, facts: Facts, folder: Path | None) -> Release:
    """The rows that the hub holds, of which nothing is verified."""
    hub, looked = facts.hub, f"in {folder}" if folder else "in a local folder"
    try:
        rows = hub_rows(hub, f"data {name}")
    except SteerError:
        raise
    except Exception as error:  # datasets and the hub's client raise errors of many kinds
        reason = one_line(f"{type(error).__name__} {error}")
        raise SteerError(
            f"data {name}: {facts.file} is not {looked}, and the hub gave no {hub.id} ({reason}); set STEER_DATA to a "
            f"folder that holds {facts.file}, or run where the hub can be reached"
        ) from error
    source = f"{hub.id}@{hub.revision}"
    count = len({row_identity(messages) for messages, _ in rows})
    warnings.warn(
        f"data {name}: from the hub ({source}), {len(rows)} rows of {count} problems; its content is not verified "
        f"(the released file has {facts.rows or 'unknown'} rows of {facts.problems or 'unknown'} problems)",
        stacklevel=4,
    )
    return Release(name, facts, rows, source, None, content_hash(rows), "unverified")


def content_hash(rows: Sequence[Row]) -> str:
    """SHA-256 over (role, content) of every message and the ground truth of every row, in order, in hexadecimal."""
    digest = hashlib.sha256()
    for messages, truth in rows:
        said = [[message["role"], message["content"]] for message in messages]
        digest.update(json.dumps([said, truth]).encode() + b"\n")
    return digest.hexdigest()


def identity(question: str) -> str:
    """What two problems must share to be the same: the text up to white space and canonical Unicode forms (NFC).

    Letter case and compatibility forms stay, for n and N, or 2 and a superscript 2, can be different problems.
    """
    return " ".join(unicodedata.normalize("NFC", question).split())


def row_identity(messages: Messages) -> str:
    """The identity of a row's bare question."""
    return identity(question_of(messages)[1])


def problem_id(name: str, text: str) -> str:
    """A name for the problem with this identity, stable whatever the file's order."""
    return f"{name}/{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"


def whole_text(messages: Messages) -> str:
    """All that a row's messages say, up to white space."""
    return " ".join(" ".join(message["content"] for message in messages).split())


def distinct(
    rows: Sequence[Row], file: str, same: Callable[[Messages], str] = whole_text, field: str = "task.file"
) -> dict[str, Row]:
    """The rows by what is the `same` of a problem, by default its text up to white space; duplicates are dropped.

    A problem without an answer, or with another answer in another row, cannot be verified and is
    left out; a warning says how many there are. Raises SteerError where no problem is left.
    """
    found, unusable = grouped(rows, same)
    usable = {text: group[0] for text, group in found.items() if text not in unusable}
    if not usable:
        raise SteerError(f"{field}: {file} holds no problem with one answer among {len(rows)} rows; name another")
    if unusable:
        warnings.warn(
            f"{field}: {file}: left out {len(unusable)} of {len(found)} problems, which have no answer or a "
            "different one in another row",
            stacklevel=2,
        )
    return usable


def runnable(rows: dict[str, Row], file: str, most: int | None = None, field: str = "task.file") -> dict[str, Row]:
    """The rows whose ground truth is tests that can be run, cut to the first `most`; a warning tells what is left out.

    Raises SteerError where none is left.
    """
    found, reason = {}, ""
    for text, (messages, truth) in rows.items():
        try:
            tests = first_tests(truth, most)
            parse_tests(tests)
        except SteerError as error:
            reason = reason or str(error)
            continue
        found[text] = messages, tests
    if not found:
        raise SteerError(f"{field}: {file} holds no problem with tests that can be run ({reason})")
    if len(found) < len(rows):
        warnings.warn(
            f"{field}: {file}: left out {len(rows) - len(found)} of {len(rows)} problems, whose tests cannot be run "
            f"(the first: {reason})",
            stacklevel=2,
        )
    return found


def grouped(rows: Sequence[Row], same: Callable[[Messages], str]) -> tuple[dict[str, list[Row]], set[str]]:
    """(rows of each problem in order of appearance, those of which no row or not every row has the one answer)."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(same(row[0]), []).append(row)
    unusable = {text for text, group in found.items() if not group[0][1] or any(r[1] != group[0][1] for r in group)}
    return found, unusable

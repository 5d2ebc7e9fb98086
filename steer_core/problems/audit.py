"""What is broken in the released files, and which problems the sets share: `steer data audit`.

    data_audit.json  data_audit.md

Nothing is mended: the files are what others measured on. The record names every problem that two sets share by its
identity, so that a clean subset can be made; of texts it quotes no more than a line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer_core.common.environment import environment
from steer_core.common.errors import SteerError
from steer_core.common.files import write_atomically
from steer_core.common.tables import markdown_table, rich_table
from steer_core.problems.overlap import READ, RULE, Pair, overlaps
from steer_core.problems.prompts import STYLES, question_of
from steer_core.problems.rows import read_file
from steer_core.problems.sets import (
    MANIFEST,
    Release,
    data_folder,
    facts_of,
    grouped,
    manifest,
    names,
    problem_id,
    read_release,
    row_identity,
)

if TYPE_CHECKING:
    from rich.table import Table

QUOTED = 80
"""Characters of a text that a report quotes."""
COLUMNS = 150
"""Least width of the tables, in characters."""
EXAMPLES = 3
"""Pairs of problems quoted for two sets: the least alike, the middle one and the most alike."""
_INTEGER = re.compile(r"-?\d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def audit(wanted: Sequence[str] = (), folder: Path | None = None, accept_changed: bool = False) -> dict[str, Any]:
    """The JSON-ready record of an audit.

    wanted: sets by name; none: those whose file is there. Raises SteerError as `sets.load_set` does, for a set named
    twice, and where no file is there.
    """
    where = data_folder(folder)
    present = [name for name in names() if where and (where / facts_of(name).file).exists()]
    if not (wanted or present):
        reason = f"{where} holds none of the sets" if where else "there is no folder of data"
        raise SteerError(f"--data: {reason}; set STEER_DATA, or name sets to get from the hub")
    twice = [name for name, count in Counter(wanted).items() if count > 1]
    if twice:
        raise SteerError(f"data audit: {twice[0]} is named twice; name each once")
    releases = [read_release(name, folder, accept_changed) for name in wanted or present]
    problems = {release.name: list(grouped(release.rows, row_identity)[0]) for release in releases}
    return {
        "environment": environment(),
        "sets": [examine(release) for release in releases],
        "left_out": [name for name in names() if name not in problems],
        "rule": RULE,
        "overlap": [_overlap(pair, problems) for pair in overlaps(problems)],
    }


def examine(release: Release) -> dict[str, Any]:
    """What one set looks like. `rows` counts rows; all else counts distinct problems, unless it says rows."""
    found, unusable = grouped(release.rows, row_identity)
    answers = {text: sorted({truth for _, truth in group}) for text, group in found.items()}
    questions = {text: question_of(group[0][0])[1] for text, group in found.items()}
    control = [text for text, question in questions.items() if _CONTROL.search(question)]
    return {
        "name": release.name,
        "title": release.facts.title,
        "use": release.facts.use,
        "source": release.source,
        "state": release.state,
        "content": release.digest,
        "rows": len(release.rows),
        "problems": len(found),
        "copies": dict(sorted(Counter(map(len, found.values())).items())),
        "forms": dict(Counter(question_of(messages)[0] for messages, _ in release.rows)),
        "raw_problem": _raw_problems(release),
        "left_out": len(unusable),
        "no_answer": [problem_id(release.name, text) for text, given in answers.items() if "" in given],
        "answers_differ": [
            {"id": problem_id(release.name, text), "problem": cut(text), "answers": [cut(one) for one in given]}
            for text, given in answers.items()
            if len(given) > 1
        ],
        "no_integer": sum(not _INTEGER.fullmatch(given[0]) for given in answers.values())
        if release.facts.grader == "maths"
        else None,
        "control_characters": len(control),
        "control_example": _around(_CONTROL, questions[control[0]]) if control else "",
    }


def _raw_problems(release: Release) -> dict[str, Any]:
    """Of `extra_info.raw_problem`: in how many rows it stands, and in how many it is not the bare question."""
    table = read_file(release.file) if release.file else None
    extra = table["extra_info"] if table is not None and "extra_info" in table.column_names else []
    given = [(row or {}).get("raw_problem") for row in extra]
    pairs = [(raw, question_of(row[0])[1]) for raw, row in zip(given, release.rows, strict=False) if raw is not None]
    broken = [raw for raw, question in pairs if raw != question]
    return {"rows": len(pairs), "differ": len(broken), "example": cut(broken[0]) if broken else ""}


def _overlap(pair: Pair, problems: dict[str, list[str]]) -> dict[str, Any]:
    """A pair of sets as the record keeps it; pairs of problems of one set are counted, not named."""
    first, second = problems[pair.first], problems[pair.second]
    ids = [[problem_id("", text)[1:] for text in texts] for texts in (first, second)]
    ordered = sorted(pair.near, key=lambda match: match[2])
    picked = sorted({0, len(ordered) // 2, len(ordered) - 1})[:EXAMPLES] if ordered else []
    shown = [(first[i], second[j], share) for i, j, share in (ordered[k] for k in picked)]
    sides = dict.fromkeys((pair.first, pair.second))
    return {
        "first": pair.first,
        "second": pair.second,
        "found": {name: dict(zip(("exact", "near"), map(len, pair.found(name)), strict=True)) for name in sides},
        "exact": [f"{ids[0][i]} {ids[1][j]}" for i, j in pair.exact],
        "near_pairs": len(pair.near),
        "near": [f"{ids[0][i]} {ids[1][j]} {share:.2f}" for i, j, share in pair.near] if len(sides) > 1 else [],
        "examples": [{"share": share, "texts": differing(one, other)} for one, other, share in shown],
    }


def cut(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= QUOTED else line[: QUOTED - 3] + "..."


def differing(first: str, second: str) -> list[str]:
    """Both texts from a little before the place where they begin to differ, each cut."""
    shorter = min(len(first), len(second))
    alike = next((i for i in range(shorter) if first[i] != second[i]), shorter)
    start = max(alike - QUOTED // 3, 0)
    return [("..." if start else "") + cut(text[start:]) for text in (first, second)]


def _around(pattern: re.Pattern[str], text: str) -> str:
    """A few characters on either side of the first match, escaped."""
    match = next(pattern.finditer(text))
    return ascii(text[max(match.start() - 20, 0) : match.end() + 20])[1:-1]


SET_HEAD = ["set", "rows", "problems", "copies", "asks for", "raw_problem cut", "no answer", "answers differ",
            "no integer", "control characters", "content"]  # fmt: skip


def set_lines(record: dict[str, Any]) -> list[list[str]]:
    """One line of words a set, for a table with the head SET_HEAD."""
    return [
        [
            title,
            f"{one['rows']:,}",
            f"{one['problems']:,}",
            ", ".join(map(str, one["copies"])) if len(one["copies"]) < 4 else f"1 to {max(map(int, one['copies']))}",
            "; ".join(form if count == one["rows"] else f"{form} ({count:,})" for form, count in one["forms"].items()),
            f"{one['raw_problem']['differ']:,} of {one['raw_problem']['rows']:,}"
            if one["raw_problem"]["rows"]
            else "-",
            str(len(one["no_answer"])),
            str(len(one["answers_differ"])),
            "-" if one["no_integer"] is None else f"{one['no_integer']:,}",
            f"{one['control_characters']:,}",
            one["state"],
        ]
        for title, one in zip(titles(record), record["sets"], strict=True)
    ]


def titles(record: dict[str, Any]) -> list[str]:
    """The sets' names as every table has them: one whose file is not the manifest's says so."""
    return [one["name"] + (" (changed)" if one["state"] == "changed" else "") for one in record["sets"]]


def matrix_lines(record: dict[str, Any]) -> list[list[str]]:
    """(set, its problems, then for every set "exact + near" of those problems that it has); "" where it has none."""
    cells: dict[tuple[str, str], dict[str, int]] = {}
    for pair in record["overlap"]:
        for name, other in ((pair["first"], pair["second"]), (pair["second"], pair["first"])):
            cells[name, other] = pair["found"][name]
    sets = [one["name"] for one in record["sets"]]
    counts = {one["name"]: f"{one['problems']:,}" for one in record["sets"]}

    def cell(name: str, other: str) -> str:
        exact, near = cells[name, other]["exact"], cells[name, other]["near"]
        return f"{exact} + {near}" if exact or near else ""

    return [
        [title, counts[name], *(cell(name, other) for other in sets)]
        for title, name in zip(titles(record), sets, strict=True)
    ]


def tables(record: dict[str, Any]) -> list[Table]:
    """The audit for a terminal."""
    head = ["set", "problems", *titles(record)]
    title = "exact + near-duplicates: problems of the row's set that the column's set has"
    return [
        rich_table("what the files hold", SET_HEAD, set_lines(record)),
        rich_table(title, head, matrix_lines(record)),
    ]


def listing(folder: Path | None = None) -> list[Table]:
    """The sets and where each would come from, and the prompt styles, for a terminal."""
    where = data_folder(folder)
    rows = []
    for name, facts in manifest().items():
        here = where is not None and (where / facts.file).exists()
        source = facts.file if here else f"hub: {facts.hub.id}"
        rows.append([name, facts.title, facts.use, facts.grader, str(facts.samples), source])
    styles = [[name, style.meaning] for name, style in STYLES.items()]
    return [
        rich_table(
            f"data sets ({where or 'no local folder'})", ["name", "set", "use", "grader", "samples", "from"], rows
        ),
        rich_table("prompt styles (benchmark.style)", ["name", "what the model gets"], styles),
    ]


def write(record: dict[str, Any], folder: Path) -> Path:
    """Write data_audit.json and data_audit.md. Raises SteerError where the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "data_audit.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_atomically(folder / "data_audit.md", markdown(record))
    except OSError as error:
        raise SteerError(f"--out: {folder} cannot be written ({error.strerror}); name another folder") from error
    return folder / "data_audit.md"


def markdown(record: dict[str, Any]) -> str:
    """The audit as a page."""
    made, sets = record["environment"], record["sets"]
    parts = [
        "# What is in the data files",
        f"`{made['command']}`, {made['date'][:10]}, {made['cores']} cores of {made['processor']}. The facts that are "
        f"checked at load: `steer_core/problems/{MANIFEST.name}`. "
        f"Not audited: {', '.join(record['left_out']) or 'none'}.",
        "Problems are distinct questions, equal up to white space. *copies*: rows of a problem. *asks for*: the form "
        "of answer that the instruction names, in how many rows. *raw_problem cut*: rows whose `raw_problem` in "
        "`extra_info` is not the question that the prompt asks. *no answer* and *answers differ* (between rows of one "
        "problem): left out when the set is loaded. *no integer*: the answer is no plain integer, so that a grader "
        "that compares integers fails it. *control characters*: the text holds some, mostly LaTeX commands that an "
        "escape cut. *content*: whether it is the manifest's.",
        markdown_table(SET_HEAD, set_lines(record)),
        *(_quotes(one) for one in sets),
        "# What the sets share",
        record["rule"],
        READ,
        "A cell tells how many problems of the row's set the column's set has: exactly + only nearly. Empty: none.",
        markdown_table(["set", "problems", *titles(record)], matrix_lines(record)),
        "Examples, the least and the most alike of each pair of sets, from where the texts begin to differ:",
        "```text\n" + "\n".join(_example_lines(record["overlap"])) + "\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quotes(one: dict[str, Any]) -> str:
    """What a set's numbers look like in the file, quoted."""
    lines = []
    if one["raw_problem"]["differ"]:
        lines.append(f"raw_problem: {one['raw_problem']['example']}")
    if one["control_characters"]:
        lines.append(f"control characters: {one['control_example']}")
    lines += [f"{' / '.join(case['answers'])}: {case['problem']}" for case in one["answers_differ"]]
    return f"{one['name']}:\n\n```text\n" + "\n".join(lines) + "\n```" if lines else ""


def _example_lines(pairs: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for pair in pairs:
        for example in pair["examples"]:
            lines.append(f"{pair['first']} / {pair['second']}, share {example['share']:.2f}")
            lines += [f"    {text}" for text in example["texts"]]
    return lines or ["none"]

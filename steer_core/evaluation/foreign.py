"""Responses as this and other harnesses keep them, a row each with what it is judged by: what `steer grade` reads.

Read are: `responses.parquet` and `rollouts/*.parquet` of this package; verl's generations (`prompt`, `reward_model`,
`responses`) and validation dumps (`input`, `output`, `gts`); samples of lm-evaluation-harness (`doc_id`, `target`,
`resps`), details of lighteval, HELM's scenario states; OpenAI's and vLLM's answers (`choices`, `output`, `outputs`, or
`messages` that end with the assistant's) beside an answer; and any file with a response and a reference under a usual
name, or one that is named. Names within one another are joined by dots, as in `doc.answer`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError
from steer_core.common.records import Record, columns, read_records, value_at
from steer_core.problems.own import IDS, answer_text, refuse_objects
from steer_core.problems.problem import Problem
from steer_core.problems.prompts import question_of, unwrap
from steer_core.problems.sets import ProblemSet, identity
from steer_core.rewards.code_tests import are_tests, parse_tests
from steer_core.rewards.countdown import is_prompt

RESPONSE = ("response", "responses", "resps", "completion", "completions", "output", "outputs", "generation",
            "generations", "generated_text", "output_list", "model_output", "prediction", "predictions", "choices",
            "response.body.choices", "code", "messages", "result.completions", "model_response.text",
            "predicted_text")  # fmt: skip
REFERENCE = ("reference", "reward_model.ground_truth", "ground_truth", "gts", "gt", "gold", "expected_answer",
             "final_answer", "tests", "target", "answer", "solution", "doc.answer", "label", "doc.choices",
             "instance.references")  # fmt: skip
PLAIN = ("reference", "reward_model.ground_truth", "ground_truth", "gts", "prompt")
"""References that are the answer, and no solution that ends with it."""
PROBLEM = ("problem", *IDS, "doc.id", "instance.id", "question", "prompt", "input")
PROMPT = ("prompt", "question", "input", "problem", "doc.question", "doc.problem", "doc.query", "instance.input.text",
          "question_content", "origin_prompt")  # fmt: skip
SET = ("benchmark", "data_source")
TEXTS = ("text", "output_text")
"""Types of the parts of a message that are its text."""
WITHIN = ("message", "content", "text", "generated_text", "continuation", "body", "choices", "output")
"""Names under which an answer holds its text; the first that is there counts."""


@dataclass(frozen=True)
class Names:
    """The columns that a user names; None: the first usual one that is there."""

    response: str | None = None
    reference: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class References:
    """A problem set that holds the references: its problems by their names, and by their questions."""

    benchmark: str
    by_name: Mapping[str, Problem]
    by_question: Mapping[str, Problem]

    @classmethod
    def of(cls, problem_set: ProblemSet, names: Mapping[str, str] | None = None) -> References:
        """Those of a set; names: what else a file calls its problems, each with its problem's identity."""
        questions = {identity(problem.question): problem for problem in problem_set.problems if problem.question}
        known = {name: questions[text] for name, text in (names or {}).items() if text in questions}
        return cls(problem_set.name, known | {problem.id: problem for problem in problem_set.problems}, questions)

    def find(self, problem: str, prompt: str) -> Problem | None:
        """The problem of that name or question, or that of the longest question which the prompt holds."""
        if problem in self.by_name:
            return self.by_name[problem]
        for text in (problem, prompt):
            for key in (identity(text), identity(unwrap(text)[1])):
                if key in self.by_question:
                    return self.by_question[key]
        whole = identity(prompt or problem)
        held = [key for key in self.by_question if key in whole]
        return self.by_question[max(held, key=len)] if held else None


def read_responses(path: Path, names: Names, known: References | None = None) -> list[Record]:
    """A row a response: benchmark, problem, sample, prompt, reference, response, finish_reason, tokens.

    known: the problem set that holds the references, found by a problem's id or question; rows take its name and ids,
    so that they can be paired with an evaluation on it. What has no reference is left out with a warning. A row keeps
    the columns NAME/status of verdicts that it came with. Raises SteerError for a file that is not read, for columns
    that are missing or hold no text, naming the remedy.
    """
    field = "FILE"
    records = read_records(path, field)
    if all("resps" in record and "filter" in record for record in records):  # once for each filter of the harness
        records = [record for record in records if record["filter"] == records[0]["filter"]]
    where = f"{field}: {path}"
    response = _name(records, names.response, RESPONSE, "--response", where)
    known = None if names.reference else known
    reference = "" if known else _reference_name(records, names.reference, where)
    rows: list[Record] = []
    lacking = 0
    for number, record in enumerate(records):
        prompt = _prompt(record)
        problem = _problem(record, names.problem, number)
        if known:
            name, found = known.benchmark, known.find(problem, prompt)
            problem, truth = (found.id, found.reference) if found else ("", "")
        else:
            name, truth = _set(record, path), _truth(record, reference)
        if not truth:
            lacking += 1
            continue
        base: Record = {"benchmark": name, "problem": problem, "prompt": prompt, "reference": truth}
        base |= _kept(record)
        base |= {name: value for name, value in record.items() if name.endswith("/status")}
        texts = _texts(value_at(record, response), f"{where}, record {number + 1}")
        rows += [{**base, "response": text} for text in texts]
    if not rows:
        raise SteerError(f"{where}: no response has a reference; name its column (--reference), or its benchmark")
    if lacking:
        warnings.warn(f"{where}: left out {lacking} of {len(records)} records, which have no reference", stacklevel=2)
    return _numbered(rows)


def kinds_of(rows: list[Record], path: Path) -> dict[str, str]:
    """Who judges the rows of each set: code where a reference is tests, countdown where it is its prompt, else maths.

    Raises SteerError where only some references of a set are of that kind.
    """
    found = {}
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        references = list(dict.fromkeys(row["reference"] for row in rows if row["benchmark"] == name))
        if any(map(are_tests, references)):
            found[name] = "code"
            for reference in references:
                try:
                    parse_tests(reference)
                except SteerError as error:
                    raise SteerError(
                        f"FILE: {path}, {name}: some references are tests, one is none ({error})"
                    ) from None
        else:
            refuse_objects(references, f"FILE: {path}: a reference", "name the column of the answer with --reference")
            found[name] = "countdown" if all(map(is_prompt, references)) else "maths"
    return found


def _name(records: list[Record], told: str | None, usual: Sequence[str], option: str, where: str) -> str:
    """The column to read: the one that is told, or the first usual one that a record has. Raises SteerError."""
    for name in [told] if told else usual:
        if any(value_at(record, name) is not None for record in records):
            return name
    reason = f"no column {told!r}" if told else f"none of the usual columns ({', '.join(usual[:4])}, ...)"
    raise SteerError(f"{where} has {reason}; it has {columns(records)}: name one with {option} COLUMN")


def _reference_name(records: list[Record], told: str | None, where: str) -> str:
    try:
        return _name(records, told, REFERENCE, "--reference", where)
    except SteerError as error:
        if told is None and all(is_prompt(str(record.get("prompt"))) for record in records):
            return "prompt"  # Countdown's is its reference
        raise SteerError(f"{error}, or the benchmark they are of with --benchmark NAME") from None


def _truth(record: Record, name: str) -> str:
    """The reference under a name; of columns that may hold a worked solution, its answer."""
    value = value_at(record, name)
    if name == "doc.choices" and isinstance(value, list):  # lighteval's, of which some are right
        gold = value_at(record, "doc.gold_index")
        right = gold if isinstance(gold, list) else [gold]
        value = [one for number, one in enumerate(value) if number in right]
    if isinstance(value, list) and value and all(isinstance(one, dict) and "tags" in one for one in value):  # HELM's
        value = [value_at(one, "output.text") for one in value if "correct" in (one["tags"] or [])]
    return value.strip() if isinstance(value, str) and name in PLAIN else answer_text(value)


def _texts(value: Any, where: str) -> list[str]:
    """The responses that a value holds: a text, texts, messages or choices of a chat, each in any depth of lists."""
    if value is None or (isinstance(value, dict) and value.get("error")):  # a request that failed
        return [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        said = [part for part in value if isinstance(part, dict) and part.get("role") == "assistant"]
        if all(isinstance(part, dict) and ("role" in part or part.get("type") == "reasoning") for part in value):
            return _texts(said[-1].get("content"), where) if said else [""]
        if all(isinstance(part, dict) and part.get("type") in TEXTS for part in value):
            return ["".join(str(part.get("text") or "") for part in value)]
        return [text for part in value for text in _texts(part, where)]
    if isinstance(value, dict):
        for name in WITHIN:
            if name in value:
                return _texts(value[name], where)
    raise SteerError(f"{where}: the response {str(value)[:60]!r} is no text; name its column with --response COLUMN")


def _kept(record: Record) -> Record:
    """What this package keeps of a response and others may not, or under the same name of another type: else None."""
    reason, tokens, sample = (record.get(name) for name in ("finish_reason", "tokens", "sample"))
    return {
        "finish_reason": reason if isinstance(reason, str) else None,
        "tokens": len(tokens) if isinstance(tokens, list) else tokens if isinstance(tokens, int | float) else None,
        "sample": sample if isinstance(sample, int) else None,
    }


def _prompt(record: Record) -> str:
    """The prompt as text: the last that the user says of chat messages; empty where there is none."""
    value = next((found for name in PROMPT if (found := value_at(record, name))), "")
    messages = value if isinstance(value, list) else []
    if messages and all(isinstance(part, dict) and isinstance(part.get("content"), str) for part in messages):
        return question_of([{"role": part.get("role", ""), "content": part["content"]} for part in messages])[1]
    return value if isinstance(value, str) else ""


def _problem(record: Record, told: str | None, number: int) -> str:
    """What tells a record's problem from others: its id, its question, or its place in the file."""
    for name in [told] if told else PROBLEM:
        value = value_at(record, name)
        if isinstance(value, str | int) and str(value).strip():
            return str(value)
    if told:
        raise SteerError(
            f"FILE: record {number + 1} has no {told!r}; it has {columns([record])}: name another --problem"
        )
    return _prompt(record) or f"record {number + 1}"


def _set(record: Record, path: Path) -> str:
    return next((record[name] for name in SET if isinstance(record.get(name), str) and record[name]), path.stem)


def _numbered(rows: list[Record]) -> list[Record]:
    """The rows with their place among the responses to their problem, where they do not all bring one."""
    if all(row["sample"] is not None for row in rows):
        return rows
    seen: Counter[tuple[str, str]] = Counter()
    for row in rows:
        key = row["benchmark"], row["problem"]
        row["sample"] = seen[key]
        seen[key] += 1
    return rows

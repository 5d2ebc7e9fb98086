"""A problem set of one's own: a file of questions and answers, or of programming problems and their tests.

A row is in verl's format (`prompt` as chat messages, `reward_model`), in LiveCodeBench's, or has a question and an
answer under one of the usual names. Answers that are tests in a format of `rewards/code_tests.py` are run, others are
judged as mathematics.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer_core.common.errors import SteerError, one_line
from steer_core.common.records import SUFFIXES, Record, columns, read_records, value_at
from steer_core.problems.problem import Messages, Problem, Row
from steer_core.problems.prompts import question_of
from steer_core.problems.rows import last_box, livecodebench_row, truth_of, verl_row
from steer_core.problems.sets import ProblemSet, content_hash, distinct, names, problem_id, row_identity, runnable
from steer_core.rewards.code_tests import are_tests, parse_tests

QUESTIONS = ("question", "problem", "prompt")
"""Columns of the bare question, or of chat messages; the first that is there counts."""
ANSWERS = ("answer", "ground_truth", "final_answer", "expected_answer", "tests", "target", "solution")
"""Columns of the right answer, or of the tests; the first that is there counts."""
IDS = ("problem_id", "question_id", "doc_id", "task_id", "unique_id", "custom_id", "instance_id", "id", "idx", "index")
"""Columns of a name that a file gives its problems, as others' files of responses repeat it."""


@dataclass(frozen=True)
class Columns:
    """Which columns hold the question and the answer; None: a usual one. needed: whether a row needs an answer."""

    question: str | None = None
    answer: str | None = None
    needed: bool = True


USUAL = Columns()


def is_own(name: str) -> bool:
    """Whether a word names a file, and not a set of the manifest."""
    return name.lower().endswith(SUFFIXES) or (Path(name).is_file() and name not in names())


def load_own(path: Path, field: str = "--benchmarks") -> ProblemSet:
    """The problems of a file, every one once, in its order; one sample each. The set is called as the file is.

    Problems without an answer, or with another one in another row, or of code with tests that cannot be run, are left
    out with a warning. Raises SteerError naming the file, the row or the columns that do not fit.
    """
    rows = own_rows(path, field)
    code = any(are_tests(truth) for _, truth in rows)
    found = distinct(rows, str(path), row_identity, field)
    if not code:
        truths = [truth for _, truth in rows]
        refuse_objects(truths, f"{field}: {path}: an answer", "mend them, or give the answer as text")
    else:
        found = runnable(found, str(path), field=field)
    problems = [
        Problem(problem_id(path.name, text), "", truth, question_of(messages)[1], messages)
        for text, (messages, truth) in found.items()
    ]
    return ProblemSet(
        path.name, "code" if code else "maths", 1, problems, str(path), content_hash(rows), "own", len(problems)
    )


def refuse_objects(truths: Sequence[str], where: str, remedy: str) -> None:
    """Raise SteerError where a ground truth that is to be judged as mathematics is a JSON object, or a list of them."""
    for text in truths:
        if text.startswith(("{", "[{")):
            with contextlib.suppress(ValueError, RecursionError):
                json.loads(text)
                try:
                    parse_tests(text)
                except SteerError as error:
                    raise SteerError(f"{where} is an object, and no tests that run ({error}); {remedy}") from None


def own_names(path: Path, field: str) -> dict[str, str]:
    """Every name that a file gives its problems, with the problem's identity; a name given to two tells none."""
    found: dict[str, str] = {}
    for record, (messages, _) in zip(read_records(path, field), own_rows(path, field), strict=True):
        same = row_identity(messages)
        for name in {str(record[column]) for column in IDS if isinstance(record.get(column), str | int)}:
            found[name] = same if found.get(name, same) == same else ""
    return found


def own_rows(path: Path, field: str, named: Columns = USUAL) -> list[Row]:
    """(messages, ground truth) of every row of a file. Raises as `load_own` does."""
    return rows_of_records(read_records(path, field), path, field, named)


def rows_of_records(records: Sequence[Record], path: Path, field: str, named: Columns = USUAL) -> list[Row]:
    """(messages, ground truth) of every record of a file, by the columns that are named or the usual ones.

    Raises SteerError naming the row or the columns that do not fit.
    """
    return [_row(record, f"{field}: {path}, row {number}", named) for number, record in enumerate(records, 1)]


def answer_text(value: Any) -> str:
    """The ground truth that a value says: an answer as text, tests as JSON text; empty where there is none.

    Of a worked solution it is what GSM8K marks by ####, or else the last box.
    """
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value)):
        return json.dumps(value)
    text = truth_of(value, "text")
    if are_tests(text):
        return text
    return truth_of(text, "after ####") if "####" in text else last_box(text) or text


def _row(record: Record, where: str, named: Columns = USUAL) -> Row:
    if named.question or named.answer or not named.needed:
        return _named_row(record, where, named)
    if isinstance(record.get("prompt"), list) and "reward_model" in record:
        told = record["reward_model"]
        truth = told.get("ground_truth") if isinstance(told, dict) else None
        return verl_row(
            where, record["prompt"], told if isinstance(truth, str) else {"ground_truth": answer_text(truth)}
        )
    if {"question_content", "public_test_cases", "private_test_cases"} <= record.keys():
        try:
            return livecodebench_row(record)
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error, pickle.UnpicklingError, EOFError) as error:
            raise SteerError(f"{where}: its tests are not read ({one_line(error)}); give the released file") from error
    question = next((record[name] for name in QUESTIONS if record.get(name)), None)
    answer = next((name for name in ANSWERS if name in record), None)
    if question is None and answer and any(name in record for name in QUESTIONS):
        raise SteerError(f"{where}: its question is empty; write one, or leave the row out")
    if question is None or answer is None:
        raise SteerError(
            f"{where} has the columns {columns([record])}; add `question` and `answer`, or `prompt` and "
            "`reward_model` as verl's data files have them"
        )
    return _messages(question, where), answer_text(record[answer])


def _named_row(record: Record, where: str, named: Columns) -> Row:
    """The row of a record whose columns are named, at least one of them, or that needs no answer."""
    if "reward_model" in record and not named.answer:
        told = record["reward_model"]
        record = record | {"reward_model": told.get("ground_truth") if isinstance(told, dict) else told}
    found = []
    for column, usual in ((named.question, QUESTIONS), (named.answer, (*ANSWERS, "reward_model"))):
        if column is not None and value_at(record, column) is None and column not in record:
            raise SteerError(f"{where} has the columns {columns([record])}, not {column}; name one that is there")
        there = (record.get(name) for name in usual)
        values = [value_at(record, column)] if column else [value for value in there if value not in (None, "", [])]
        found.append(values[0] if values else None)
    question, answer = found
    if not question or (isinstance(question, str) and not question.strip()):
        raise SteerError(
            f"{where}: has no question ({columns([record])}); write one, or name its column with task.question"
        )
    if answer is None and named.needed:
        raise SteerError(f"{where}: has no answer ({columns([record])}); name its column with task.answer")
    return _messages(question, where), answer_text(answer)


def _messages(question: Any, where: str) -> Messages:
    if isinstance(question, list):
        return verl_row(where, question, {"ground_truth": ""})[0]
    return [{"role": "user", "content": str(question).strip()}]

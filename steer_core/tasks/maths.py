r"""Mathematics problems with a final answer, read from a parquet file in verl's format, verified by math-verify.

A row holds `prompt`, a list of chat messages, and `reward_model`, whose `ground_truth` is the right answer. The
policy gets the messages through its tokenizer's chat template. Files ask for the answer in different words
(`\boxed{...}`, `Answer: ...`, or nothing at all), so the verifier takes any of them; see `answers_agree`.
"""

from __future__ import annotations

import logging
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from steer_core.config import MathsConfig
from steer_core.errors import SteerError
from steer_core.tasks.base import Problem, Split, split_of

Messages = list[dict[str, str]]
_ANSWER_LINE = re.compile(r"answer\**\s*:[*\s]*([^\n]*)", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


class Maths:
    """The problems of one file. Raises SteerError where the file is missing or not in this format."""

    name = "maths"

    def __init__(self, config: MathsConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.rows = distinct(read_rows(config.file), config.file)

    def problems(self, split: Split, count: int) -> list[Problem]:
        """See `Task.problems`: in the file's order. Raises SteerError where the split holds fewer."""
        found = [text for text in self.rows if split_of(text) == split]
        if len(found) < count:
            raise SteerError(
                f"task.file: {self.config.file} holds {len(found)} distinct {split} problems where {count} are asked "
                f"for; lower {'task.train_problems' if split == 'train' else 'evaluation.problems'} to {len(found)} "
                "or name a larger file"
            )
        return [self._problem(text) for text in found[:count]]

    def _problem(self, text: str) -> Problem:
        messages, answer = self.rows[text]
        return Problem(id=text, prompt=render(messages, self.tokenizer), answer=answer)

    def verify(self, problem: Problem, response: str) -> bool:
        """Whether the response ends with the right answer; see `answers_agree`."""
        return answers_agree(problem.answer, response)


def read_rows(file: str) -> list[tuple[Messages, str]]:
    """(messages, ground truth) of every row of a parquet file. Raises SteerError naming what does not fit."""
    import pyarrow
    from pyarrow import parquet

    columns = ["prompt", "reward_model"]
    if not Path(file).is_file():
        raise SteerError(f"task.file: {file} is no file; give the path of a parquet file")
    try:
        table = parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise SteerError(f"task.file: {file} is not read as parquet ({reason}); give a parquet file") from error
    absent = [name for name in columns if name not in table.column_names]
    if absent:
        raise SteerError(
            f"task.file: {file} has the columns {', '.join(table.column_names)}; "
            f"add {' and '.join(absent)}, as verl's data files have them"
        )
    return [_row(file, i, **row) for i, row in enumerate(table.select(columns).to_pylist())]


def _row(file: str, index: int, prompt: Any, reward_model: Any) -> tuple[Messages, str]:
    """One row, checked."""
    messages = prompt if isinstance(prompt, list) else []
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            messages = []
    if not messages:
        raise SteerError(
            f"task.file: {file}, row {index}: prompt {str(prompt)[:80]!r} is no list of chat messages; "
            "give each a `role` and a `content`"
        )
    truth = reward_model.get("ground_truth") if isinstance(reward_model, dict) else None
    if not isinstance(truth, str):
        raise SteerError(
            f"task.file: {file}, row {index}: reward_model {str(reward_model)[:80]!r} has no text as its "
            "ground_truth; add the right answer"
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages], truth.strip()


def distinct(rows: list[tuple[Messages, str]], file: str) -> dict[str, tuple[Messages, str]]:
    """The rows by the problem's identity, which is its text up to white space; duplicates are dropped.

    A problem without an answer, or with another answer in another row, cannot be verified and is
    left out; a warning says how many there are. Raises SteerError where no problem is left.
    """
    found: dict[str, tuple[Messages, str]] = {}
    unusable = set()
    for messages, truth in rows:
        text = " ".join(" ".join(message["content"] for message in messages).split())
        _, first = found.setdefault(text, (messages, truth))
        if not truth or truth != first:
            unusable.add(text)
    usable = {text: row for text, row in found.items() if text not in unusable}
    if not usable:
        raise SteerError(f"task.file: {file} holds no problem with one answer among {len(rows)} rows; name another")
    if unusable:
        warnings.warn(
            f"task.file: {file}: left out {len(unusable)} of {len(found)} problems, which have no answer or a "
            "different one in another row",
            stacklevel=2,
        )
    return usable


def render(messages: Messages, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt that the policy gets: its chat template up to its turn, or the bare contents without a template.

    A template may add a system prompt of its own to messages that bring none.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template raises what it likes, for example at a role it does not know
        roles = ", ".join(message["role"] for message in messages)
        raise SteerError(
            f"model.path: its chat template refuses messages with the roles {roles} "
            f"({' '.join(str(error).split())[:200]}); use a model whose template takes them"
        ) from error


def answers_agree(truth: str, response: str) -> bool:
    r"""Whether the final answer of a response equals the ground truth in value, by math-verify. Never raises.

    The final answer is the last `\boxed{...}`; without one, what follows "Answer:" or "answer is";
    without that, the last mathematical expression. `1/2`, `0.5` and `\frac{1}{2}` are the same.
    Its time limits use alarm signals, which work in the main thread only, and are switched off: an
    answer such as a tower of powers can keep it busy without end, so whoever grades unattended
    should run it in a process that can be killed.
    """
    import math_verify

    _quiet()
    try:
        right = _parse_truth(truth)
        return any(
            bool(math_verify.verify(right, _parse(reading), timeout_seconds=None)) for reading in readings(response)
        )
    except Exception:  # sympy on text that a policy made up
        return False


def readings(response: str) -> list[str]:
    r"""The texts to look for the final answer in: the response or, where it has one, its last "Answer:" line.

    math-verify sees the 4 in `Answer: (2,4)`, so that line is read as one formula; with words in it,
    in both ways. A response with a box is read as it is.
    """
    lines = _ANSWER_LINE.findall(response)
    line = lines[-1].rstrip(" \t.*") if lines and "\\boxed" not in response else ""
    if not line or "$" in line:
        return [response]
    return [response, _boxed(line)] if _WORD.search(line) else [_boxed(line)]


def _boxed(formula: str) -> str:
    percent = re.sub(r"(?<!\\)%", r"\\%", formula)  # a bare one would start a comment
    return rf"\boxed{{{percent}}}"


@lru_cache(maxsize=65536)
def _parse_truth(truth: str) -> list[Any]:
    return _parse(_boxed(truth))


def _parse(text: str) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    ways = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(text, ways, parsing_timeout=None)


@lru_cache(maxsize=1)
def _quiet() -> None:
    """math-verify warns once that its time limits are off."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)

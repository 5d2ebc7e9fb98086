"""A problem, wherever it comes from: the one class that tasks, problem sets, evaluation and training hand on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, str]]
"""Chat messages, each with a `role` and a `content`."""
Row = tuple[Messages, str]
"""(chat messages, ground truth) of one row of a file or of the hub."""


@dataclass(frozen=True)
class Problem:
    """One problem. Two problems with the same `id` are the same problem, whatever row they came from.

    prompt: what the policy reads; empty until the problem is written for a model (`prompts.prompted`). reference: what
    the grader compares with: the right answer, the tests of a code problem as JSON, the prompt of a Countdown problem.
    question: the bare text, without any answer instruction. messages: as the file has them. Countdown has neither.
    row: all columns of the file's row, where an own reward reads them.
    """

    id: str
    prompt: str
    reference: str
    question: str = ""
    messages: Messages = field(default_factory=list, compare=False, repr=False)
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def whole(self) -> str:
        """The prompt and the row as JSON: what an own reward (`rewards/own.py`) is asked with."""
        return json.dumps([self.prompt, self.row], default=str)

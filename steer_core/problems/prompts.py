r"""How a problem becomes a prompt: the answer instructions that released files carry, and the named styles.

Nothing is added to a prompt in silence: a style is asked for by name, and `render` returns the whole text that the
policy reads, a system prompt of the chat template included, so that it can be stored with every response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer_core.common.errors import SteerError, nearest, one_line
from steer_core.common.files import read_text
from steer_core.problems.problem import Messages, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HEAD = (
    "Solve the following math problem step by step. The last line of your response should be of the form {} "
    "where {} is the answer to the problem.\n\n"
)
_ANSWER_TAIL = '\n\nRemember to put your answer on its own line after "Answer:".'
WRAPPERS = {
    r"\boxed{Answer}": (
        _HEAD.format(r"\boxed{Answer}", "Answer"),
        "\n\nRemember to put your answer in \\boxed{...} format on its own line.",
    ),
    "Answer: $Answer": (_HEAD.format("Answer: $Answer (without quotes)", "$Answer"), _ANSWER_TAIL),
    "Answer: (lost $Answer)": (_HEAD.format("Answer:  (without quotes)", ""), _ANSWER_TAIL),
}
"""What the released files write before and after a question, by the form of answer that it asks for."""
_CHINESE_TAIL = (
    '\n让我们一步一步地思考。请以{}Answer: \\boxed{{<final_answer>}}{}的格式输出最终答案。'
    "如果是选择题，请按顺序输出正确的选项，不带任何标点或空格。对于其他类型的问题，请只输出最终答案的数值。"  # noqa: RUF001
)  # fmt: skip
CHINESE = r"Answer: \boxed{}, in Chinese"
CHINESE_TAILS = (_CHINESE_TAIL.format('"', '"'), _CHINESE_TAIL.format("“", "”"))
"""What the training set writes after its Chinese questions; after some of them twice."""
NO_FORM = "none"


def unwrap(text: str) -> tuple[str, str]:
    """(form of answer asked for, bare question) of a user message: a known instruction is taken off exactly.

    A text that carries none of the known instructions is returned as it is, with the form `none`.
    """
    for form, (head, tail) in WRAPPERS.items():
        if text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail):
            return form, text[len(head) : len(text) - len(tail)]
    question = text
    while question.endswith(CHINESE_TAILS):
        question = question[: -len(CHINESE_TAILS[0])]
    return (NO_FORM if question == text else CHINESE), question


def question_of(messages: Messages) -> tuple[str, str]:
    """(form of answer asked for, bare question) of a row's messages: the last that the user says, unwrapped."""
    said = [message["content"] for message in messages if message["role"] == "user"]
    return unwrap(said[-1] if said else messages[-1]["content"])


@dataclass(frozen=True)
class Style:
    """Words around a question. meaning: for people; head, tail: before and after it; system: a message of its own."""

    meaning: str
    head: str = ""
    tail: str = ""
    system: str = ""

    def messages(self, question: str) -> Messages:
        """The question as chat messages in this style."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.head + question + self.tail}]


SHIPPED = "shipped"
STYLES = {
    SHIPPED: Style("the messages as the file ships them"),
    "bare": Style("the question alone"),
    "boxed": Style(r"the training set's words: the answer in \boxed{}", *WRAPPERS[r"\boxed{Answer}"]),
    "answer-line": Style(
        "the words of the AIME and AMC files: a last line `Answer: ...`", *WRAPPERS["Answer: $Answer"]
    ),
    "qwen-boxed": Style(
        r"Qwen2.5-Math's system prompt, which asks for \boxed{}, then the question",
        system=r"Please reason step by step, and put your final answer within \boxed{}.",
    ),
    "code": Style(
        "the question, then a request for one Python block",
        tail="\n\nSolve this in Python. Where no function is given, read standard input and write standard output. "
        "End with the whole program in one ```python block.",
    ),
}
"""Every prompt style, by name."""


QUESTION = "{question}"
"""Where the question stands in a template of one's own."""


def spelled_out(style: str) -> str:
    """A style's name, or the template that the word is or that is in the file it names. Raises SteerError."""
    if style in STYLES or QUESTION in style:
        return style
    path = Path(style)
    if not path.is_file():
        known = nearest(style, STYLES)
        raise SteerError(f"benchmark.style: {style!r} is unknown; {known}; or name a text file with {QUESTION} in it")
    text = read_text(path, "benchmark.style:", "give a text file")
    if QUESTION not in text:
        raise SteerError(f"benchmark.style: {path} has no {QUESTION} in it; write it where the question is to stand")
    return text


_TAKEN = {
    "conversation", "messages", "tokenize", "add_generation_prompt", "tools", "documents", "chat_template", "padding",
    "truncation", "max_length", "return_tensors", "return_dict", "continue_final_message", "tokenizer_kwargs",
    "return_assistant_tokens_mask",
}  # fmt: skip


def styled(problem: Problem, style: str) -> Messages:
    """The chat messages of a problem in a style or a template. Raises SteerError as `spelled_out` does."""
    if style == SHIPPED:
        return [dict(message) for message in problem.messages]
    text = spelled_out(style)
    if text in STYLES:
        return STYLES[text].messages(problem.question)
    return [{"role": "user", "content": text.replace(QUESTION, problem.question)}]


def prompted(problem: Problem, style: str, tokenizer: PreTrainedTokenizerBase) -> Problem:
    """The problem with the prompt that a tokenizer's model gets in a named style. Raises as `styled` and `render`."""
    return replace(problem, prompt=render(styled(problem, style), tokenizer))


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages with a system prompt first, in place of one that they have; as they are where it is None."""
    if system is None:
        return messages
    return [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]


def render(messages: Messages, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None) -> str:
    """The prompt that the policy gets: its chat template up to its turn, or the bare contents without a template.

    A template may add a system prompt of its own to messages that bring none; the text shows it. arguments: what the
    template is given by name (`task.template`). Raises SteerError where the template refuses the messages, and for
    arguments without a template or of names that are taken.
    """
    arguments = arguments or {}
    if taken := sorted(arguments.keys() & _TAKEN):
        raise SteerError(f"task.template.{taken[0]}: is no argument of a template's own; take it out")
    if arguments and not tokenizer.chat_template:
        raise SteerError(
            f"task.template: the model has no chat template that takes {next(iter(arguments))}; take it out, or use a "
            "model that has one"
        )
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in messages)
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **arguments)
    except Exception as error:  # a template raises what it likes, for example at a role it does not know
        roles = ", ".join(message["role"] for message in messages)
        raise SteerError(
            f"model.path: its chat template refuses messages with the roles {roles} "
            f"({one_line(error)}); use a model whose template takes them"
        ) from error

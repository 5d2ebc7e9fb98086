r"""Ten kinds of wrong answer made from a ground truth, each a trap for some way of reading answers.

Every maker takes a ground truth and returns a whole response, or None where the kind cannot be made or might be right
after all: the sign of 0, the inverse of 1, a number's neighbour in a text without digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from steer_core.rewards.answers import final_answer
from steer_core.rewards.notation import brackets, has_words, plain
from steer_core.rewards.quantities import measure, number

_WIDE = {ord("0") + i: 0xFF10 + i for i in range(10)}
_LAST_INTEGER = re.compile(r"[0-9]+(?=[^0-9]*\Z)")
_BEFORE = r"(?:[$\s]|\\[\[(]|\\quad)*(?:[A-Za-z][\w(){}, ]*=\s*)?"
_SIGN_STANDS = re.compile(rf"({_BEFORE})([-+]?)(.*)", re.DOTALL)
_IN_BRACKETS = re.compile(rf"({_BEFORE}(?:\\left)?(?:[(\[]|\\?\{{)\s*)([-+]?)(.*)", re.DOTALL)
_FRACTION = re.compile(r"(\\[dt]?frac)\s*\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9]+)(\s*/\s*)([0-9]+)")


def boxed(answer: str) -> str:
    """A response that ends in a boxed answer."""
    return rf"Therefore the value is $\boxed{{{answer}}}$."


def neighbour(truth: str) -> str | None:
    """The truth with its last whole number raised by one; None without a number."""
    if not _LAST_INTEGER.search(truth):
        return None
    return _LAST_INTEGER.sub(lambda found: str(int(found[0]) + 1).zfill(len(found[0])), truth)


def off_by_one(truth: str) -> str | None:
    """The neighbour, boxed."""
    near = neighbour(truth)
    return near and boxed(near)


def sign(truth: str) -> str | None:
    """The first sign turned."""
    inside = _IN_BRACKETS.fullmatch(truth) if brackets(plain(truth)) else None
    before, there, after = (inside or _SIGN_STANDS.fullmatch(truth)).groups()
    if has_words(plain(truth)) or _is_zero(truth) or re.match(r"[(\s]*0(?![.0-9])|\\[pm]{2}|[-+]|$", after):
        return None
    return boxed(before + {"-": "", "+": "-", "": "-"}[there] + after)


def swapped_fraction(truth: str) -> str | None:
    """Numerator and denominator of the first fraction swapped; 1/x for a number x that is none."""
    if found := _FRACTION.search(truth):
        command, upper, lower, left, slash, right = found.groups()
        if (upper or left).strip() == (lower or right).strip():
            return None
        turned = rf"{command}{{{lower}}}{{{upper}}}" if command else f"{right}{slash}{left}"
        return boxed(truth[: found.start()] + turned + truth[found.end() :])
    value = number(plain(truth))
    return boxed(rf"\frac{{1}}{{{truth}}}") if value and abs(value.value) not in (0, 1) else None


def other_unit(truth: str) -> str | None:
    """Another unit in place of the truth's own. A bare number takes any that its question names: it gets a scale.

    Nothing where the last number is 0, of which a thousand are 0.
    """
    value, unit = measure(plain(truth))
    if has_words(value) or re.search(r"(?<![\d.])0(?:\.0*)?\W*$", value):
        return None
    return boxed(value + (r" \text{ thousand}" if unit is None else r" \text{ light years}"))


def empty(truth: str) -> str:
    """An empty box behind the truth in words."""
    return rf"The value should be {truth}. Therefore it is $\boxed{{}}$."


def truncated_box(truth: str) -> str:
    """The box breaks off before its closing brace."""
    return rf"Therefore the value is $\boxed{{{truth}"


def nested_braces(truth: str) -> str | None:
    """The truth in braces of its own, and then one more: a reader that stops at the first brace sees the truth."""
    return None if "infty" in truth else boxed(f"{{{truth}}}+1")


def unicode_digits(truth: str) -> str | None:
    """Full-width digits."""
    wide = truth.translate(_WIDE)
    return boxed(wide) if wide != truth else None


def boxed_question(truth: str) -> str:
    """An equation or a question that holds the truth."""
    return boxed(rf"\text{{Is it }}{truth}\text{{?}}" if "=" in truth or has_words(plain(truth)) else f"x+1={truth}")


def several_boxes(truth: str) -> str:
    """The truth boxed, and then another answer boxed."""
    return rf"Either $\boxed{{{truth}}}$, or, as I find now, $\boxed{{{neighbour(truth) or 'none of these'}}}$."


def wrong_answer(kind: str, truth: str) -> str | None:
    """A wrong answer of one of the KINDS, made from the `core` of a ground truth."""
    return KINDS[kind](core(truth))


def core(truth: str) -> str:
    """What is in the box of a ground truth that holds one, else all of it."""
    return (final_answer(truth) if "\\boxed" in truth else None) or truth


def _is_zero(text: str) -> bool:
    value = number(plain(text))
    return value is not None and value.value == 0


KINDS: dict[str, Callable[[str], str | None]] = {
    "off by one": off_by_one,
    "sign": sign,
    "swapped fraction": swapped_fraction,
    "other unit": other_unit,
    "empty": empty,
    "truncated box": truncated_box,
    "nested braces": nested_braces,
    "unicode digits": unicode_digits,
    "boxed question": boxed_question,
    "several boxes": several_boxes,
}

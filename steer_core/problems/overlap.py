"""Which problems two sets share: the same identity, or nearly the same text.

Near-duplicates are counted exactly, by a sparse product of problems x sequences, not estimated from sketches.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from scipy import sparse

LENGTH = 5
"""Tokens of a sequence."""
COMMON = 25
"""A sequence in more problems of the two sets than this is a set phrase ("the answer is in the form m/n") and is left
out: two different problems can share a dozen of them."""
LEAST = 10
"""Sequences that the shorter of two problems must have; with fewer, half a sentence in common would decide ("Determine
the number of ways to arrange the letters of the word")."""
SHARED = 0.6
"""Share of the shorter problem's sequences that must stand in the other. On the released files little hangs on it: at
0.5, 0.6 and 0.7 DAPO-Math-17k has 513, 488 and 451 problems of Omni-MATH nearly. Lower, problems that open alike begin
to match; higher, reworded ones are lost."""
RULE = (
    f"Two problems are near-duplicates where at least {SHARED:.0%} of the {LENGTH}-token sequences of the shorter one "
    f"(which has at least {LEAST}) stand in the other, and every number of one of them, as often as it stands there, "
    "stands in the other. Tokens are words, numbers, Chinese characters and + - * / = < > ^ of the text in lower case "
    f"and Unicode form NFKC, without figure code and LaTeX layout. Sequences in more than {COMMON} problems of the two "
    "sets are left out. Problems with the same identity (equal up to white space) are exact duplicates instead. "
    "Translations and short problems are not found; two questions about one situation count."
)
READ = (
    "Read by hand in the released files: of 50 pairs between sets, drawn at random, 49 were the same problem, often "
    "reworded to have an integer for an answer. Of the problems that DAPO-Math-17k has nearly, all 21 of AMC 2023 were "
    "the same, and 15 of the 21 of MATH500; the other 6 ask something else of the same situation or of one like it."
)
"""How far the rule is to be trusted."""

_TOKEN = re.compile(r"[a-z]+|\d+|[^\W\da-z_]|[+\-*/=<>^]")
_LAYOUT = re.compile(
    r"\[asy\].*?(?:\[/asy\]|\Z)"
    r"|\\(?:left|right|displaystyle|text|textbf|textit|mathrm|mathbf|operatorname|quad|qquad|limits)(?![a-z])"
    r"|\\(?:begin|end)\{[a-z*]+\}",
    re.DOTALL,
)


@dataclass(frozen=True)
class Pair:
    """What two sets share. exact: (i, j) of problems with one identity. near: (i, j, share) of near-duplicates.

    i counts in the first set, j in the second. Of a set with itself: i < j, and nothing is exact.
    """

    first: str
    second: str
    exact: list[tuple[int, int]]
    near: list[tuple[int, int, float]]

    def found(self, of: str) -> tuple[set[int], set[int]]:
        """(problems of one of the two sets that the other has exactly, those that it has only nearly)."""
        sides = [side for side, name in enumerate((self.first, self.second)) if name == of]
        exact = {pair[side] for pair in self.exact for side in sides}
        near = {(i, j)[side] for i, j, _ in self.near for side in sides}
        return exact, near - exact


def tokens(text: str) -> list[str]:
    """The tokens of a problem; see RULE."""
    text = _LAYOUT.sub(" ", unicodedata.normalize("NFKC", text).lower())
    return _TOKEN.findall(text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))


def overlaps(sets: Mapping[str, Sequence[str]]) -> Iterator[Pair]:
    """Every pair of sets of distinct problems, given by their identities, and every set with itself; see RULE."""
    words = {name: [tokens(text) for text in texts] for name, texts in sets.items()}
    numbers = {name: [Counter(filter(str.isdigit, said)) for said in words[name]] for name in sets}
    matrices = _matrices(words)
    for first, second in combinations_with_replacement(sets, 2):
        where = {text: j for j, text in enumerate(sets[second])} if first != second else {}
        exact = {i: where[text] for i, text in enumerate(sets[first]) if text in where}
        near = [
            (i, j, share)
            for i, j, share in _candidates(matrices[first], matrices[second], first == second)
            if exact.get(i) != j and _numbers_agree(numbers[first][i], numbers[second][j])
        ]
        yield Pair(first, second, list(exact.items()), near)


def _matrices(words: dict[str, list[list[str]]]) -> dict[str, sparse.csr_array]:
    """Of each set: (problems, sequences), 1 where the sequence stands in the problem; one numbering for all sets."""
    number: dict[tuple[str, ...], int] = {}
    matrices = {}
    for name, problems in words.items():
        rows = []
        for said in problems:
            ends = range(LENGTH, len(said) + 1)
            rows.append(sorted({number.setdefault(tuple(said[end - LENGTH : end]), len(number)) for end in ends}))
        starts = np.cumsum([0, *map(len, rows)])
        columns = np.fromiter((column for row in rows for column in row), np.int64, starts[-1])
        matrices[name] = (np.ones(len(columns), np.int32), columns, starts)
    shape = {name: (len(problems), len(number)) for name, problems in words.items()}
    return {name: sparse.csr_array(parts, shape=shape[name]) for name, parts in matrices.items()}


def _candidates(first: sparse.csr_array, second: sparse.csr_array, same: bool) -> Iterator[tuple[int, int, float]]:
    """(i, j, share of the shorter problem's sequences that the other has) where that share is large enough."""
    frequency = first.sum(axis=0) + (0 if same else second.sum(axis=0))
    rare = np.flatnonzero(frequency <= COMMON)
    first, second = first[:, rare], second[:, rare]
    common = (first @ second.T).tocoo()
    i, j = common.coords
    shorter = np.minimum(first.sum(axis=1)[i], second.sum(axis=1)[j])
    share = common.data / shorter
    keep = (share >= SHARED) & (shorter >= LEAST) & ((i < j) if same else True)
    yield from zip(i[keep].tolist(), j[keep].tolist(), share[keep].tolist(), strict=True)


def _numbers_agree(first: Counter[str], second: Counter[str]) -> bool:
    """Whether all numbers of one problem stand in the other: a problem with other numbers is another problem."""
    return first <= second or second <= first

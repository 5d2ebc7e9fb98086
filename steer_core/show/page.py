"""The page of a rollout's responses: what it shows of each token, and the numbers at its top."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from steer_core.runs.responses import Response
from steer_core.show.colours import DARK, LIGHT, Scale, level_class, stylesheet
from steer_core.show.watched import Watched

LISTED = 10
"""Tokens in the list of the most damped."""
AROUND = 16
"""Characters shown on either side of each."""
UNDAMPED = 0.01
"""A token counts as not damped where lambda is within this of 1."""
SIGNIFICANT = 6
"""Digits of every number in the page's data."""
_ROUNDING = 1e-7  # of float32, in which 0.99 is not 0.99
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Measure:
    """A per-token number to colour by. neutral: the value without colour; power: below 1 spreads small values."""

    key: str
    name: str
    symbol: str
    unit: str
    meaning: str
    neutral: float
    power: float = 1.0
    extent: float | None = None

    def values(self, row: Response) -> list[float]:
        """The number of each token of a response."""
        return getattr(row, "lambda_" if self.key == "lambda" else self.key)

    def scale(self, rows: list[Response]) -> Scale:
        """The scale of colours over all tokens of some responses."""
        return Scale.of([x for row in rows for x in self.values(row)], self.neutral, self.power, self.extent)


MEASURES = (
    Measure(
        "lambda", "Weight", "λ", "",
        "The intervention's factor on the token's loss: orange is damped, no colour is λ = 1, blue is above 1.", 1, 0.5,
    ),
    Measure(
        "omega", "Entropy change", "ΔH", "nats",
        "What the token's own step was estimated to do to the entropy at its state, at unit step: orange lowers it, "
        "blue raises it.", 0, 0.5,
    ),
    Measure("entropy", "Entropy", "H", "nats", "Of the policy that sampled, at the token's state: no colour is 0.", 0),
    Measure(
        "probability", "Probability", "p", "", "Of the token under the policy that sampled it: no colour is p = 1.",
        1, 1.0, 1.0,
    ),
)  # fmt: skip
"""What tokens can be coloured by, in the order of the buttons and of the keys 1 to 4."""
FORMS = {
    "paper": "in the paper's form: −Ω of its Theorem 1",  # noqa: RUF001
    "released": "in the form of the authors' released code",
    "exact": "in the exact form: every logit of the state moves",
    "covariance": "in the covariance form",
}


@dataclass(frozen=True)
class Heading:
    """What a page is of. form: of the estimate of entropy change. links: (step, href) by `previous` and `next`.

    watched: what the rollout's watched step did to entropy, measured and predicted; None where it was not logged.
    """

    run: str
    step: int
    method: str
    form: str
    links: dict[str, tuple[int, str]]
    watched: Watched | None = None


def render(rows: list[Response], heading: Heading) -> str:
    """The page as text: no script, style, font or link of another place, and all that was sampled escaped."""
    scales = {measure.key: measure.scale(rows) for measure in MEASURES}
    script = (_HERE / "viewer.js").read_text(encoding="utf-8")
    return _TEMPLATES.get_template("viewer.html.j2").render(
        heading=heading,
        form=FORMS.get(heading.form, f"in the form {heading.form}"),
        measures=MEASURES,
        legends={measure.key: legend(scales[measure.key]) for measure in MEASURES},
        summary=summary(rows),
        undamped=UNDAMPED,
        damped=most_damped(rows),
        groups=groups(rows),
        rewards=sorted({row.reward for row in rows}, reverse=True),
        themes={"light": LIGHT, "dark": DARK},
        style=Markup((_HERE / "viewer.css").read_text(encoding="utf-8") + stylesheet()),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(embedded(token_data(rows, scales))),
    )


def summary(rows: list[Response]) -> dict[str, float]:
    """The numbers at the top of the page; NaN where there is nothing to take them of.

    reward: mean over responses. entropy: mean over tokens, nats. undamped: share of tokens with
    lambda within UNDAMPED of 1. cut: share of responses cut off at their length.
    """
    entropies = [x for row in rows for x in row.entropy]
    weights = [x for row in rows for x in row.lambda_]
    return {
        "responses": len(rows),
        "problems": len(groups(rows)),
        "tokens": len(weights),
        "reward": mean([row.reward for row in rows]),
        "entropy": mean(entropies),
        "undamped": mean([float(abs(x - 1) <= UNDAMPED + _ROUNDING) for x in weights]),
        "smallest": min(weights, default=math.nan),
        "cut": mean([float(row.finish_reason == "length") for row in rows]),
    }


def most_damped(rows: list[Response], count: int = LISTED) -> list[dict[str, Any]]:
    """The tokens of smallest lambda, below 1, the larger |Omega| first among equals."""
    found = [
        {"row": r, "token": t, "lambda": weight, "omega": row.omega[t]}
        for r, row in enumerate(rows)
        for t, weight in enumerate(row.lambda_)
        if weight < 1
    ]
    found = sorted(found, key=lambda x: (x["lambda"], -abs(x["omega"])))[:count]
    return [{**x, **_about(rows[x["row"]], x["token"])} for x in found]


def groups(rows: list[Response]) -> list[dict[str, Any]]:
    """The responses by problem, the most damped first: id, prompt, mean reward, and (index, rank, response, numbers).

    Of equally damped ones, as where nothing is damped, the largest |Omega| first: a response of A = 0 has no colour.
    """
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    order = sorted(range(len(rows)), key=lambda i: _damping(rows[i]))
    for rank, i in enumerate(order):
        row = rows[i]
        numbers = {"entropy": mean(row.entropy), "smallest": min(row.lambda_, default=math.nan)}
        found.setdefault((row.problem, row.prompt), []).append({"index": i, "rank": rank, "row": row, **numbers})
    return [
        {"problem": problem, "prompt": prompt, "reward": mean([x["row"].reward for x in own]), "responses": own}
        for (problem, prompt), own in found.items()
    ]


def token_data(rows: list[Response], scales: dict[str, Scale]) -> dict[str, Any]:
    """What the page's script reads: tokens, ids, and by measure every token's number and level of colour."""
    return {
        "measures": [measure.key for measure in MEASURES],
        "responses": [
            {
                "tokens": row.tokens,
                "ids": row.token_ids,
                "logprob": [_rounded(x) for x in row.logprob],
                "values": {m.key: [_rounded(x) for x in m.values(row)] for m in MEASURES},
                "levels": {m.key: [scales[m.key].level(x) for x in m.values(row)] for m in MEASURES},
            }
            for row in rows
        ],
    }


def embedded(data: Any) -> str:
    """JSON that can stand within <script>: no text of it can end the element or open another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def legend(scale: Scale) -> dict[str, Any]:
    """The cells of a legend, lowest value first, and the values at its ends, its middles and the neutral one."""
    levels = list(scale.levels)
    marks = [k for k in (-16, -8, 0, 8, 16) if k in scale.levels]
    return {
        "cells": [level_class(k) if k else "zero" for k in levels],
        "ticks": [(number(scale.value(k)), 100 * (k - levels[0] + 0.5) / len(levels)) for k in marks],
        "neutral": number(scale.neutral),
    }


def number(value: float | None) -> str:
    """A number to three significant digits, with a true minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:.2e}" if size < 1e-3 or size >= 1e5 else f"{value:.{max(0, 2 - math.floor(math.log10(size)))}f}"
    if "e" in text:
        digits, exponent = text.split("e")
        text = f"{digits}e{int(exponent)}"
    return text.replace("-", "−")  # noqa: RUF001


def written(text: str) -> str:
    """A token's text as a name: what would not be seen is spelled out, a space as ␣."""
    return "".join(_spelled(c) for c in text) or "(part of a character)"


def shown(text: str) -> str:
    """Text as it stands on the page, but for controls as their pictures (␍) and what turns its direction, by name."""
    return "".join(
        chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\t\n" else f"U+{ord(c):04X}" if c in _TURNING else c
        for c in text
    )


def mean(values: list[float]) -> float:
    """The mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def _damping(row: Response) -> tuple[float, float]:
    """What responses are ordered by: smallest lambda, then minus the largest |Omega|."""
    weights, sizes = ([abs(x) for x in values if math.isfinite(x)] for values in (row.lambda_, row.omega))
    return min(weights, default=math.inf), -max(sizes, default=0.0)


def _about(row: Response, token: int) -> dict[str, Any]:
    """What the list of damped tokens tells of one beside its weight."""
    before, after = "".join(row.tokens[:token]), "".join(row.tokens[token + 1 :])
    return {
        "text": written(row.tokens[token]),
        "before": shown(" ".join(before[-AROUND:].splitlines())),
        "after": shown(" ".join(after[:AROUND].splitlines())),
        "probability": row.probability[token],
        "entropy": row.entropy[token],
        "problem": row.problem,
        "sample": row.sample,
    }


def _spelled(character: str) -> str:
    if character == " ":
        return "␣"
    if character.isprintable():
        return character
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character, f"U+{ord(character):04X}")


def _rounded(value: float) -> float | None:
    return float(f"{value:.{SIGNIFICANT}g}") if math.isfinite(value) else None


_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_FILTERS: dict[str, Callable] = {"number": number, "shown": shown}
_TEMPLATES.filters |= _FILTERS

"""The colours of tokens: how far a value lies from where nothing would be seen, in equal steps of one ramp a side.

A level runs from -LEVELS to LEVELS; 0 has no colour. Orange is below the neutral value and blue above
it, which no colour blindness confuses, and the ink keeps a contrast of 4.5 on every level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LEVELS = 16


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb. below, above: the ends of the ramps, which begin at the paper."""

    paper: str
    ink: str
    below: str
    above: str

    def colour(self, level: int) -> str:
        """The background of a level."""
        end = self.below if level < 0 else self.above
        share = abs(level) / LEVELS
        mixed = (a + (b - a) * share for a, b in zip(_channels(self.paper), _channels(end), strict=True))
        return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


LIGHT = Theme(paper="#ffffff", ink="#1f2a36", below="#f0862b", above="#4ba3e0")
DARK = Theme(paper="#14181e", ink="#e8ecf1", below="#a84a00", above="#0f66a3")


@dataclass(frozen=True)
class Scale:
    """From a value to a level: (|value - neutral| / extent) ** power of LEVELS, away from `neutral`.

    below, above: whether values lie on that side, so whether the legend shows it. extent: the
    farthest that a value lies from neutral; 0 where all are neutral.
    """

    neutral: float
    extent: float
    power: float
    below: bool
    above: bool

    @classmethod
    def of(cls, values: list[float], neutral: float, power: float = 1.0, extent: float | None = None) -> Scale:
        """The scale of some values, up to the farthest from neutral unless an extent is given; NaN counts for none."""
        away = [value - neutral for value in values if math.isfinite(value)]
        farthest = max(map(abs, away), default=0.0) if extent is None else extent
        return cls(neutral, farthest, power, any(x < 0 for x in away), any(x > 0 for x in away))

    def level(self, value: float) -> int:
        """The level of a value; 0 for NaN, and where the extent is 0."""
        away = value - self.neutral
        if not self.extent or math.isnan(away):
            return 0
        size = round(LEVELS * min(abs(away) / self.extent, 1.0) ** self.power)
        return size if away > 0 else -size

    def value(self, level: int) -> float:
        """The value at a level."""
        return self.neutral + math.copysign(self.extent * (abs(level) / LEVELS) ** (1 / self.power), level)

    @property
    def levels(self) -> range:
        """The levels that the legend shows, from the lowest value to the highest."""
        if not self.extent:
            return range(0)
        return range(-LEVELS if self.below else 0, (LEVELS if self.above else 0) + 1)


def stylesheet() -> str:
    """The background of every level but 0: classes n16 to n1 below neutral, p1 to p16 above."""
    light, dark = (
        "".join(f".{level_class(k)}{{background:{theme.colour(k)}}}" for k in range(-LEVELS, LEVELS + 1) if k)
        for theme in (LIGHT, DARK)
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{{dark}}}\n"


def level_class(level: int) -> str:
    """The CSS class of a level."""
    return f"n{-level}" if level < 0 else f"p{level}"


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of #rrggbb, from 0 to 1 (WCAG 2.2)."""
    shares = (channel / 255 for channel in _channels(colour))
    linear = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

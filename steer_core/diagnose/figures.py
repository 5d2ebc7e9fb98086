"""The figures of a diagnosis, in the style of the report; one function a figure, each drawn where it has data."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steer_core.common.plot_style import ARM_COLOURS, MUTED, STYLE, label, panels, styled
from steer_core.diagnose.diagnosis import Diagnosis
from steer_core.formulas.entropy_change import QUADRANTS

NAMES = {
    "positive_likely": "A>0, likely",
    "positive_unlikely": "A>0, unlikely",
    "negative_likely": "A<0, likely",
    "negative_unlikely": "A<0, unlikely",
}
LOWERS, RAISES = "#b35806", "#542788"
_MOST = 4000
"""Points of a scatter plot."""


def figures(seen: Diagnosis) -> dict[str, bytes]:
    """Every figure that the dump allows, as SVG by name."""
    found = {}
    for name, (_, _, holds, draw) in FIGURES.items():
        if holds(seen):
            file = io.BytesIO()
            with matplotlib.rc_context(STYLE):
                draw(seen).savefig(file, format="svg", metadata={"Date": None})
            found[name] = file.getvalue()
    return found


@styled
def entropy_figure(seen: Diagnosis) -> Figure:
    """-ln p of the sampled tokens against the logged entropy (means of equal counts), and entropy over the run."""
    figure, axes = panels(1, 2, height=2.6)
    if "entropy" in seen.dump.tokens:
        _against(axes[0, 0], seen.dump.tokens["entropy"], -seen.dump.tokens["logprob"])
        label(axes[0, 0], "Is it an entropy?", "the column `entropy`", "-ln p, nats", whole=False)
    else:
        axes[0, 0].set_visible(False)
    axes[0, 1].plot(seen.course.steps, seen.course.entropy, color=ARM_COLOURS[0], lw=1.6, marker="o", ms=3)
    axes[0, 1].set_ylim(bottom=0)
    label(axes[0, 1], "Mean of -ln p" if seen.course.is_mean_nll else "Entropy", seen.course.unit, "nats / token")
    return figure


def _against(axis: Axes, entropy: np.ndarray, surprise: np.ndarray) -> None:
    """Tokens as points, means over twenty parts of equal count, and the line that such means of Shannon's lie on."""
    some = np.linspace(0, len(entropy) - 1, min(len(entropy), _MOST)).astype(int)
    axis.scatter(entropy[some], surprise[some], s=3, color=MUTED, alpha=0.3, lw=0, rasterized=False)
    order = np.argsort(entropy, kind="stable")
    parts = [part for part in np.array_split(order, 20) if len(part)]
    axis.plot([entropy[p].mean() for p in parts], [surprise[p].mean() for p in parts], color=ARM_COLOURS[1], lw=1.6)
    most = max(float(entropy.max()), 1e-9)
    axis.plot([0, most], [0, most], color=ARM_COLOURS[0], lw=0.8, ls="--")
    axis.set_ylim(0, max(float(np.quantile(surprise, 0.99)), most) * 1.05)


@styled
def quadrants_figure(seen: Diagnosis) -> Figure:
    """Share of tokens by quadrant, and the sum of their estimated entropy changes."""
    figure, axes = panels(1, 2, height=2.2, sharey=True)
    own = [seen.quadrants[name] for name in QUADRANTS]
    places = np.arange(len(own))[::-1]
    axes[0, 0].barh(places, [one.share for one in own], color=MUTED)
    axes[0, 0].set_yticks(places, [NAMES[name] for name in QUADRANTS])
    axes[0, 1].barh(places, [one.change for one in own], color=[LOWERS if x.change < 0 else RAISES for x in own])
    axes[0, 1].axvline(0, color=MUTED, lw=0.8)
    label(axes[0, 0], "Tokens", "share", "", whole=False)
    label(axes[0, 1], "Estimated change of entropy", "nats at unit step, summed", "", whole=False)
    return figure


@styled
def positions_figure(seen: Diagnosis) -> Figure:
    """Entropy, size of the estimated change and share clipped by tenth of the response."""
    columns = [
        (name, title, unit)
        for name, title, unit in (
            ("entropy", "Entropy" if seen.states.knows_entropy else "-ln p", "nats / token"),
            ("size", "Size of the estimated change", "nats at unit step"),
            ("clipped", "Stopped by the clip", "share of tokens"),
        )
        if name in seen.positions
    ]
    figure, axes = panels(1, len(columns), height=2.2)
    for axis, (name, title, unit) in zip(axes.flat, columns, strict=True):
        axis.plot(seen.positions.index + 1, seen.positions[name], color=ARM_COLOURS[1], lw=1.6, marker="o", ms=3)
        axis.set_ylim(bottom=0)
        label(axis, title, "tenth of the response", unit)
    return figure


@styled
def sizes_figure(seen: Diagnosis) -> Figure:
    """How sizes of the estimated change are spread: share of tokens above each size, and STEER's weights from them."""
    size = np.sort(seen.states.change.abs().numpy())
    size = size[size > 0]
    figure, axes = panels(1, 2, height=2.4)
    above = 1 - np.arange(len(size)) / len(size)
    some = np.unique(np.linspace(0, len(size) - 1, min(len(size), _MOST)).astype(int))
    axes[0, 0].loglog(size[some], above[some], color=ARM_COLOURS[1], lw=1.6)
    label(axes[0, 0], "Sizes of the estimated change", "nats at unit step", "share of tokens above", whole=False)
    told = [one for one in seen.effects if not one.why_not and one.name != "none"]
    places = np.arange(len(told))[::-1]
    axes[0, 1].barh(places, [min(one.size, 2.0) for one in told], color=ARM_COLOURS[6])
    axes[0, 1].axvline(1, color=ARM_COLOURS[0], lw=0.8, ls="--")
    axes[0, 1].set_yticks(places, [one.name for one in told], fontsize=6.5)
    label(axes[0, 1], "What each method leaves of it", "sum of sizes over GRPO's (2: or more)", "", whole=False)
    return figure


def _knows(seen: Diagnosis) -> bool:
    return seen.movers is not None and bool((seen.states.change != 0).any())


FIGURES: dict[str, tuple[str, str, Callable[[Diagnosis], bool], Callable[[Diagnosis], Figure]]] = {
    "entropy": (
        "Which entropy, and its course",
        "Left: each token's -ln p beside the column `entropy`; blue: means of twenty parts of equal count; dashed: "
        "where such means lie if the column is the Shannon entropy in nats. Right: by step.",
        lambda seen: True,
        entropy_figure,
    ),
    "quadrants": (
        "Which tokens are estimated to move entropy",
        "By sign of the advantage and by whether the token is likely (ln p above minus the entropy), in the paper's "
        "form. It counts a token's effect at its own state alone.",
        lambda seen: bool(seen.quadrants),
        quadrants_figure,
    ),
    "positions": ("Where in the response", "Means by tenth of the response.", lambda seen: True, positions_figure),
    "sizes": (
        "How uneven the estimated changes are, and what methods do about it",
        "Left: share of tokens whose estimated change is larger. Right: the sum of sizes under each method's defaults, "
        "on these very tokens.",
        _knows,
        sizes_figure,
    ),
}
"""By name: title, what it shows, whether the dump allows it, and what draws it."""

"""The look of the figures: colours, type, panels and the lines of seeds. No global setting of matplotlib is touched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

Data = ParamSpec("Data")
ARM_COLOURS = ("#1f2a36", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colour-blind safe colours, the first arm in ink."""
ARM_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MUTED = "#6b7280"
MOST_POINTS = 400
"""Of a line over rollouts: more than a figure of this size shows."""
STYLE = {
    **sns.axes_style("ticks"),
    **sns.plotting_context("paper"),
    "axes.edgecolor": "#9aa1ab",
    "axes.grid": True,
    "axes.labelcolor": "#1f2a36",
    "axes.labelsize": 8,
    "axes.linewidth": 0.7,
    "axes.prop_cycle": cycler(color=ARM_COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "grid.color": "#e8eaee",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.title_fontsize": 8,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "steer",
    "xtick.color": "#6b7280",
    "xtick.labelcolor": "#1f2a36",
    "xtick.labelsize": 7.5,
    "xtick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.color": "#6b7280",
    "ytick.labelcolor": "#1f2a36",
    "ytick.labelsize": 7.5,
    "ytick.major.size": 3,
    "ytick.major.width": 0.7,
}


def styled(draw: Callable[Data, Figure]) -> Callable[Data, Figure]:
    """A figure function that draws in STYLE and leaves the settings around it alone."""

    @functools.wraps(draw)
    def draw_in_style(*data: Data.args, **named: Data.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*data, **named)

    return draw_in_style


def plain(text: str) -> str:
    """Text that matplotlib shows as it stands: no mathematics, nothing hidden from the legend."""
    text = text.replace("$", r"\$")
    return f"\u200a{text}" if text.startswith("_") else text


def panels(
    rows: int, columns: int, height: float, width: float = 7.0, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure `width` inches wide, each row of panels `height` high, and its axes (rows, columns)."""
    figure = Figure(figsize=(width, rows * height + 0.45), layout=ConstrainedLayoutEngine(h_pad=0.08))
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)


def hide(axes: np.ndarray, used: int) -> None:
    """Take away the panels after the first `used`."""
    for axis in axes.flat[used:]:
        axis.set_visible(False)


def label(axis: Axes, title: str, x: str, y: str, whole: bool = True) -> None:
    """Title and axis labels; `whole`: the x-axis counts, so its ticks are integers."""
    axis.set_title(title)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if whole:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def name_lines(axis: Axes, size: float = 7.5) -> None:
    """Each line's label behind its last point, in its colour, in place of a legend; labels keep `size` points apart.

    Lines without a label (matplotlib's own begin with `_`) get none. Call it when limits and labels are set.
    """
    lines = [line for line in axis.get_lines() if not str(line.get_label()).startswith("_")]
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    ends = [(float(x[-1]), float(y[-1])) for x, y in (np.asarray(line.get_data()) for line in lines)]
    points = [float(axis.transData.transform(end)[1]) * 72 / figure.dpi for end in ends]
    for line, end, now, then in zip(lines, ends, points, apart(points, 1.25 * size), strict=True):
        axis.annotate(
            str(line.get_label()),
            end,
            xytext=(4, then - now),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=size,
            va="center",
            annotation_clip=False,
        )


def apart(places: list[float], gap: float) -> list[float]:
    """The places, in their order, moved as little as keeps each `gap` from the next, around the middle of a crowd."""
    crowds: list[list[int]] = []
    for i in sorted(range(len(places)), key=places.__getitem__):
        crowds.append([i])
        while len(crowds) > 1:
            lower, upper = crowds[-2:]
            if _lowest(upper, places, gap) - _lowest(lower, places, gap) >= gap * len(lower):
                break
            crowds[-2:] = [lower + upper]
    found = {i: _lowest(crowd, places, gap) + gap * k for crowd in crowds for k, i in enumerate(crowd)}
    return [found[i] for i in range(len(places))]


def _lowest(crowd: list[int], places: list[float], gap: float) -> float:
    """Where the lowest of a crowd lies, so that its middle is the mean of its places."""
    return sum(places[i] for i in crowd) / len(crowd) - gap * (len(crowd) - 1) / 2


def bin_width(rows: pd.DataFrame) -> int:
    """How many rows of a run share a point of a line, so that it has about MOST_POINTS; 1 where it has fewer anyway."""
    return max(1, -(-rows["step"].nunique() // MOST_POINTS))


def thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows by arm, seed and step as a figure shows them: the mean of every `bin_width` steps, at the last of them.

    Step 0 and the last row of every run stay as they are.
    """
    width = bin_width(rows)
    if width == 1:
        return rows
    steps, own = np.sort(rows["step"].unique()), rows["step"].to_numpy()
    ends = steps[np.minimum((np.searchsorted(steps, own) // width + 1) * width, len(steps)) - 1].astype(float)
    last = rows.groupby(["arm", "seed"])["step"].transform("max").to_numpy()
    ends = np.where((own == 0) | (own == last), own, np.minimum(ends, last - 0.5))
    values = rows.drop(columns=["arm", "seed", "step"]).select_dtypes("number")
    return values.groupby([rows["arm"], rows["seed"], pd.Series(ends, rows.index, name="step")]).mean().reset_index()


def draw_lines(
    axis: Axes, rows: pd.DataFrame, column: str, colour: str, name: str, style: str = "-", marker: str | None = None
) -> None:
    """A thin line a seed (label `_name seed`) and a thick one for the mean of the seeds that came furthest."""
    if rows.empty:
        return
    table = rows.pivot(index="step", columns="seed", values=column).sort_index()
    for seed in table:
        axis.plot(table[seed].dropna(), color=colour, ls=style, lw=0.6, alpha=0.4, label=f"_{name} {seed}")
    mean = table.loc[:, table.iloc[-1].notna()].mean(axis=1, skipna=False).dropna()
    axis.plot(mean, color=colour, ls=style, lw=1.6, marker=marker, ms=4, mec="white", mew=0.6, label=name)

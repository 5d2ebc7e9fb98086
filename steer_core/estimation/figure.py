"""Predicted against measured entropy change, token by token: the figure of `steer estimate`."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steer_core.common.plot_style import MUTED, STYLE
from steer_core.ladder.attribution import RUNG_TITLES, RUNGS

_INK, _FIT = "#0072b2", "#d55e00"
_CUT = 0.99


def estimate_figure(tables: dict[str, pd.DataFrame], record: dict) -> Figure:
    """One row an update, one panel an estimate: each token's measured change over the predicted one.

    Both axes in units of their own root mean square, cut at the 99% quantile; the line is the diagonal.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.75 * len(RUNGS), 2.1 * len(tables)), layout="constrained")
        axes = figure.subplots(len(tables), len(RUNGS), sharey="row", squeeze=False)
        for axis, name in zip(axes[0], RUNGS, strict=True):
            axis.set_title(RUNG_TITLES[name])
        for row, (update, tokens) in zip(axes, tables.items(), strict=True):
            for axis, name in zip(row, RUNGS, strict=True):
                _panel(axis, tokens[name].to_numpy(), tokens["measured"].to_numpy())
                scores = record["updates"][update]["target"][name]
                found = [scores[measure][0] for measure in ("pearson", "spearman")]
                r, rank_r = ("-" if value is None else f"{value:.2f}" for value in found)
                text = f"r = {r}\nrank r = {rank_r}"
                axis.text(
                    0.04, 0.96, text, transform=axis.transAxes, va="top", fontsize=7.5, color=STYLE["axes.labelcolor"]
                )
            row[0].set_ylabel(f"{update.replace(':', ', step size ')}\nmeasured change (rms)")
        for axis in axes[-1]:
            axis.set_xlabel("predicted (rms)")
        return figure


def _panel(axis: Axes, predicted: np.ndarray, measured: np.ndarray) -> None:
    pair = (values.astype(np.float64) for values in (predicted, measured))  # squares of float32 could be 0
    x, y = (values / max(np.sqrt(np.mean(values**2)), 1e-300) for values in pair)
    limit = [max(float(np.quantile(np.abs(values), _CUT)), 1e-3) for values in (x, y)]
    axis.scatter(x, y, s=4, alpha=0.35, color=_INK, linewidths=0, rasterized=True)
    span = min(limit)
    axis.plot([-span, span], [-span, span], color=_FIT, linewidth=0.9)
    axis.axhline(0, color=MUTED, linewidth=0.5)
    axis.axvline(0, color=MUTED, linewidth=0.5)
    axis.set(xlim=(-1.1 * limit[0], 1.1 * limit[0]), ylim=(-1.1 * limit[1], 1.1 * limit[1]))

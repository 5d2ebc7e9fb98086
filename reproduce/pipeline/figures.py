"""The figures of the tables and figures, drawn from raw rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.measures import Rows, interval, values
from pipeline.rows import curve
from steer_core.common.plot_style import ARM_COLOURS, MUTED, label, panels, plain, styled
from steer_core.stats.intervals import Interval, interval_over_seeds
from steer_core.stats.pass_at_k import pass_at_k

_SHOWN = ("pass@1", "pass@32", "entropy")
_NAMES = {"entropy": "entropy (nats / token)"}
_LINES = ("-", "--", ":")


@styled
def dots(runs: dict[str, Rows], labels: dict[str, str], base: dict[str, Any], baseline: str) -> Figure:
    """pass@1, pass@32 and entropy of every arm at the end, with 95% intervals; a line marks the first arm."""
    figure, axes = panels(1, len(_SHOWN), height=0.55 + 0.24 * len(runs), width=7.6, sharey=True)
    places = np.arange(len(runs))[::-1]
    for axis, measure in zip(axes.flat, _SHOWN, strict=True):
        for place, (arm, rows) in zip(places, runs.items(), strict=True):
            found = interval(values(rows, measure, base))
            colour = ARM_COLOURS[0] if arm == baseline else ARM_COLOURS[1]
            axis.plot([found.low, found.high], [place, place], color=colour, lw=1.4)
            axis.plot(found.mean, place, "o", color=colour, ms=4, mec="white", mew=0.5)
            if arm == baseline:
                axis.axvline(found.mean, color=MUTED, lw=0.7, ls=":")
        label(axis, measure, _NAMES.get(measure, measure), "", whole=False)
        axis.locator_params(axis="x", nbins=4)
    axes.flat[0].set_yticks(places, [plain(labels[arm]) for arm in runs])
    axes.flat[0].set_ylim(-0.6, len(runs) - 0.4)
    return figure


@styled
def curves(runs: dict[str, Rows], labels: dict[str, str], base: dict[str, Any]) -> Figure:
    """Entropy, pass@1 and pass@32 over rollouts: means over seeds, bands of 95% over seeds where there are several."""
    figure, axes = panels(1, len(_SHOWN), height=2.4, width=7.6)
    of: dict[str, Callable[[dict[str, Any]], np.ndarray]] = {
        "entropy": lambda row: np.array([e["entropy"] for e in row["evaluations"]]),
        "pass@1": lambda row: curve(row, 1),
        "pass@32": lambda row: curve(row, 32),
    }
    start = {"entropy": base["policy_entropy"], "pass@1": base["pass@1"], "pass@32": base["pass@32"]}
    for axis, (measure, read) in zip(axes.flat, of.items(), strict=True):
        for i, (arm, rows) in enumerate(runs.items()):
            steps = [0, *(e["step"] for e in rows[0]["evaluations"])]
            table = np.array([[start[measure], *read(row)] for row in rows])
            _line(axis, steps, table, i, plain(labels[arm]))
        label(axis, measure, "rollout", _NAMES.get(measure, measure))
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def pass_curves(runs: dict[str, Rows], labels: dict[str, str]) -> Figure:
    """pass@k against k of the evaluation after the last rollout, means over seeds and problems."""
    figure, axes = panels(1, 1, height=2.8, width=4.8)
    axis = axes.flat[0]
    for i, (arm, rows) in enumerate(runs.items()):
        finals = [row["final"] for row in rows if row["final"]]
        if not finals:
            continue
        ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if k <= finals[0]["samples"]]
        table = np.array([[pass_at_k(one["correct"], one["samples"], k).mean() for k in ks] for one in finals])
        _line(axis, ks, table, i, plain(labels[arm]))
    axis.set_xscale("log", base=2)
    label(axis, "pass@k of the last policy", "k", "pass@k", whole=False)
    axis.legend()
    return figure


def _line(axis: Axes, x: list[int], table: np.ndarray, i: int, name: str) -> None:
    """The mean over runs (rows of the table) as a line, its 95% band over seeds where there are several."""
    colour, style = ARM_COLOURS[i % len(ARM_COLOURS)], _LINES[i // len(ARM_COLOURS)]
    axis.plot(x, table.mean(0), color=colour, ls=style, lw=1.5, label=name)
    if len(table) > 1:
        bands: list[Interval] = [interval_over_seeds(column.tolist()) for column in table.T]
        axis.fill_between(x, [b.low for b in bands], [b.high for b in bands], color=colour, alpha=0.12, lw=0)

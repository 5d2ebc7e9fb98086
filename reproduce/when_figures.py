"""The figures of the experiment on when entropy matters, drawn from its raw rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from when_statistics import PRIMARY, Rows, contrast, ends, frame

from steer_core.common.plot_style import ARM_COLOURS, MUTED, label, panels, styled
from steer_core.stats.improvement import performance_profile
from steer_core.stats.intervals import interval_over_seeds

Arms = dict[str, Rows]
"""The rows of a stage's finished runs, by arm."""
_NAMES = {"entropy": "entropy (nats / token)", "pass@1": "pass@1", "pass@32": "pass@32"}


@styled
def curves(arms: Arms, labels: dict[str, str], base: dict[str, Any] | None) -> Figure:
    """Entropy, pass@1 and pass@32 over rollouts: means over seeds, bands of 95% over seeds where there are several."""
    figure, axes = panels(1, 3, height=2.4, width=7.6)
    for axis, (column, name) in zip(axes.flat, _NAMES.items(), strict=True):
        for colour, (arm, rows) in zip(ARM_COLOURS, arms.items(), strict=False):
            table = _by_step(rows, column, base)
            axis.plot(table.index, table.mean(axis=1), color=colour, lw=1.6, label=labels[arm])
            _band(axis, table, colour)
        label(axis, column, "rollout", name)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def paths(arms: Arms, labels: dict[str, str], base: dict[str, Any] | None) -> Figure:
    """pass@32 and entropy against pass@1: the way of each arm from the base model, means over seeds."""
    figure, axes = panels(1, 2, height=2.8, width=7.6)
    for axis, column in zip(axes.flat, ("pass@32", "entropy"), strict=True):
        for colour, (arm, rows) in zip(ARM_COLOURS, arms.items(), strict=False):
            x, y = (_by_step(rows, name, base).mean(axis=1) for name in ("pass@1", column))
            axis.plot(x, y, color=colour, lw=1.4, marker="o", ms=3, mec="white", mew=0.4, label=labels[arm])
        label(axis, f"{column} against pass@1", "pass@1", _NAMES[column], whole=False)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def forest(contrasts: dict[str, dict[str, Any]], labels: dict[str, str], reference: str) -> Figure:
    """Every contrast's difference from the reference, with the interval that its measure has; red: decided."""
    shown = [PRIMARY, "pass@32 at equal pass@1", "area", "entropy"]
    known = {arm: found["measures"] for arm, found in contrasts.items() if found}
    figure, axes = panels(1, len(shown), height=0.5 + 0.3 * len(known), width=7.6, sharey=True)
    for axis, name in zip(axes.flat, shown, strict=True):
        for place, measures in enumerate(known.values()):
            found = measures.get(name)
            if found is None:
                continue
            colour = "#d55e00" if found.get("decided") else MUTED if found["verdict"] == "undecided" else "#0072b2"
            bounds = found.get("over_seeds_and_problems") or found["over_seeds"]
            if bounds:
                axis.plot(bounds, [place, place], color=colour, lw=1.4)
            axis.plot(found["mean"], place, "o", color=colour, ms=4, mec="white", mew=0.5)
        axis.axvline(0, color="#1f2a36", lw=0.7)
        label(axis, name, f"minus {reference}", "", whole=False)
        axis.locator_params(axis="x", nbins=4)
    axes.flat[0].set_yticks(range(len(known)), [labels[arm] for arm in known])
    return figure


@styled
def profiles(arms: Arms, labels: dict[str, str]) -> Figure:
    """Share of seeds and problems that are solved more often than a level, at the end."""
    figure, axes = panels(1, 1, height=2.6, width=4.6)
    at = np.linspace(0, 1, 101)
    for colour, (arm, rows) in zip(ARM_COLOURS, arms.items(), strict=False):
        axes.flat[0].plot(at, performance_profile(ends(rows, 1), at), color=colour, lw=1.4, label=labels[arm])
    label(axes.flat[0], "Performance profile", "pass@1 of a problem above", "share of seeds x problems", whole=False)
    axes.flat[0].legend()
    return figure


def contrasts_of(arms: Arms, reference: str, base: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Every arm beside the reference."""
    return {arm: contrast(rows, arms[reference], base) for arm, rows in arms.items() if arm != reference}


def _by_step(rows: Rows, column: str, base: dict[str, Any] | None) -> pd.DataFrame:
    """A measure at every evaluation (rows of the table) of every run (columns)."""
    return pd.concat([frame(row, base).set_index("step")[column] for row in rows], axis=1).dropna()


def _band(axis: Axes, table: pd.DataFrame, colour: str) -> None:
    if table.shape[1] > 1:
        found = [interval_over_seeds(values) for values in table.to_numpy()]
        axis.fill_between(table.index, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.15, lw=0)

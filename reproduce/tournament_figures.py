"""The tournament's pictures: pass@1 against pass@k over all checkpoints, and what differs at equal pass@1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tournament_statistics import is_decided

from steer_core.common.plot_style import ARM_COLOURS, MUTED, STYLE, label
from steer_core.compare.comparison import Comparison

INK, RATE_CONTROL, DECIDED = "#1f2a36", "#0072b2", "#d55e00"


def trade(comparison: Comparison, stage: dict[str, Any]) -> Figure:
    """Every checkpoint of every run: pass@<largest k> and entropy against pass@1; means over seeds joined.

    In colour: the baseline, its controls, STEER, and the arms whose largest pass@k ends highest; the others in grey.
    """
    curves, largest = comparison.curves(), comparison.largest_k
    shown = _shown(comparison, stage)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 4.0), layout="constrained")
        axes = figure.subplots(1, 2)
        for column, axis in ((f"pass@{largest}", axes[0]), ("policy_entropy", axes[1])):
            for arm in comparison.plan.arms:
                rows, colour = curves[curves.arm == arm], shown.get(arm, "#b8bec7")
                axis.scatter(rows["pass@1"], rows[column], s=4, color=colour, alpha=0.35, lw=0)
                means = rows.groupby("step")[["pass@1", column]].mean()
                style = {"lw": 1.7, "marker": "o", "ms": 3.5, "mec": "white", "mew": 0.4, "zorder": 3}
                axis.plot(
                    means["pass@1"], means[column], color=colour, label=comparison.label(arm) if arm in shown else None,
                    **(style if arm in shown else {"lw": 0.7}),
                )  # fmt: skip
        label(axes[0], f"pass@{largest} against pass@1", "pass@1", f"pass@{largest}", whole=False)
        label(axes[1], "entropy against pass@1", "pass@1", "policy entropy (nats / token)", whole=False)
        handles, names = axes[0].get_legend_handles_labels()
        handles, names = [*handles, Line2D([], [], color="#b8bec7", lw=0.7)], [*names, "all others"]
        figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _shown(comparison: Comparison, stage: dict[str, Any]) -> dict[str, str]:
    """The colour of each arm that `trade` names."""
    k = f"pass@{comparison.largest_k}"
    best = sorted(stage["arms"], key=lambda arm: -stage["arms"][arm][k]["mean"])[:3]
    first = [comparison.plan.baseline, *comparison.plan.controls, "steer", *best]
    named = [arm for arm in dict.fromkeys(first) if arm in stage["arms"]]
    return dict(zip(named, ARM_COLOURS, strict=False))


def forest(stage: dict[str, Any], reference: str) -> Figure:
    """Differences from an arm at equal pass@1, one row a method, with intervals over seeds.

    Red: decided (the primary measure, Holm's p below 0.05). Blue: the intervals exclude 0, uncorrected.
    """
    rows = [
        row for row in stage["arms"].values()
        if row.get("against", {}).get(reference, {}).get("equal_pass@1")
    ]  # fmt: skip
    rows.sort(key=lambda row: row["against"][reference]["equal_pass@1"][stage["primary"]]["mean"])
    names = [stage["primary"], "pass@16", "entropy"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.75 + 0.21 * len(rows)), layout="constrained")
        axes = figure.subplots(1, 3, sharey=True)
        for axis, name in zip(axes, names, strict=True):
            for place, row in enumerate(rows):
                found = row["against"][reference]["equal_pass@1"].get(name)
                if found is None:
                    continue
                firm = is_decided(found, name == stage["primary"])
                colour = DECIDED if firm else MUTED if found["verdict"] == "undecided" else RATE_CONTROL
                if found["over_seeds"]:
                    axis.plot(found["over_seeds"], [place, place], color=colour, lw=1.4)
                axis.plot(found["mean"], place, "o", color=colour, ms=4, mec="white", mew=0.5)
            axis.axvline(0, color=INK, lw=0.7)
            label(axis, name, "difference" + (" (nats / token)" if name == "entropy" else ""), "", whole=False)
        axes[0].set_yticks(range(len(rows)), [row["label"] for row in rows])
        told = stage["arms"][reference]["label"]
        figure.suptitle(f"Minus {told}, at equal pass@1: 95% over seeds; red decided, blue exploratory", fontsize=8.5)
    return figure


def rates(stages: dict[str, dict[str, Any]]) -> Figure | None:
    """Entropy and pass@1 at the last evaluation, under AdamW and under SGD: damping beside a lower rate."""
    pairs = [(name, stages[name]) for name in ("test", "sgd") if name in stages]
    if len(pairs) < 2:
        return None
    shown = ("grpo", "grpo-lr-half", "steer", "steer-uniform", "steer-shuffled")
    colours = dict(zip(shown, (INK, RATE_CONTROL, DECIDED, "#009e73", "#cc79a7"), strict=True))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.7), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, (name, stage) in zip(axes, pairs, strict=True):
            for arm in (arm for arm in shown if arm in stage["arms"]):
                row = stage["arms"][arm]
                x, y = row["pass@1"], row["entropy"]
                axis.errorbar(
                    x["mean"], y["mean"], fmt="o", ms=4, lw=1.1, color=colours[arm], xerr=_arms(x), yerr=_arms(y)
                )
            title = "AdamW" if name == "test" else "SGD"
            label(axis, title, "pass@1", "policy entropy (nats / token)", whole=False)
        handles = [Line2D([], [], color=colours[arm], marker="o", ms=4, lw=1.1) for arm in shown]
        labels = ["GRPO", "GRPO, half the rate", "STEER, tuned", "its mean weight", "its weights shuffled"]
        figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    return figure


def _arms(interval: dict[str, float | None]) -> list[list[float]] | None:
    """How far an interval reaches to each side, as `errorbar` takes it; None for one seed, which has none."""
    low, mean, high = interval["low"], interval["mean"], interval["high"]
    return None if low is None or low != low else [[mean - low], [high - mean]]


def save_figures(comparisons: dict[str, Comparison], stages: dict[str, dict[str, Any]], out: Path) -> None:
    """Write every picture there is data for, as PNG; `trade` needs the runs."""
    drawn = {}
    for name, stage in stages.items():
        if name in comparisons:
            drawn[f"{name}_trade"] = trade(comparisons[name], stage)
        if any("against" in row for row in stage["arms"].values()):
            drawn[f"{name}_differences"] = forest(stage, stage["baseline"])
    drawn["rates"] = rates(stages)
    for name, figure in drawn.items():
        if figure is not None:
            figure.savefig(out / f"{name}.png", dpi=170)

"""How good the estimates of the entropy change were: what the probe of every rollout says, pooled.

The probe watches one optimiser step a rollout on a few sequences (`steer_core.training.probe`), so a single
reading is noisy. Everything here pools: lines over rollouts near each other and over all runs,
numbers over rollouts, then methods, then seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from steer_core.common.errors import SteerError
from steer_core.common.plot_style import MUTED, bin_width, label, panels, styled, thinned
from steer_core.compare.comparison import Comparison
from steer_core.ladder.attribution import RUNG_TITLES
from steer_core.stats.intervals import Interval, Verdict, interval_over_seeds

ESTIMATES = {name: RUNG_TITLES[name] for name in ("first_order", "exact", "paper", "released", "covariance")}
"""Every estimate that the probe logs, and how figures and captions call it."""
SCORES = ("pearson", "sign")
COIN = 0.5
"""The share of right signs of a coin."""
NEAR = 2
"""Rollouts to each side over which the lines of the figure are averaged."""
_LOOKS = {
    "first_order": ("#882255", "-"),
    "exact": ("#117733", "-"),
    "paper": ("#332288", "-"),
    "released": ("#b08d1e", "--"),
    "covariance": ("#44aa99", "-."),
}
_STEP_SECONDS = ("time/rollout_seconds", "time/score_seconds", "time/update_seconds")


def absence(comparison: Comparison) -> str:
    """Why nothing can be said of the estimates; empty where something can."""
    plan = comparison.plan
    if not watched_arms(comparison):
        off = not any(plan.config(arm, plan.seeds[0]).train.probe_sequences for arm in plan.arms)
        return "the probe was switched off (train.probe_sequences=0)" if off else "no watched step has been logged"
    return "" if _by_estimate(comparison.metrics, SCORES) else "at no watched step was an agreement defined"


def quality(comparison: Comparison) -> dict[str, Any]:
    """What the probe found, as numbers; empty where there is nothing to say (see `absence`).

    measured_change: mean change of entropy over the probe's tokens by a watched step, nats.
    by_estimate: by estimate, `pearson` and `sign` (per-token agreement with the measured change) and
    `change`, means over rollouts, then methods, with an interval over seeds; what is undefined is
    missing. by_arm: the same method by method. watched_steps: how many steps of all runs were watched.
    probe_seconds: the probe's mean time a rollout; share_of_training_time: of sampling, scoring and
    updates together. Both NaN where no times were logged.
    """
    if absence(comparison):
        return {}
    metrics = comparison.metrics
    seconds, share = _cost(metrics)
    return {
        "watched_steps": int(metrics["probe/change/measured"].notna().sum()),
        "measured_change": _over_seeds(metrics, "probe/change/measured"),
        "by_estimate": _by_estimate(metrics),
        "by_arm": {arm: _by_estimate(metrics[metrics.arm == arm]) for arm in watched_arms(comparison)},
        "probe_seconds": seconds,
        "share_of_training_time": share,
    }


def watched_arms(comparison: Comparison) -> list[str]:
    """The arms whose runs logged a watched step, in the plan's order."""
    rows = comparison.metrics
    seen = set(rows.arm[rows["probe/change/measured"].notna()]) if "probe/change/measured" in rows else set()
    return [arm for arm in comparison.plan.arms if arm in seen]


def better_than_a_coin(by_estimate: dict[str, dict[str, Interval]]) -> dict[Verdict, list[str]]:
    """Whose share of right signs is above, below or not told from COIN, by verdict; names as in ESTIMATES."""
    verdicts: dict[Verdict, list[str]] = {"higher": [], "lower": [], "undecided": []}
    for name, row in by_estimate.items():
        if "sign" in row:
            sign = row["sign"]
            verdicts[Interval(sign.mean - COIN, sign.low - COIN, sign.high - COIN).verdict].append(ESTIMATES[name])
    return verdicts


@styled
def estimates_figure(comparison: Comparison) -> Figure:
    """Per-token Pearson correlation and share of right signs over rollouts, and mean changes (nats) by first order.

    Lines: mean over all runs and the rollouts at most NEAR away; bands: the middle half of those
    values. Points: one a watched step. Raises SteerError where the probe has said nothing.
    """
    if why := absence(comparison):
        raise SteerError(f"{why}; there is nothing to draw")
    figure, (axes,) = panels(1, 3, height=2.5)
    metrics, near = thinned(comparison.metrics), NEAR * bin_width(comparison.metrics)
    drawn: set[str] = set()
    for axis, score, title, unit in zip(
        axes,
        SCORES,
        ("Agreement per token", "Right signs"),
        ("Pearson correlation", "share of tokens"),
        strict=False,
    ):
        for name in ESTIMATES:
            if _draw_pooled(axis, metrics, f"probe/{score}/{name}", name, near):
                drawn.add(name)
        chance = {"pearson": 0.0, "sign": COIN}[score]
        axis.axhline(chance, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1, label="_chance")
        axis.set_ylim(min(chance - 0.1, axis.get_ylim()[0]), 1.03)
        label(axis, title, "rollout", unit)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    at, place = (0, COIN), {"ha": "left", "va": "top", "fontsize": 7, "color": MUTED}
    axes[1].annotate("a coin", at, (4, -6), axes[1].get_yaxis_transform(), "offset points", **place)
    _draw_means(axes[2], metrics)
    names = [name for name in ESTIMATES if name in drawn]
    handles = [Line2D([], [], color=_LOOKS[name][0], ls=_LOOKS[name][1], lw=1.6) for name in names]
    figure.legend(handles, [ESTIMATES[name] for name in names], loc="outside lower center", ncols=len(names))
    return figure


def _draw_pooled(axis: Axes, metrics: pd.DataFrame, column: str, name: str, near: int) -> bool:
    """One estimate's running mean over runs and its band; whether there was anything to draw."""
    if column not in metrics or metrics[column].dropna().empty:
        return False
    colour, style = _LOOKS[name]
    pooled = running(metrics, column, near)
    axis.fill_between(
        pooled.index, pooled["low"], pooled["high"], color=colour, alpha=0.09, lw=0, label=f"_{name} band"
    )
    marker = "o" if len(pooled) == 1 else None
    axis.plot(pooled["mean"], color=colour, ls=style, lw=1.6, marker=marker, ms=4, label=name)
    return True


def _draw_means(axis: Axes, metrics: pd.DataFrame) -> None:
    """Mean change measured against mean change by first order, a point a watched step, and the line of equality."""
    names = ["probe/change/first_order", "probe/change/measured"]
    points = metrics.reindex(columns=names).dropna()
    reach = float(points.abs().max().max()) if len(points) else 0.0
    power = int(np.floor(np.log10(reach))) if reach > 0 else 0
    scaled = FuncFormatter(lambda value, _: f"{value / 10**power:.3g}".replace("-", "\u2212"))
    axis.axline((0, 0), slope=1, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1, label="_equal")
    colour = _LOOKS["first_order"][0]
    axis.plot(points[names[0]], points[names[1]], "o", color=colour, ms=2.6, mew=0, alpha=0.4, label="first_order")
    if reach > 0:
        low, high = float(points.min().min()), float(points.max().max())
        edge = 0.06 * (high - low) or reach
        axis.set_xlim(low - edge, high + edge)
        axis.set_ylim(low - edge, high + edge)
    unit = f"$10^{{{power}}}$ nats"
    label(axis, "Mean change of a step", f"by first order ({unit})", f"measured ({unit})", whole=False)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(scaled)
        side.set_major_locator(MaxNLocator(nbins=5))


def running(metrics: pd.DataFrame, column: str, near: int = NEAR) -> pd.DataFrame:
    """By rollout: mean, low and high (quartiles) of a column over all runs and the rollouts at most `near` away."""
    told = metrics[["step", column]].dropna()
    steps = np.sort(told["step"].unique())
    windows = [told[column][(told["step"] - step).abs() <= near] for step in steps]
    rows = [(values.mean(), values.quantile(0.25), values.quantile(0.75)) for values in windows]
    return pd.DataFrame(rows, index=steps, columns=["mean", "low", "high"])


def _by_estimate(metrics: pd.DataFrame, kinds: tuple[str, ...] = (*SCORES, "change")) -> dict[str, dict[str, Interval]]:
    """The intervals of `quality`, by estimate and kind; what is undefined is missing."""
    table: dict[str, dict[str, Interval]] = {}
    for name in ESTIMATES:
        for score in kinds:
            interval = _over_seeds(metrics, f"probe/{score}/{name}")
            if interval is not None:
                table.setdefault(name, {})[score] = interval
    return table


def _over_seeds(metrics: pd.DataFrame, column: str) -> Interval | None:
    """Mean over rollouts, then over a seed's methods, with an interval over seeds; None where nothing is defined."""
    if column not in metrics or metrics[column].dropna().empty:
        return None
    runs = metrics.groupby(["arm", "seed"])[column].mean()
    return interval_over_seeds(runs.groupby("seed").mean().dropna())


def _cost(metrics: pd.DataFrame) -> tuple[float, float]:
    """Mean seconds of the probe a rollout, and their share of sampling, scoring and updates (the probe is in these)."""
    names = ["time/probe_seconds", *_STEP_SECONDS]
    rows = metrics.reindex(columns=names).dropna()
    whole = float(rows[list(_STEP_SECONDS)].sum().sum())
    if not whole:
        return float("nan"), float("nan")
    return float(rows["time/probe_seconds"].mean()), float(rows["time/probe_seconds"].sum()) / whole

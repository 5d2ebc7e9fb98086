"""The figures of a comparison. One function a figure, each `(comparison) -> Figure`, drawn from whatever is there.

An arm has one colour and one marker in every figure, by its place in the plan. A thin line is a
seed; a thick line is the mean over the seeds that have come furthest, so that it never jumps where
a seed ends. No figure leaves a trace in matplotlib's global settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from steer_core.common.errors import SteerError
from steer_core.common.plot_style import (
    ARM_COLOURS,
    ARM_MARKERS,
    MUTED,
    STYLE,
    draw_lines,
    hide,
    label,
    panels,
    plain,
    styled,
    thinned,
)
from steer_core.compare.comparison import Comparison
from steer_core.compare.report.probes import estimates_figure
from steer_core.formulas.entropy_change import QUADRANTS

QUADRANT_NAMES = {
    "positive_likely": "A>0, likely",
    "positive_unlikely": "A>0, unlikely",
    "negative_likely": "A<0, likely",
    "negative_unlikely": "A<0, unlikely",
}
_QUADRANT_LOOKS = {
    "positive_likely": ("#b35806", "-"),
    "positive_unlikely": ("#8073ac", "-"),
    "negative_likely": ("#542788", "--"),
    "negative_unlikely": ("#e08214", "--"),
}


@styled
def collapse_figure(comparison: Comparison) -> Figure:
    """Entropy collapse at one glance: held-out entropy (nats a token), pass@1 and pass@<largest k> over rollouts.

    The base model is step 0, and its level the dotted line. Raises SteerError where nothing has been evaluated.
    """
    curves, largest = _curves(comparison), comparison.largest_k
    quantities = [("policy_entropy", "Entropy", "nats / token"), ("pass@1", "pass@1", "share of held-out problems")]
    if largest > 1:
        quantities.append((f"pass@{largest}", f"pass@{largest}", ""))
    figure, axes = panels(1, len(quantities), height=2.5)
    for axis, (column, title, unit) in zip(axes.flat, quantities, strict=True):
        _draw_arms(axis, comparison, curves, column, markers=True)
        base = curves[curves.step == 0][column]
        if len(base):
            axis.axhline(base.iloc[0], color=MUTED, lw=0.8, ls=(0, (1, 1.5)), zorder=1, label="_base")
        label(axis, title, "rollout", unit)
    _legend(figure, comparison, curves, markers=True)
    return figure


@styled
def training_figure(comparison: Comparison) -> Figure:
    """Policy entropy while sampling (nats a token) and mean reward, over rollouts.

    Raises SteerError where no rollout has been logged.
    """
    metrics = thinned(_with_column(comparison.metrics, "entropy/policy", "no rollout has been logged yet"))
    figure, axes = panels(1, 2, height=2.5)
    for axis, column, title, unit in zip(
        axes.flat,
        ("entropy/policy", "reward/mean"),
        ("Policy entropy while training", "Reward"),
        ("entropy (nats / token)", "mean reward of a response"),
        strict=True,
    ):
        _draw_arms(axis, comparison, metrics, column)
        label(axis, title, "rollout", unit)
    _legend(figure, comparison, metrics)
    return figure


@styled
def heldout_figure(comparison: Comparison) -> Figure:
    """Held-out pass@k over rollouts, one panel for each k of the plan; the base model is step 0.

    Raises SteerError where nothing has been evaluated.
    """
    curves = _curves(comparison)
    columns = min(len(comparison.ks), 3)
    figure, axes = panels(-(-len(comparison.ks) // columns), columns, height=2.5)
    for axis, k in zip(axes.flat, comparison.ks, strict=False):
        _draw_arms(axis, comparison, curves, f"pass@{k}", markers=True)
        label(axis, f"pass@{k}", "rollout", "share of held-out problems" if axis in axes[:, 0] else "")
    hide(axes, len(comparison.ks))
    _legend(figure, comparison, curves, markers=True)
    return figure


@styled
def trade_figure(comparison: Comparison) -> Figure:
    """What pass@1 is bought with: pass@<largest k> and held-out entropy (nats a token) against pass@1.

    Every evaluation of every run is a point, joined along the run; the last of a finished run is
    large. The vertical line is `common_level`. Raises SteerError where nothing has been evaluated.
    """
    curves = _curves(comparison)
    largest, level, final = comparison.largest_k, comparison.common_level(), comparison.final()
    quantities = [("policy_entropy", "Entropy against pass@1", "entropy (nats / token)")]
    if largest > 1:
        quantities.insert(0, (f"pass@{largest}", f"pass@{largest} against pass@1", f"pass@{largest}"))
    figure, axes = panels(1, len(quantities), height=2.9)
    for axis, (column, title, unit) in zip(axes.flat, quantities, strict=True):
        for arm, seed, run in _runs(comparison, curves):
            ended = ((final.arm == arm) & (final.seed == seed)).any()
            _draw_trade(axis, run, column, look(comparison, arm), f"_{arm} {seed}", ended)
        base = curves[curves.step == 0]
        if len(base):
            at = (base["pass@1"].iloc[0], base[column].iloc[0])
            axis.plot(*at, "*", color="white", ms=10, mec=ARM_COLOURS[0], mew=0.9, label="_base", zorder=4)
            axis.annotate("base", at, (7, 0), textcoords="offset points", fontsize=7.5, color=MUTED, va="center")
        if np.isfinite(level):
            axis.axvline(level, color=MUTED, lw=0.9, ls=(0, (4, 3)), zorder=1, label="_common level")
            place = {"ha": "right", "va": "top", "rotation": 90, "fontsize": 7, "color": MUTED}
            text, at = f"common level {level:.3f}", axis.get_xaxis_transform()
            axis.annotate(text, (level, 1), (-3, -2), at, "offset points", **place)
        label(axis, title, "pass@1", unit, whole=False)
    _legend(figure, comparison, curves, markers=True)
    return figure


def _draw_trade(axis: Axes, run: pd.DataFrame, column: str, looks: tuple[str, str], name: str, ended: bool) -> None:
    """The evaluations of a run in the order of training; `ended`: with a large point for the last."""
    colour, marker = looks
    trained, last = run[run.step > 0], run.iloc[[-1]]
    axis.plot(run["pass@1"], run[column], color=colour, lw=0.6, alpha=0.3, label=f"{name} path")
    axis.plot(trained["pass@1"], trained[column], marker, color=colour, ms=3.2, mew=0, alpha=0.6, label=name)
    if ended:
        axis.plot(last["pass@1"], last[column], marker, color=colour, ms=6, mec="white", mew=0.7, label="_final")


@styled
def quadrants_figure(comparison: Comparison) -> Figure:
    """Predicted change of the mean entropy (nats a rollout) by quadrant over rollouts, one panel an arm.

    Predicted by the form each arm weights with (plain arms: the paper's), for plain gradient steps.
    Raises SteerError where no rollout has been logged.
    """
    forms = {arm: quadrant_form(comparison, arm) for arm in comparison.plan.arms}
    arms = [arm for arm in forms if len(_quadrant_rows(comparison, arm))]
    if not arms:
        raise SteerError("no rollout has been logged yet; train before drawing quadrants")
    columns = len(arms) if len(arms) <= 3 else 2 if len(arms) == 4 else 3
    names = {f"entropy_change/{forms[arm]}/{name}" for arm in arms for name in QUADRANTS}
    reach = comparison.metrics[sorted(names)].abs().max().max()
    power = int(np.floor(np.log10(reach))) if reach > 0 else 0
    unit = f"$10^{{{power}}}$ nats / rollout"
    figure, axes = panels(-(-len(arms) // columns), columns, height=2.1, sharex=True, sharey=True)
    for axis, arm in zip(axes.flat, arms, strict=False):
        rows = _quadrant_rows(comparison, arm)
        axis.axhline(0, color=MUTED, lw=0.7, zorder=1, label="_zero")
        for name in QUADRANTS:
            colour, style = _QUADRANT_LOOKS[name]
            draw_lines(axis, thinned(rows), f"entropy_change/{forms[arm]}/{name}", colour, name, style=style)
        form = f" ({forms[arm]} form)" if len(set(forms.values())) > 1 else ""
        lowest = arms.index(arm) + columns >= len(arms)
        label(
            axis, plain(comparison.label(arm)) + form, "rollout" if lowest else "", unit if axis in axes[:, 0] else ""
        )
        axis.tick_params(labelbottom=lowest)
        axis.title.set_color(look(comparison, arm)[0])
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y / 10**power:.3g}".replace("-", "\u2212")))
    hide(axes, len(arms))
    handles = [Line2D([], [], color=colour, ls=style, lw=1.6) for colour, style in _QUADRANT_LOOKS.values()]
    figure.legend(handles, list(QUADRANT_NAMES.values()), loc="outside lower center", ncols=4)
    return figure


@styled
def weights_figure(comparison: Comparison) -> Figure:
    """The distribution of lambda: share of response tokens at or below each value, by weighted arm.

    Drawn through the logged quantiles, averaged over seeds and rollouts; the legend states the
    share of tokens within 1% of 1. Plain arms are the line at 1. Raises SteerError where no
    weighted arm has logged a rollout.
    """
    arms = [arm for arm in comparison.plan.arms if len(_arm_rows(comparison.metrics, arm))]
    quantiles = {arm: lambda_quantiles(comparison, arm) for arm in arms}
    weighted = [arm for arm in arms if quantiles[arm].min() < 1]
    if not weighted:
        raise SteerError("no weighted arm has logged a rollout: every weight is 1 and there is nothing to draw")
    figure, axes = panels(1, 1, height=2.7, width=4.6)
    axis, handles, names = axes[0, 0], [], []
    for arm in weighted:
        colour, marker = look(comparison, arm)
        values, share = quantiles[arm], _arm_rows(comparison.metrics, arm)["lambda/share_within_1pct_of_1"].mean()
        values = _through_share(values, share)
        line = axis.plot(
            values.to_numpy(), values.index.to_numpy(), color=colour, marker=marker, ms=3.5, lw=1.6, label=arm
        )
        handles += line
        names.append(f"{plain(comparison.label(arm))}: {share:.0%} within 1% of 1")
    unweighted = [arm for arm in arms if arm not in weighted]
    if unweighted:
        handles.append(axis.axvline(1, color=MUTED, lw=1, ls=(0, (1, 1.5)), label="plain"))
        names.append(f"all weights 1: {'; '.join(plain(comparison.label(arm)) for arm in unweighted)}")
    axis.set_ylim(-0.02, 1.02)
    label(axis, "", "weight λ of a token", "share of tokens at or below", whole=False)
    figure.legend(handles, names, loc="outside lower center", ncols=1)
    return figure


FIGURES: dict[str, Callable[[Comparison], Figure]] = {
    "collapse": collapse_figure,
    "training": training_figure,
    "heldout": heldout_figure,
    "trade": trade_figure,
    "quadrants": quadrants_figure,
    "estimates": estimates_figure,
    "weights": weights_figure,
}
"""Every figure by name, in the order of the report."""


def save_figures(comparison: Comparison, folder: Path, names: Iterable[str] = FIGURES) -> dict[str, Path]:
    """Write every named figure that can be drawn as PNG (200 dpi) and SVG; the PNG's path by name, the SVG beside it.

    Raises SteerError where nothing at all can be drawn.
    """
    paths: dict[str, Path] = {}
    for name in names:
        try:
            figure = FIGURES[name](comparison)
        except SteerError:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        paths[name] = folder / f"{name}.png"
        with matplotlib.rc_context(STYLE):
            figure.savefig(paths[name], dpi=200)
            figure.savefig(paths[name].with_suffix(".svg"), metadata={"Date": None})
    if not paths:
        raise SteerError("figures: no run has logged a rollout or an evaluation yet; train first")
    return paths


def look(comparison: Comparison, arm: str) -> tuple[str, str]:
    """The colour and marker of an arm, by its place in the plan: the same in every figure and table."""
    place = list(comparison.plan.arms).index(arm)
    marker = ARM_MARKERS[place % len(ARM_MARKERS)]
    if len(comparison.plan.arms) <= len(ARM_COLOURS):
        return ARM_COLOURS[place], marker
    return sns.color_palette("husl", len(comparison.plan.arms)).as_hex()[place], marker


def quadrant_form(comparison: Comparison, arm: str) -> str:
    """The form that an arm's quadrants are logged under: the one it weights with, or the paper's."""
    return getattr(comparison.plan.config(arm, comparison.plan.seeds[0]).intervention, "form", "paper")


def lambda_quantiles(comparison: Comparison, arm: str) -> pd.Series:
    """lambda by share of tokens (0 to 1), mean over the seeds and rollouts of an arm."""
    rows = _arm_rows(comparison.metrics, arm)
    names = [name for name in rows.columns if name.startswith("lambda/q")]
    values = rows[names].mean()
    return pd.Series(values.to_numpy(), [float(name.removeprefix("lambda/q")) / 100 for name in names]).sort_index()


def _through_share(values: pd.Series, share: float) -> pd.Series:
    """The quantiles with the point (0.99, share of tokens below it), where it keeps them in order."""
    longer = pd.concat([values, pd.Series([0.99], [1 - share])]).sort_index()
    return longer if longer.is_monotonic_increasing and longer.index.is_unique else values


def _with_column(frame: pd.DataFrame, column: str, why: str) -> pd.DataFrame:
    if column not in frame or frame[column].dropna().empty:
        raise SteerError(f"{why}; there is nothing to draw")
    return frame


def _curves(comparison: Comparison) -> pd.DataFrame:
    return thinned(_with_column(comparison.curves(), "pass@1", "nothing has been evaluated yet"))


def _arm_rows(frame: pd.DataFrame, arm: str) -> pd.DataFrame:
    return frame[frame.arm == arm]


def _quadrant_rows(comparison: Comparison, arm: str) -> pd.DataFrame:
    rows, form = _arm_rows(comparison.metrics, arm), quadrant_form(comparison, arm)
    missing = [name for name in QUADRANTS if f"entropy_change/{form}/{name}" not in rows]
    return rows.iloc[:0] if missing else rows


def _runs(comparison: Comparison, frame: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    """(arm, seed, rows by step) of every run, in the plan's order."""
    return [
        (arm, seed, rows.sort_values("step"))
        for arm in comparison.plan.arms
        for seed, rows in _arm_rows(frame, arm).groupby("seed")
    ]


def _draw_arms(axis: Axes, comparison: Comparison, frame: pd.DataFrame, column: str, markers: bool = False) -> None:
    for arm in comparison.plan.arms:
        colour, marker = look(comparison, arm)
        draw_lines(axis, _arm_rows(frame, arm), column, colour, arm, marker=marker if markers else None)


def _legend(figure: Figure, comparison: Comparison, frame: pd.DataFrame, markers: bool = False) -> None:
    """One legend below the panels: the arms that `frame` has rows of."""
    arms = [arm for arm in comparison.plan.arms if (frame.arm == arm).any()]
    handles, names = [], []
    for arm in arms:
        colour, marker = look(comparison, arm)
        handles.append(
            Line2D([], [], color=colour, lw=1.6, marker=marker if markers else None, ms=5, mec="white", mew=0.6)
        )
        names.append(plain(comparison.label(arm)))
    fitting = next((n for n in (4, 3, 2) if n * (max(map(len, names)) + 6) <= 110), 1)
    rows = -(-len(arms) // fitting)
    figure.legend(handles, names, loc="outside lower center", ncols=-(-len(arms) // rows))

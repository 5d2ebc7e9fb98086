"""The page of a table at scales `smoke`, `paper` and `paper-1gpu`: published scores beside those obtained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from pipeline.arms import HERE, pool
from pipeline.catalogue import Item
from pipeline.page import head
from pipeline.stages import SCALE, runs_of
from steer_core.common.files import write_atomically
from steer_core.common.plot_style import ARM_COLOURS, label, panels, plain, styled
from steer_core.common.tables import markdown_table
from steer_core.evaluation.tables import published_scores
from steer_core.stats.intervals import NO_WIDTH, interval_over_seeds_and_problems

RULE = (
    "The interval beside an obtained score is 95% over seeds and problems. Published and obtained share their "
    "problems, so what tells them apart is training: its spread is that of the seeds' means, pooled over the methods "
    "of the table, and counts for our seeds and for the two that the paper averages (it gives none). A published score "
    "is inside where the 95% Student t interval of the difference holds 0. Seeds that agree exactly, or one seed, "
    "decide nothing; a score of some of the problems is not comparable."
)
PUBLISHED_SEEDS = 2
REPLICATION = HERE / "published" / "replication.tsv"
"""Scores of an independent replication, in the columns of the published ones."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Spread:
    """Variance of a seed's mean score (shares, squared), pooled over methods, with its degrees of freedom."""

    variance: float
    freedom: int


def spread_of(scores: list[np.ndarray]) -> Spread:
    """The pooled spread of some methods' scores, (seeds, problems) each; no freedom where none has two seeds."""
    several = [shares.mean(1) for shares in scores if len(shares) > 1]
    freedom = sum(len(means) - 1 for means in several)
    squares = sum(float(np.square(means - means.mean()).sum()) for means in several)
    return Spread(squares / freedom if freedom else np.nan, freedom)


def compared(shares_SQ: np.ndarray, published: float | None, whole: bool, spread: Spread) -> tuple[str, str]:
    """(difference with its 95% interval, verdict) of an obtained score beside a published one in percent; see RULE."""
    if published is None:
        return "", "not known"
    if not whole:
        return "", "not comparable"
    difference = 100 * float(shares_SQ.mean()) - published
    if not spread.freedom or spread.variance <= NO_WIDTH**2:
        return f"{difference:+.1f}", "not decided"
    error = 100 * np.sqrt(spread.variance * (1 / len(shares_SQ) + 1 / PUBLISHED_SEEDS))
    half = float(stats.t.ppf(0.975, spread.freedom)) * error
    told = f"{difference:+.1f} ± {error:.1f} [{difference - half:+.1f}, {difference + half:+.1f}]"
    return told, "inside" if abs(difference) <= half else "outside"


def score_page(name: str, item: Item, scale: str, rows: Rows, out: Path) -> None:
    """Write NAME.md and NAME.png; rows as `stages.row_of` makes them, of one rule of choosing."""
    out.mkdir(parents=True, exist_ok=True)
    told_by = {"published": published_scores(), "replication": pd.read_csv(REPLICATION, sep="\t", comment="#")}
    labels = {arm: one.label for arm, one in pool().arms.items()}
    parts = [
        f"# {item.title}, scale {scale}",
        head(name, item, scale),
        SCALE[scale].told,
        "## Published beside obtained",
    ]
    lines, spreads = [], spreads_of(rows, item)
    for model in item.paper.models():
        for arm, method in item.arms.items():
            own = [row for row in rows if row["model"] == model and row["arm"] == arm]
            lines += score_lines(own, item, model, labels[arm], method, told_by, spreads)
    columns = ("model", "method", "problems", *told_by, "obtained", "difference to published ± s.e.", "verdict")
    parts += [markdown_table(columns, lines), RULE]
    if rows:
        drawn(rows, labels).savefig(out / f"{name}.png", dpi=150)
        parts.append(f"![Entropy over training]({name}.png)")
    parts += [referee(item, scale, rows), where(rows, labels)]
    benchmarks = " ".join(item.paper.benchmarks)
    for told, path in item.paper.scored.items():
        command = f"steer evaluate {path} --benchmarks {benchmarks} {' '.join(SCALE['paper'].evaluate)}"
        parts.append(f"{told} is a released model, which the table evaluates. Not evaluated yet: `{command}`.")
    write_atomically(out / f"{name}.md", "\n\n".join(parts) + "\n")


def shares_of(rows: Rows, benchmark: str) -> np.ndarray:
    """Right shares (seeds, problems) of some runs on a problem set."""
    held = [row["benchmarks"][benchmark] for row in rows if benchmark in row["benchmarks"]]
    return np.array([np.array(one["correct"]) / one["samples"] for one in held])


def spreads_of(rows: Rows, item: Item) -> dict[tuple[str, str], Spread]:
    """The pooled spread of seeds by (model, problem set)."""
    found = {}
    for model in item.paper.models():
        for benchmark in item.paper.benchmarks:
            own = [[row for row in rows if (row["model"], row["arm"]) == (model, arm)] for arm in item.arms]
            found[model, benchmark] = spread_of([shares_of(one, benchmark) for one in own if one])
    return found


def score_of(scores: pd.DataFrame, table: str | None, model: str, method: str | None, benchmark: str) -> float | None:
    """What others report in percent; None where it is not known."""
    own = scores[(scores.table == table) & (scores.method == method) & (scores.benchmark == benchmark)]
    own = own[own.model.str.lower().str.startswith(model)]
    return float(own.percent.iloc[0]) if len(own) else None


def score_lines(
    own: Rows,
    item: Item,
    model: str,
    arm: str,
    method: str | None,
    told_by: dict[str, pd.DataFrame],
    spreads: dict[tuple[str, str], Spread],
) -> list[list[str]]:
    """A line a problem set, of one model and method."""
    lines = []
    for benchmark in item.paper.benchmarks:
        known = {by: score_of(scores, item.published, model, method, benchmark) for by, scores in told_by.items()}
        cells = [model, arm, benchmark, *("-" if one is None else f"{one:.1f}" for one in known.values())]
        shares = shares_of(own, benchmark)
        if not len(shares):
            lines.append([*cells, "not run", "", ""])
            continue
        whole = all(row["benchmarks"][benchmark]["whole"] for row in own)
        found = interval_over_seeds_and_problems(100 * shares)
        obtained = f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"
        lines.append([*cells, obtained, *compared(shares, known["published"], whole, spreads[model, benchmark])])
    return lines


@styled
def drawn(rows: Rows, labels: dict[str, str]) -> Figure:
    """Entropy over training, a line a run."""
    figure, axes = panels(1, 1, height=2.6, width=5.2)
    axis = axes.flat[0]
    for i, arm in enumerate(dict.fromkeys(row["arm"] for row in rows)):
        for j, row in enumerate(one for one in rows if one["arm"] == arm):
            steps = range(1, len(row["entropy"]) + 1)
            name = plain(labels[arm]) if j == 0 else None
            axis.plot(steps, row["entropy"], color=ARM_COLOURS[i % len(ARM_COLOURS)], lw=1.2, label=name)
    label(axis, "Entropy of the policy", "rollout", "nats / token")
    axis.legend()
    return figure


def referee(item: Item, scale: str, rows: Rows) -> str:
    """What a referee would ask."""
    seeds = sorted({row["seed"] for row in rows})
    hours = sum(stage["seconds"] for row in rows for stage in row["stages"].values()) / 3600
    machines = sorted({f"{row['environment']['cores']} cores of an {row['environment']['processor']}, GPU "
                       f"{row['environment']['gpu'] or 'none'}" for row in rows})  # fmt: skip
    answers = {
        "runs": f"{len(rows)} of {len(runs_of(item))}",
        "seeds": ", ".join(map(str, seeds)) or "none",
        "grader": ", ".join(sorted({one["grader"] for row in rows for one in row["benchmarks"].values()})) or "none",
        "selection": ", ".join(sorted({f"{row['select']} (step {row['step']})" for row in rows})) or "none",
        "caution": "choosing a checkpoint on a test set lifts its score: by 0.011 to 0.017 in a replication",
        "compute": f"{hours:.1f} hours on {'; '.join(machines) or 'no machine yet'}",
    }
    return "## What a referee would ask\n\n" + "\n".join(f"- **{name}**: {text}." for name, text in answers.items())


def where(rows: Rows, labels: dict[str, str]) -> str:
    """Where every number comes from."""
    cells = [
        [row["model"], labels[row["arm"]], str(row["seed"]), (row["environment"]["git_commit"] or "unknown")[:7],
         (row["environment"]["date"] or "unknown")[:10], f"`{row['stages'][next(iter(row['stages']))]['command']}`"]
        for row in rows
    ]  # fmt: skip
    told = "Raw rows (right responses by problem, entropy by rollout, stages with commands): the .json.xz beside it."
    return f"## Where the numbers come from\n\n{told}\n\n" + markdown_table(
        ("model", "method", "seed", "commit", "date", "first command"), cells
    )

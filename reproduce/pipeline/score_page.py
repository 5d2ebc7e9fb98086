"""The page of a table at scales `smoke`, `paper` and `paper-1gpu`: published scores beside those obtained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from pipeline.arms import pool
from pipeline.catalogue import Item
from pipeline.page import head
from pipeline.stages import SCALE, runs_of
from steer_core.common.files import write_atomically
from steer_core.common.plot_style import ARM_COLOURS, label, panels, plain, styled
from steer_core.common.tables import markdown_table
from steer_core.evaluation.tables import published_scores

RULE = (
    "The error beside an obtained score covers seeds and problems. Published and obtained share their problems, "
    "so the standard error of the difference is of training alone: the spread of our seeds, for ours and for the two "
    "seeds that the paper averages (it gives none). A published score is inside where the 95% Student t interval of "
    "the difference holds 0. One seed decides nothing, and a score of some of the problems is not comparable."
)
PUBLISHED_SEEDS = 2
Rows = list[dict[str, Any]]


def error_of(shares_SQ: np.ndarray) -> float:
    """Standard error of the mean over seeds and problems; the problems' part alone for one seed."""
    seeds, problems = shares_SQ.shape
    of_problems = shares_SQ.mean(0).var(ddof=1) / problems if problems > 1 else np.nan
    of_seeds = shares_SQ.mean(1).var(ddof=1) / seeds if seeds > 1 else 0.0
    return float(np.sqrt(of_problems + of_seeds))


def compared(shares_SQ: np.ndarray, published: float | None, whole: bool) -> dict[str, Any]:
    """An obtained score beside a published one, in percent: difference, its standard error, the verdict; see RULE."""
    mean, seeds = 100 * float(shares_SQ.mean()), len(shares_SQ)
    found: dict[str, Any] = {
        "mean": mean,
        "error": 100 * error_of(shares_SQ),
        "difference": None,
        "of_difference": None,
    }
    if published is None:
        return found | {"verdict": "not known"}
    if not whole:
        return found | {"verdict": "not comparable"}
    found["difference"] = mean - published
    if seeds < 2:
        return found | {"verdict": "not decided (one seed)"}
    found["of_difference"] = 100 * float(shares_SQ.mean(1).std(ddof=1)) * np.sqrt(1 / seeds + 1 / PUBLISHED_SEEDS)
    inside = abs(found["difference"]) <= stats.t.ppf(0.975, seeds - 1) * found["of_difference"]
    return found | {"verdict": "inside" if inside else "outside"}


def score_page(name: str, item: Item, scale: str, rows: Rows, out: Path) -> None:
    """Write NAME.md, NAME.json of its numbers and NAME.png; rows as `stages.row_of` makes them."""
    out.mkdir(parents=True, exist_ok=True)
    published = published_scores()
    labels = {arm: one.label for arm, one in pool().arms.items()}
    parts = [
        f"# {item.title}, scale {scale}",
        head(name, item, scale),
        SCALE[scale].told,
        "## Published beside obtained",
    ]
    lines = []
    for model in item.paper.models():
        for arm, method in item.arms.items():
            own = [row for row in rows if row["model"] == model and row["arm"] == arm]
            lines += score_lines(own, item, model, labels[arm], method, published)
    columns = ("model", "method", "problems", "published", "obtained", "difference", "s.e.", "verdict")
    parts += [markdown_table(columns, lines), RULE]
    if rows:
        drawn(rows, labels).savefig(out / f"{name}.png", dpi=150)
        parts.append(f"![Entropy over training]({name}.png)")
    parts += [referee(item, scale, rows), where(rows, labels)]
    for told, path in (item.paper.scored or {}).items():
        parts.append(
            f"{told} is evaluated as released, not trained: `steer evaluate {path} --benchmarks ...` on its folder."
        )
    write_atomically(out / f"{name}.md", "\n\n".join(parts) + "\n")


def score_lines(own: Rows, item: Item, model: str, arm: str, method: str | None, published: Any) -> list[list[str]]:
    """A line a problem set, of one model and method."""
    lines = []
    for benchmark in item.paper.benchmarks:
        scores = published[
            (published.table == item.published) & (published.method == method) & (published.benchmark == benchmark)
            & published.model.str.lower().str.startswith(model)
        ]  # fmt: skip
        known = float(scores.percent.iloc[0]) if len(scores) else None
        cells = [model, arm, benchmark, "-" if known is None else f"{known:.1f}"]
        held = [row["benchmarks"][benchmark] for row in own if benchmark in row["benchmarks"]]
        if not held:
            lines.append([*cells, "not run", "", "", ""])
            continue
        shares = np.array([np.array(one["correct"]) / one["samples"] for one in held])
        found = compared(shares, known, all(one["whole"] for one in held))
        difference = "" if found["difference"] is None else f"{found['difference']:+.1f}"
        error = "" if found["of_difference"] is None else f"{found['of_difference']:.1f}"
        lines.append([*cells, f"{found['mean']:.1f} ± {found['error']:.1f}", difference, error, found["verdict"]])
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

"""The page of a table or figure at a scale: what the paper shows, published beside obtained, verdicts, and the runs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pipeline import figures
from pipeline.arms import PLAN
from pipeline.catalogue import Item
from pipeline.measures import Rows, Verdict, interval, judge, values
from steer_core.common.files import write_atomically
from steer_core.common.tables import markdown_table
from steer_core.evaluation.tables import published_scores
from steer_core.stats.intervals import Interval, digits_of

RULE = (
    "A claim holds or fails where its 95% interval lies on one side of 0; with fewer than two seeds it is undecided. "
    "Intervals of pass@k cover seeds and problems (problems alone with one seed), those of entropy seeds. They are not "
    "corrected for the number of claims over all tables: one in twenty would be decided by chance. `ours`: the paper "
    "does not say it in these words; it is our reading of what it argues for."
)


def published_mean(table: str | None, model: str | None, method: str | None) -> str:
    """The paper's mean over its problem sets, in percent; empty where it is not known."""
    if table is None or method is None:
        return ""
    scores = published_scores()
    own = scores[(scores.table == table) & (scores.method == method)]
    if model is not None:
        own = own[own.model.str.lower().str.startswith(model)]
    return f"{own.percent.mean():.1f}" if len(own) else "not known"


def with_bounds(found: Interval, signed: bool = False) -> str:
    """A mean and its interval where it has one."""
    digits = digits_of(found.low, found.high) if signed and found.low == found.low else 3
    sign = "+" if signed else ""
    mean = f"{found.mean:{sign}.{digits}f}"
    return mean if found.low != found.low else f"{mean} [{found.low:{sign}.{digits}f}, {found.high:{sign}.{digits}f}]"


def laptop_page(name: str, item: Item, about: dict[str, Any], rows: Rows, out: Path) -> list[Verdict]:
    """Write NAME.md and NAME.png of the runs that are there; the verdicts on its claims."""
    base, labels = about["base"], {arm: one["label"] for arm, one in about["plan"]["arms"].items()}
    runs = {arm: own for arm in item.arms if (own := [row for row in rows if row["arm"] == arm])}
    verdicts = [judge(claim, runs, base) for claim in item.claims]
    parts = [f"# {item.title}", head(name, item, "laptop"), *verdict_lines(verdicts)]
    figure = drawn(item, runs, labels, base)
    if figure is not None:
        figure.savefig(out / f"{name}.png", dpi=150)
        parts.append(f"![{item.title}]({name}.png)")
    if runs:
        parts.append(table(item, runs, labels, base))
    lacking = [labels.get(arm, arm) for arm in item.arms if arm not in runs]
    if lacking:
        parts.append(f"Not run yet: {', '.join(lacking)}.")
    parts += [questions(about, runs), provenance(about, runs, labels)]
    write_atomically(out / f"{name}.md", "\n\n".join(part for part in parts if part) + "\n")
    return verdicts


def head(name: str, item: Item, scale: str) -> str:
    """What the paper shows, how the page was made, and what could not be learned."""
    lines = [f"The paper shows: {item.shows}", f"Made by `python -m reproduce {name} --scale {scale}`."]
    lines += [item.note] if item.note else []
    return "\n\n".join([*lines, *([f"Not known to us: {item.unknown}"] if item.unknown else [])])


def verdict_lines(verdicts: list[Verdict]) -> list[str]:
    """The claims and what they come to, as a table, and the rule."""
    if not verdicts:
        return []
    cells = [
        [
            v.claim.text,
            v.claim.source,
            v.claim.measure,
            "" if v.found is None else with_bounds(v.found, True),
            str(v.seeds),
            v.told(),
        ]
        for v in verdicts
    ]
    return ["## Claims, by these runs",
            markdown_table(("claim", "source", "measure", "difference", "seeds", "verdict"), cells), RULE]  # fmt: skip


def drawn(item: Item, runs: dict[str, Rows], labels: dict[str, str], base: dict[str, Any]) -> Figure | None:
    """The item's figure: dots for scores, lines for curves, pass@k by k of final evaluations; None without data."""
    if item.final:
        finals = {arm: ended for arm, own in runs.items() if (ended := [row for row in own if row["final"]])}
        return figures.pass_curves(finals, labels) if finals else None
    if not runs:
        return None
    return (
        figures.dots(runs, labels, base, baseline_of(item))
        if item.kind == "scores"
        else figures.curves(runs, labels, base)
    )


def baseline_of(item: Item) -> str:
    """The arm that differences are from."""
    return item.baseline or next(iter(item.arms))


def table(item: Item, runs: dict[str, Rows], labels: dict[str, str], base: dict[str, Any]) -> str:
    """Every arm at the end, beside the published mean of its method; differences are from the item's baseline."""
    model, first = item.paper.model if item.paper else None, baseline_of(item)
    columns = ["method", "pass@1", "pass@32", "entropy", f"pass@1 minus {labels[first]}", "seeds"]
    ks = [int(k) for k in (item.final or {}).get("pass_at", ())]
    lines = []
    for arm, rows in runs.items():
        cells = [labels[arm], *(with_bounds(interval(values(rows, m, base))) for m in ("pass@1", "pass@32", "entropy"))]
        plain = runs.get(first, [])
        shared = {row["seed"] for row in rows} & {row["seed"] for row in plain}
        against = ""
        if arm != first and shared:
            pair = [[row for row in own if row["seed"] in shared] for own in (rows, plain)]
            against = with_bounds(interval(values(pair[0], "pass@1", base) - values(pair[1], "pass@1", base)), True)
        finals = [row for row in rows if row["final"]]
        tail = [with_bounds(interval(values(finals, f"final pass@{k}", base))) if finals else "" for k in ks]
        beside = [published_mean(item.published, model, item.arms[arm]) or "-"] if item.published else []
        lines.append([*cells, against, str(len(rows)), *tail, *beside])
    columns += [f"last policy, pass@{k}" for k in ks] + (["the paper's mean, percent"] if item.published else [])
    start = [
        "base model", *(f"{base[name]:.3f}" for name in ("pass@1", "pass@32", "policy_entropy")), "", "",
        *([""] * (len(columns) - 6)),
    ]  # fmt: skip
    told = markdown_table(columns, [start, *lines])
    beside = "The paper's numbers are of other models and problems: at this scale only the claims compare."
    return f"{told}\n\n{beside}" if item.published else told


def questions(about: dict[str, Any], runs: dict[str, Rows]) -> str:
    """What a referee would ask: seeds, selection, problems and samples, error bars, compute, failures."""
    common, environment = about["plan"]["common"], about["environment"]
    evaluation, seeds = common["evaluation"], sorted({row["seed"] for own in runs.values() for row in own})
    hours = sum(training_seconds(row) for own in runs.values() for row in own) / 3600
    answers = {
        "seeds": f"{', '.join(map(str, seeds)) or 'none yet'}; planned: {', '.join(map(str, about['plan']['seeds']))}",
        "training": f"{common['train']['rollouts']} rollouts on Countdown with the embedded model",
        "selection": "none: every run's last policy; nothing was tuned",
        "evaluation": f"{evaluation['problems']} problems of split {evaluation['split']} x {evaluation['samples']} "
        "samples, temperature 1; the same problems for every arm and seed",
        "error bars": "95%: pass@k over seeds and problems (problems alone with one seed), entropy over seeds",
        "compute": f"{hours:.1f} hours of sampling and updates, one core a run of an {environment['processor']}, while "
        "other work ran on the machine",
        "failed runs": "a run that fails stops the command and is told, and is no row",
    }
    return "## What a referee would ask\n\n" + "\n".join(f"- **{name}**: {text}." for name, text in answers.items())


def provenance(about: dict[str, Any], runs: dict[str, Rows], labels: dict[str, str]) -> str:
    """Where every number comes from: raw rows, settings, commit, date and command."""
    environment, arms = about["environment"], about["plan"]["arms"]
    cells = [
        [labels[arm], " ".join(map(str, (row["seed"] for row in own))),
         f"`{shlex.join(arms[arm].get('overrides') or ['none'])}`", ", ".join(dict.fromkeys(map(ran, own)))]
        for arm, own in runs.items()
    ]  # fmt: skip
    lines = [
        "## Where the numbers come from",
        f"Raw rows: [runs.jsonl.xz](runs.jsonl.xz), a line a run (metrics of every rollout, right responses by "
        f"problem). Settings: [{PLAN.name}](../../{PLAN.name}). First run {environment['date'][:10]}, "
        f"{environment['cores']} cores of an {environment['processor']}.",
    ]
    if cells:
        lines.append(markdown_table(("method", "seeds", "settings beside the common ones", "commit, date"), cells))
    return "\n\n".join(lines)


def training_seconds(row: dict[str, Any]) -> float:
    """Seconds that a run sampled and updated."""
    return sum(map(sum, (row["metrics"].get(f"time/{part}_seconds", []) for part in ("rollout", "update"))))


def ran(row: dict[str, Any]) -> str:
    """The commit and day of a run."""
    found = row.get("environment") or {}
    return f"{(found.get('git_commit') or 'unknown')[:7]}, {(found.get('date') or 'unknown')[:10]}"

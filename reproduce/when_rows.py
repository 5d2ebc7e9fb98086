"""The raw rows of the experiment on when entropy matters: one line of JSON a run, compressed, beside the results."""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from steer_core.common.files import read_json, written_whole
from steer_core.common.settings import to_dict
from steer_core.compare.comparison import load_comparison
from steer_core.stats.pass_at_k import pass_at_k

LOGGED = (
    "entropy/policy",
    "reward/mean",
    "grad_norm/mean",
    "clip/high",
    "clip/low",
    "time/rollout_seconds",
    "time/update_seconds",
)
"""What is kept of every rollout's metrics, where a run has it."""
_LAST = 3
"""Evaluations at a run's end whose mean is its pass@1 on the plateau."""


def keep_rows(folder: Path, out: Path, setting: str, stage: str) -> None:
    """Write the rows of a stage, of its finished and unfinished runs, to OUT/SETTING-STAGE.jsonl.xz."""
    comparison = load_comparison(folder)
    metrics = (
        {key: rows for key, rows in comparison.metrics.groupby(["arm", "seed"])} if len(comparison.metrics) else {}
    )
    about = {
        "plan": to_dict(comparison.plan),
        "environment": comparison.environment,
        "base": comparison.base,
    }
    lines = [json.dumps(about)]
    for (arm, seed), rows in metrics.items():
        evaluations = comparison.evaluations
        own = evaluations[(evaluations.arm == arm) & (evaluations.seed == seed) & (evaluations.step > 0)]
        final = folder / "final" / f"{arm}-{seed}.json"
        row = {
            "arm": arm,
            "seed": int(seed),
            "finished": len(rows) == comparison.plan.config(arm, int(seed)).train.rollouts,
            "metrics": {name: [_short(x) for x in rows[name]] for name in LOGGED if name in rows},
            "evaluations": [
                {"step": int(e.step), "samples": int(e.samples), "entropy": e.policy_entropy, "correct": e.correct}
                for e in own.itertuples(index=False)
            ],
            "final": read_json(final, "final evaluation", "delete it and run again") if final.exists() else None,
        }
        lines.append(json.dumps(row, separators=(",", ":")))
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(rows_path(out, setting, stage)) as path:
        path.write_bytes(lzma.compress("\n".join(lines).encode() + b"\n"))


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def rows_path(out: Path, setting: str, stage: str) -> Path:
    """Where the rows of a stage lie."""
    return out / f"{setting}-{stage}.jsonl.xz"


def read_rows(out: Path, setting: str, stage: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(plan, environment and base model of a stage, a row a run); empty where it has not run."""
    path = rows_path(out, setting, stage)
    if not path.exists():
        return {}, []
    about, *rows = map(json.loads, lzma.decompress(path.read_bytes()).decode().splitlines())
    return about, rows


def whole_stage(out: Path, setting: str, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage that came to its end; none of one that did not, from which nothing may be chosen."""
    about, rows = read_rows(out, setting, stage)
    planned = len(about["plan"]["arms"]) * len(about["plan"]["seeds"]) if rows else 0
    return rows if sum(row["finished"] for row in rows) == planned else []


def curve(row: dict[str, Any], k: int) -> np.ndarray:
    """pass@k of a run's evaluations, in their order."""
    return np.array([pass_at_k(e["correct"], e["samples"], k).mean() for e in row["evaluations"]])


def plateau_pass1(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By arm, the mean over its runs of pass@1 over the last three evaluations of each."""
    ends = defaultdict(list)
    for row in rows:
        ends[row["arm"]].append(curve(row, 1)[-_LAST:].mean() if row["evaluations"] else np.nan)
    return {arm: float(np.mean(values)) for arm, values in ends.items()}

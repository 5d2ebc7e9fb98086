"""The raw rows of a comparison: its plan, then one line of JSON a run, compressed."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from steer_core.common.environment import read_environment
from steer_core.common.files import read_json, written_whole
from steer_core.common.settings import to_dict
from steer_core.compare.plan import run_path
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


def keep_rows(folder: Path, path: Path) -> None:
    """Write the rows of a comparison's finished and unfinished runs to a .jsonl.xz file."""
    from steer_core.compare.comparison import load_comparison  # brings torch, which a reader of rows does not need

    comparison = load_comparison(folder)
    metrics = (
        {key: rows for key, rows in comparison.metrics.groupby(["arm", "seed"])} if len(comparison.metrics) else {}
    )
    about = {
        "plan": to_dict(comparison.plan),
        "environment": comparison.environment,
        "base": comparison.base,
    }
    kept = []
    for (arm, seed), rows in metrics.items():
        evaluations = comparison.evaluations
        own = evaluations[(evaluations.arm == arm) & (evaluations.seed == seed) & (evaluations.step > 0)]
        final = folder / "final" / f"{arm}-{seed}.json"
        row = {
            "arm": arm,
            "seed": int(seed),
            "environment": _began(run_path(folder, str(arm), int(seed)) / "environment.json"),
            "finished": len(rows) == comparison.plan.config(arm, int(seed)).train.rollouts,
            "metrics": {name: [_short(x) for x in rows[name]] for name in LOGGED if name in rows},
            "evaluations": [
                {"step": int(e.step), "samples": int(e.samples), "entropy": e.policy_entropy, "correct": e.correct}
                for e in own.itertuples(index=False)
            ],
            "final": read_json(final, "final evaluation", "delete it and run again") if final.exists() else None,
        }
        kept.append(row)
    write_rows(path, about, kept)


def write_rows(path: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what `read_rows` reads."""
    lines = [json.dumps(about), *(json.dumps(row, separators=(",", ":")) for row in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_bytes(lzma.compress("\n".join(lines).encode() + b"\n"))


def _began(path: Path) -> dict[str, Any]:
    """When and from which commit a run began."""
    found = read_environment(path)
    return {name: found.get(name) for name in ("date", "git_commit")}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def read_rows(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(plan, environment and base model of a comparison, a row a run); empty where there is no file."""
    if not path.exists():
        return {}, []
    about, *rows = map(json.loads, lzma.decompress(path.read_bytes()).decode().splitlines())
    return about, rows


def curve(row: dict[str, Any], k: int) -> np.ndarray:
    """pass@k of a run's evaluations, in their order."""
    return np.array([pass_at_k(e["correct"], e["samples"], k).mean() for e in row["evaluations"]])


def read_scores(path: Path) -> list[dict[str, Any]]:
    """The raw rows of an item at a scale of the paper; none before the first run."""
    return json.loads(lzma.decompress(path.read_bytes())) if path.exists() else []


def write_scores(path: Path, rows: list[dict[str, Any]]) -> None:
    """What `read_scores` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as aside:
        aside.write_bytes(lzma.compress(json.dumps(rows, separators=(",", ":")).encode()))

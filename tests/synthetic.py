"""Comparisons with known numbers, made without training anything."""

import pandas as pd

from steer_core.compare.comparison import Comparison
from steer_core.compare.plan import Arm, Plan
from steer_core.formulas.entropy_change import QUADRANTS

PROBLEMS = 10
SAMPLES = 2


def counts(twice: int, once: int) -> list[int]:
    """Correct counts of 10 problems: pass@1 is (2 twice + once) / 20 and pass@2 is (twice + once) / 10."""
    return [2] * twice + [1] * once + [0] * (PROBLEMS - twice - once)


def plan(seeds=(0, 1, 2), labels=None, probed=True, **evaluation) -> Plan:
    labels = {"grpo": "GRPO", "steer": "STEER", "slow": "GRPO, slower"} | (labels or {})
    overrides = {"grpo": [], "steer": ["intervention.name=steer"], "slow": ["optimizer.learning_rate=5e-5"]}
    return Plan(
        arms={name: Arm(label=labels[name], overrides=overrides[name]) for name in overrides},
        baseline="grpo",
        seeds=list(seeds),
        common={
            "train": {"rollouts": 4} | ({} if probed else {"probe_sequences": 0}),
            "evaluation": {"problems": PROBLEMS, "samples": SAMPLES, "every": 2, "pass_at": [1, SAMPLES]} | evaluation,
        },
        note="numbers made by hand",
    )


# arm: (twice, once) at step 2 and step 4, and the entropy at each
LEVELS = {
    "grpo": (((2, 0), 0.30), ((4, 0), 0.20)),
    "steer": (((1, 2), 0.35), ((3, 2), 0.30)),
    "slow": (((0, 4), 0.33), ((2, 4), 0.28)),
}


# estimate: (Pearson, share of right signs) of seed 1 at every rollout; other seeds differ by 0.01 in each
AGREEMENT = {
    "first_order": (0.95, 0.9),
    "paper": (0.05, 0.5),
    "released": (0.1, 0.55),
    "exact": (0.2, 0.6),
    "covariance": (-0.1, 0.4),
}


def probe(step: int, seed: int) -> dict[str, float]:
    """What a watched step logs; at rollout 3 no probed token has an advantage, so single-state forms are all 0."""
    shift, silent = 0.01 * (seed - 1), step == 3
    row = {"probe/change/measured": -1e-3 * step, "time/probe_seconds": 0.1}
    for name, (pearson, sign) in AGREEMENT.items():
        row[f"probe/change/{name}"] = -0.9e-3 * step if name == "first_order" else 0.0 if silent else -1e-9
        if name == "first_order" or not silent:
            row |= {f"probe/pearson/{name}": pearson + shift, f"probe/sign/{name}": sign + shift}
    return row


def comparison(
    seeds=(0, 1, 2), arms=tuple(LEVELS), labels=None, complete=True, evaluated=True, probed=True
) -> Comparison:
    """Entropy differs by 0.01 from seed to seed, for every arm alike but `steer`, whose step grows with the seed.

    probed: whether the runs log `probe/` (see `probe`); all arms log the same.
    """
    metrics, evaluations = [], []
    base = {"correct": counts(0, 1), "samples": SAMPLES, "policy_entropy": 0.4}
    for arm in arms:
        for seed in seeds:
            key = {"arm": arm, "seed": seed}
            for step in range(1, 5):
                entropy = 0.4 - 0.02 * step + 0.01 * seed
                metrics.append(key | {"step": step, "entropy/policy": entropy, "reward/mean": 0.1 * step})
                metrics[-1] |= {
                    f"entropy_change/paper/{name}": (i + 1) * 1e-9 * (-1) ** i for i, name in enumerate(QUADRANTS)
                }
                low = 0.7 if arm == "steer" else 1.0
                metrics[-1] |= {"lambda/q0": low, "lambda/q50": 1.0, "lambda/q100": 1.0, "lambda/mean": 1.0}
                metrics[-1]["lambda/share_within_1pct_of_1"] = 0.9 if arm == "steer" else 1.0
                metrics[-1] |= dict.fromkeys(("time/rollout_seconds", "time/update_seconds"), 2.0)
                metrics[-1] |= {"time/score_seconds": 1.0} | (probe(step, seed) if probed else {})
            rows = [(0, base["correct"], 0.4)]
            for step, (solved, entropy) in zip((2, 4), LEVELS[arm], strict=True):
                shift = 0.01 * seed * (1.5 if arm == "steer" else 1)
                rows.append((step, counts(*solved), entropy + shift))
            if evaluated:
                evaluations += [
                    key | {"step": step, "correct": correct, "samples": SAMPLES, "policy_entropy": entropy}
                    for step, correct, entropy in rows
                ]
    empty = ["arm", "seed", "step"]
    return Comparison(
        plan=plan(seeds, labels, probed),
        metrics=pd.DataFrame(metrics, columns=None if metrics else empty),
        evaluations=pd.DataFrame(evaluations, columns=None if evaluations else empty),
        base=base if evaluated else None,
        environment={"command": "steer compare", "date": "2026-01-02T03:04:05+00:00"},
        complete=complete,
        notes=["GRPO, seed 0, rollout 3: a note"],
    )

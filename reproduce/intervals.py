"""How often the tournament's intervals hold the truth, and how many seeds its question needs.

    python reproduce/intervals.py          # writes reproduce/results/intervals.json and .md: 7 minutes on one core
    python reproduce/intervals.py --draws 100 --evaluations 2 --out runs/intervals   # the same, coarse

Coverage is simulated. Differences: mean + seed + problem + rest, all normal, true mean 0. Matched runs: two methods
that are the same learn at random on random problems, 32 samples a problem at 5 evaluations, and are compared at equal
pass@1, as the tournament does. Power is worked out from the spread over seeds in the tournament's results, by
Student's t; the noise of one evaluation is measured on the model that ships.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from tournament_statistics import matched

from steer_core import load_config, load_policy, pass_at_k
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import environment
from steer_core.common.files import json_text, write_atomically
from steer_core.evaluation.sample_and_grade import sample_and_grade
from steer_core.problems import make_task
from steer_core.rollout.huggingface import HuggingFaceSampler
from steer_core.stats.intervals import (
    Interval,
    at_first_crossing,
    interval_over_seeds,
    interval_over_seeds_and_problems,
)

RESULTS = Path(__file__).parent / "results"
SAMPLES, EVALUATIONS = 32, 5
SPREADS = {
    "rest alone": (0.0, 0.0, 0.45),
    "seeds and rest": (0.03, 0.0, 0.45),
    "problems and rest": (0.0, 0.15, 0.45),
    "all three": (0.03, 0.3, 0.3),
}
"""Standard deviations of seeds, problems and rest; 0.45 is about that of a difference in pass@32 at one problem."""
SIZES = ((3, 100), (5, 30), (5, 100), (10, 100))
EFFECT = 0.03
"""The difference in pass@32 that the power table is for."""
ARMS = 19
"""Arms that Holm's correction is over in the tournament's first stage."""


def independent_draws(values_SQ: np.ndarray, random: np.random.Generator, draws: int = 300) -> Interval:
    """The interval used until 2026-11-29: percentiles of means over seeds and problems drawn independently."""
    count_S, count_Q = (
        random.multinomial(size, np.full(size, 1 / size), size=draws) / size for size in values_SQ.shape
    )
    low, high = np.quantile(((count_S @ values_SQ) * count_Q).sum(-1), [0.025, 0.975])
    return Interval(float(values_SQ.mean()), float(low), float(high))


def scored(samples: Iterator[np.ndarray], random: np.random.Generator) -> dict[str, dict[str, float]]:
    """By interval, how often it held the true mean, 0, and its mean width, over samples (seeds, problems)."""
    rules: dict[str, Callable[[np.ndarray], Interval]] = {
        "crossed": interval_over_seeds_and_problems,
        "t over seeds": lambda values_SQ: interval_over_seeds(values_SQ.mean(1)),
        "independent draws": lambda values_SQ: independent_draws(values_SQ, random),
    }
    found: dict[str, list[Interval]] = {name: [] for name in rules}
    for values_SQ in samples:
        for name, rule in rules.items():
            found[name].append(rule(values_SQ))
    return {
        name: {
            "coverage": float(np.mean([one.low <= 0 <= one.high for one in intervals])),
            "width": float(np.mean([one.high - one.low for one in intervals])),
        }
        for name, intervals in found.items()
    }


def normal_samples(
    seeds: int, problems: int, spreads: tuple[float, float, float], draws: int, random: np.random.Generator
) -> Iterator[np.ndarray]:
    """Differences (seeds, problems) of true mean 0, whose parts have the spreads of seeds, problems and rest."""
    for _ in range(draws):
        parts = (
            random.normal(size=(seeds, 1)),
            random.normal(size=(1, problems)),
            random.normal(size=(seeds, problems)),
        )
        yield sum(spread * part for spread, part in zip(spreads, parts, strict=True))


def run_of(ability_Q: np.ndarray, gain: float, random: np.random.Generator, base_Q: np.ndarray) -> pd.DataFrame:
    """Evaluations of a run that sharpens: log-odds spread out and rise, and every problem goes a way of its own.

    base_Q: counts of the base model, which all runs share, as in the tournament.
    """
    way_Q, rows = random.normal(0, 0.6, len(ability_Q)), []
    for step in range(EVALUATIONS):
        share = step / (EVALUATIONS - 1)
        logits = ability_Q * (1 + 0.3 * share) + (gain + way_Q) * share
        correct = base_Q if step == 0 else random.binomial(SAMPLES, 1 / (1 + np.exp(-logits)))
        passes = {f"pass@{k}": float(pass_at_k(correct, SAMPLES, k).mean()) for k in (1, SAMPLES)}
        rows.append({"step": step, "samples": SAMPLES, "correct": correct.tolist(), **passes})
    return pd.DataFrame(rows)


def matched_samples(
    seeds: int, problems: int, draws: int, random: np.random.Generator, by_problem: float
) -> Iterator[np.ndarray]:
    """Differences (seeds, problems) in pass@32 at equal pass@1 of two methods that are the same on average.

    by_problem: how far, in log-odds, a method's own liking for problems spreads. A draw keeps the seeds that have a
    shared level; one with fewer than two of them is drawn again.
    """
    made = 0
    while made < draws:
        ability_Q = random.normal(-2.6, 1.9, problems)
        liking = random.normal(0, by_problem, (2, problems))
        base_Q = random.binomial(SAMPLES, 1 / (1 + np.exp(-ability_Q)))
        gaps = []
        for _ in range(seeds):
            pair = tuple(run_of(ability_Q + own, random.normal(1.1, 0.15), random, base_Q) for own in liking)
            gaps.append(matched(pair, {f"pass@{SAMPLES}": f"pass@{SAMPLES}"}))
        kept = [gap[f"pass@{SAMPLES}"] for gap in gaps if gap is not None]
        if len(kept) > 1:
            made += 1
            yield np.stack(kept)


def power(seeds: int, spread: float, alpha: float, effect: float = EFFECT) -> float:
    """The chance that a paired t test of so many seeds finds a difference; spread: its sd over seeds."""
    shift, edge = effect / spread * np.sqrt(seeds), stats.t.ppf(1 - alpha / 2, seeds - 1)
    return float(stats.nct.sf(edge, seeds - 1, shift) + stats.nct.cdf(-edge, seeds - 1, shift))


def seeds_needed(spread: float, alpha: float, effect: float = EFFECT) -> int:
    """The fewest seeds that find a difference with probability 0.8."""
    return next(seeds for seeds in range(2, 10_000) if power(seeds, spread, alpha, effect) >= 0.8)


def spreads_over_seeds(stage: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By reference and way to compare, the sd over seeds of the difference in the primary measure: root mean square."""
    told: dict[str, dict[str, float]] = {}
    for reference in [stage["baseline"], *stage["controls"]]:
        tables = [arm["against"][reference] for arm in stage["arms"].values() if reference in arm.get("against", {})]
        told[reference] = {
            how: float(np.sqrt(np.mean([np.var(t[how][stage["primary"]]["by_seed"], ddof=1) for t in tables])))
            for how in ("equal_pass@1", "equal_steps")
        }
    return told


def gap_by_seed(mine: dict[str, Any], theirs: dict[str, Any], primary: str) -> list[float]:
    """One arm minus another at equal pass@1, seed by seed, from the curves that results.json keeps."""
    gaps = []
    for seed in mine["curves"]:
        a, b = mine["curves"][seed], theirs["curves"][seed]
        level = min(max(a["pass@1"]), max(b["pass@1"]))
        if level > max(a["pass@1"][0], b["pass@1"][0]):
            ends = [float(at_first_crossing(run["pass@1"], run[primary], level)) for run in (a, b)]
            gaps.append(ends[0] - ends[1])
    return gaps


def against_the_rerun(results: dict[str, Any]) -> dict[str, Any]:
    """The first stage against GRPO at half the rate, and against its rerun on the same seeds in the stage `rates`."""
    stage, rerun = results["stages"]["test"], results["stages"]["rates"]["arms"]["grpo-lr-half"]
    half, primary, table = stage["arms"]["grpo-lr-half"], stage["primary"], {}
    for name in results["chosen"]:
        gaps = [gap_by_seed(stage["arms"][name], one, primary) for one in (half, rerun)]
        told = interval_over_seeds(gaps[1])
        table[name] = {"first": float(np.mean(gaps[0])), "rerun": told.mean, "rerun_over_seeds": [told.low, told.high]}
    itself = interval_over_seeds(gap_by_seed(half, rerun, primary))
    return {
        "levels": [half[primary]["mean"], rerun[primary]["mean"]],
        "first_minus_rerun": [itself.mean, itself.low, itself.high],
        "methods": table,
        "below": {which: sum(row[which] < 0 for row in table.values()) for which in ("first", "rerun")},
    }


def evaluation_noise(evaluations: int) -> dict[str, float]:
    """The sd of pass@32 of one and the same model on one set of problems, from sampling alone."""
    config = load_config(None, ["evaluation.split=test", "evaluation.problems=100", f"evaluation.samples={SAMPLES}"])
    policy = load_policy(config.model.path)
    task = make_task(config.task, policy.tokenizer)
    problems, sampler = task.problems("test", 100), HuggingFaceSampler(policy)
    solved_EQ = np.array(
        [
            np.reshape(
                sample_and_grade(sampler, problems, SAMPLES, config.rollout, seed, [task.grader]).correct, (-1, SAMPLES)
            )
            for seed in range(evaluations)
        ]
    ).any(-1)
    one = float(np.sqrt(solved_EQ.var(0, ddof=1).sum()) / len(problems))
    return {
        "evaluations": evaluations,
        "pass@32": float(solved_EQ.mean()),
        "sd": one,
        "sd_of_a_difference": one * 2**0.5,
    }


def page(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    about, rules = found["environment"], ("crossed", "t over seeds", "independent draws")
    lines = ["# Intervals and power", "", f"`{about['command']}`, {about['date'][:10]}, {about['processor']}.", ""]
    lines += [f"Coverage of 95% intervals, {found['draws']} draws each (standard error {found['error']:.1%}); in", ""]
    lines[-2] += " parentheses the mean width over that of the crossed interval. Independent draws: the bootstrap"
    lines[-2] += " that the tournament used before."
    lines += ["| differences | seeds, problems | " + " | ".join(rules) + " |", "| --- | --- | --- | --- | --- |"]
    for row in found["coverage"]:
        cells = [f"{row[rule]['coverage']:.1%} ({row[rule]['width'] / row['crossed']['width']:.2f})" for rule in rules]
        lines.append(f"| {row['case']} | {row['seeds']}, {row['problems']} | {' | '.join(cells)} |")
    lines += ["", f"Seeds that find {EFFECT} in pass@32 with probability 0.8, and the chance of 5 seeds:", ""]
    lines += [
        f"| sd over seeds | at 5% | at 5% / {ARMS} | 5 seeds at 5% | 5 seeds at 5% / {ARMS} |",
        "| --- " * 5 + "|",
    ]
    for row in found["power"]:
        chances = " | ".join(f"{row[name]:.0%}" for name in ("power", "power_corrected"))
        lines.append(f"| {row['spread']:.3f} | {row['seeds']} | {row['seeds_corrected']} | {chances} |")
    noise, rerun = found["evaluation_noise"], found["rerun"]
    lines += ["", f"Sampling alone: pass@32 of one model on the same 100 problems has sd {noise['sd']:.3f}"]
    lines[-1] += f" ({noise['evaluations']} evaluations), a difference of two {noise['sd_of_a_difference']:.3f}."
    lines += [
        "",
        "The tournament's methods against GRPO at half the rate, and against its rerun on the same seeds:",
        "",
    ]
    lines += ["| method | first run | rerun |", "| --- | --- | --- |"]
    for name, row in rerun["methods"].items():
        low, high = row["rerun_over_seeds"]
        lines.append(f"| {name} | {row['first']:+.3f} | {row['rerun']:+.3f} [{low:+.3f}, {high:+.3f}] |")
    mean, low, high = rerun["first_minus_rerun"]
    lines += ["", f"First run minus rerun: {mean:+.3f} [{low:+.3f}, {high:+.3f}]. Below it in the mean: "]
    lines[-1] += f"{rerun['below']['first']} of {len(rerun['methods'])} methods, and {rerun['below']['rerun']}."
    return "\n".join(lines) + "\n"


def main() -> None:
    """Simulate, measure and write; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=at_least(2), default=3000, help="of each simulated case (default: %(default)s)")
    parser.add_argument("--evaluations", type=at_least(2), default=12, help="of the base model (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: reproduce/results)")
    args = parser.parse_args()
    for name, least in (("draws", 10), ("evaluations", 2)):
        if getattr(args, name) < least:
            parser.error(f"--{name}: {getattr(args, name)} is below {least}; give at least {least}")
    random = np.random.default_rng(0)
    coverage = []
    for seeds, problems in SIZES:
        for case, spreads in SPREADS.items():
            rows = scored(normal_samples(seeds, problems, spreads, args.draws, random), random)
            coverage.append({"case": case, "seeds": seeds, "problems": problems, **rows})
    for case, by_problem in (("matched runs", 0.0), ("matched runs, problems of its own", 0.3)):
        rows = scored(matched_samples(5, 100, args.draws // 2, random, by_problem), random)
        coverage.append({"case": case, "seeds": 5, "problems": 100, **rows})
    results = json.loads((RESULTS / "tournament" / "results.json").read_text(encoding="utf-8"))
    spreads = spreads_over_seeds(results["stages"]["test"])
    found = {
        "environment": environment() | {"command": "python reproduce/intervals.py"},
        "draws": args.draws,
        "error": (0.05 * 0.95 / args.draws) ** 0.5,
        "coverage": coverage,
        "spread_over_seeds": spreads,
        "power": [
            {
                "spread": spread,
                "seeds": seeds_needed(spread, 0.05),
                "seeds_corrected": seeds_needed(spread, 0.05 / ARMS),
                "power": power(5, spread, 0.05),
                "power_corrected": power(5, spread, 0.05 / ARMS),
            }
            for spread in (0.027, 0.035, 0.04)
        ],
        "evaluation_noise": evaluation_noise(args.evaluations),
        "rerun": against_the_rerun(results),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out / "intervals.json", json_text(found))
    write_atomically(args.out / "intervals.md", page(found))
    print(page(found))


if __name__ == "__main__":
    end(main)

"""Every method on one trainer: tuned alike, then compared with GRPO and with learning more slowly.

    python reproduce/tournament.py           # tunes, runs every stage in runs/tournament, then reports
    python reproduce/tournament.py --quick   # a slice in 5 minutes in runs/tournament-quick: shows the machinery
    python reproduce/tournament.py --report  # only the report, of what has run so far or of the results that are kept
    python reproduce/tournament.py --stages hard   # these stages alone, on any machine

The plan is tournament.yaml: methods with the strengths they may choose from, how they choose, and the stages, with
seeds and problems that tuning never sees. Stages: `test` (all methods and controls), `sgd`, `extreme` clipping, `hard`
(five numbers, for the three best and the controls; its base model is made first, 6 minutes, where it is missing) and
`rates` (a grid of learning rates). Interrupted at any moment, the same command goes on where it was. About 4 hours on
2 CPU cores. With `--stages`, what tuning chose and how the methods ranked is read from the results where it was not
found in the folder of the runs, and the results of all other stages stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console
from tournament_tables import read_results, stage_results, write_results

from steer_core import STRICT, SteerError
from steer_core.cli.ending import end
from steer_core.cli.shared import at_least
from steer_core.common.environment import cores
from steer_core.common.errors import INTERRUPTED
from steer_core.common.files import write_atomically
from steer_core.common.settings import build, merged, read_yaml
from steer_core.compare.comparison import Comparison, load_comparison
from steer_core.compare.plan import Arm, Plan
from steer_core.compare.runner import run_comparison, start_comparison
from steer_core.stats.intervals import at_first_crossing

ROOT = Path(__file__).parent.parent
PLAN = Path(__file__).with_suffix(".yaml")
RATE = "optimizer.learning_rate_factor"
MIDDLE = 1
"""The learning rate that strengths are tried at."""


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Strength:
    """The one setting that a method may choose, and what it may choose from."""

    setting: str
    values: list[float] = Field(min_length=1)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Method:
    """A competitor."""

    label: str
    source: str
    overrides: list[str]
    strength: Strength | None = None


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Entry:
    """An arm that a stage adds: with fixed settings, or `of` a tuned method with some of them changed."""

    label: str
    of: str | None = None
    overrides: list[str] = Field(default_factory=list)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Tuning:
    """How a method chooses."""

    seed: int
    level: float = Field(gt=0, lt=1)
    settings: dict[str, Any]


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Stage:
    """One comparison of the tournament; its first arm is the baseline."""

    title: str
    seeds: list[int] = Field(min_length=1)
    settings: dict[str, Any]
    arms: dict[str, Entry] = Field(min_length=1)
    methods: Literal["all", "none"] = "none"
    best: int = Field(0, ge=0)
    best_against: str = ""
    rates: list[float] = Field(default_factory=list)


@dataclass(config=STRICT, kw_only=True, frozen=True)
class Tournament:
    """The plan as a whole."""

    common: dict[str, Any]
    learning_rates: list[float]
    tuning: Tuning
    methods: dict[str, Method]
    stages: dict[str, Stage]

    def __post_init__(self) -> None:
        if MIDDLE not in self.learning_rates:
            raise SteerError(f"learning_rates: {self.learning_rates} lacks {MIDDLE}, the one strengths are tried at")
        for name, stage in self.stages.items():
            if self.tuning.seed in stage.seeds:
                raise SteerError(f"stages.{name}.seeds: {self.tuning.seed} is tuning.seed; test on other seeds")
            for arm, entry in stage.arms.items():
                if entry.of is not None and entry.of not in self.methods:
                    raise SteerError(f"stages.{name}.arms.{arm}.of: {entry.of!r} is no method of the plan")


def quick(plan: Tournament) -> Tournament:
    """A slice that runs in 5 minutes: three methods, two seeds, short runs, the first stage alone."""
    short = {"train": {"rollouts": 4}, "evaluation": {"split": "validation", "problems": 40, "every": 2}}
    test = plan.stages["test"]
    settings = {"train": {"rollouts": 6}, "evaluation": {"split": "test", "problems": 50, "every": 3}}
    kept = ("steer", "entropy-loss", "w-reinforce")
    arms = {name: entry for name, entry in test.arms.items() if name in ("grpo", "grpo-lr-half")}
    return dataclasses.replace(
        plan,
        tuning=dataclasses.replace(plan.tuning, settings=short),
        methods={name: plan.methods[name] for name in kept},
        stages={"test": dataclasses.replace(test, seeds=[0, 1], settings=settings, arms=arms)},
    )


def settings_of(method: Method, strength: float | None, rate: float) -> list[str]:
    """The overrides of a method at one strength and learning rate."""
    chosen = [f"{method.strength.setting}={strength:g}"] if method.strength else []
    return [*method.overrides, *chosen, f"{RATE}={rate:g}"]


def strength_trials(plan: Tournament) -> dict[str, tuple[str, float | None, float]]:
    """First half of tuning: arm to (method, strength, learning rate); every strength at the middle rate."""
    return {
        f"{name}.{i}": (name, strength, MIDDLE)
        for name, method in plan.methods.items()
        for i, strength in enumerate(method.strength.values if method.strength else [None])
    }


def rate_trials(plan: Tournament, strengths: dict[str, float | None]) -> dict[str, tuple[str, float | None, float]]:
    """Second half of tuning: the better strength at the other rates."""
    others = [rate for rate in plan.learning_rates if rate != MIDDLE]
    return {f"{name}.x{rate:g}": (name, strengths[name], rate) for name in plan.methods for rate in others}


def tuning_plan(plan: Tournament, trials: dict[str, tuple[str, float | None, float]], grpo: list[float]) -> Plan:
    """The comparison that runs some trials, and GRPO at some learning rates beside them."""
    arms = {f"grpo.x{rate:g}": Arm(label=f"GRPO, x {rate:g}", overrides=[f"{RATE}={rate:g}"]) for rate in grpo}
    for arm, (name, strength, rate) in trials.items():
        method = plan.methods[name]
        label = f"{method.label}, {'' if strength is None else f'{strength:g}, '}x {rate:g}"
        arms[arm] = Arm(label=label, overrides=settings_of(method, strength, rate))
    common = merged(plan.common, plan.tuning.settings)
    return Plan(arms=arms, baseline=next(iter(arms)), seeds=[plan.tuning.seed], common=common, note="tuning")


def tuning_scores(comparison: Comparison, level: float) -> dict[str, tuple[float, float]]:
    """By arm: (pass@16 where pass@1 first reaches the level or NaN, highest pass@1)."""
    scores, k = {}, sorted(comparison.ks)[-2]
    for arm, rows in comparison.curves().groupby("arm"):
        rows = rows.sort_values("step")
        at_level = at_first_crossing(rows["pass@1"], rows[f"pass@{k}"], level)
        scores[arm] = (at_level, float(rows.loc[rows.step > 0, "pass@1"].max()))
    return scores


def rank(score: tuple[float, float]) -> tuple[float, float]:
    """What the best trial has most of: pass@16 at the level, or below all of those, the highest pass@1."""
    at_level, highest = score
    return (-1.0, highest) if np.isnan(at_level) else (at_level, highest)


def choose(trials: dict[str, tuple], scores: dict[str, tuple[float, float]]) -> dict[str, str]:
    """The best trial of every method; of equals, the first."""
    best: dict[str, str] = {}
    for arm, (name, *_) in trials.items():
        if name not in best or rank(scores[arm]) > rank(scores[best[name]]):
            best[name] = arm
    return best


def stage_plan(plan: Tournament, stage: Stage, chosen: dict[str, dict], best: list[str]) -> Plan:
    """The comparison of a stage, given what each method chose."""
    arms = {}
    for name, entry in stage.arms.items():
        base = chosen[entry.of]["overrides"] if entry.of else []
        arms[name] = Arm(label=entry.label, overrides=_last_of_each([*base, *entry.overrides]))
    for name in plan.methods if stage.methods == "all" else best:
        label, overrides = plan.methods[name].label, chosen[name]["overrides"]
        for rate in stage.rates:
            own = _last_of_each([*overrides, f"{RATE}={rate:g}"])
            arms.setdefault(f"{name}-x{rate:g}", Arm(label=f"{label}, x {rate:g}", overrides=own))
        if not stage.rates:
            arms[name] = Arm(label=label, overrides=overrides)
    common = merged(plan.common, stage.settings)
    return Plan(arms=arms, baseline=next(iter(arms)), seeds=stage.seeds, common=common, note=stage.title)


def _last_of_each(overrides: list[str]) -> list[str]:
    return list({override.partition("=")[0]: override for override in overrides}.values())


def best_methods(results: dict[str, Any], plan: Tournament, count: int, against: str) -> list[str]:
    """The methods of a stage's results with the highest mean of the primary measure minus that of an arm, at equal
    pass@1; none for count 0."""
    gaps = {}
    for name in plan.methods if count else ():
        found = results["arms"].get(name, {}).get("against", {}).get(against, {}).get("equal_pass@1")
        if found:
            gaps[name] = found[results["primary"]]["mean"]
    return sorted(gaps, key=lambda name: -gaps[name])[:count]


class Stopped(Exception):
    """The runs were asked to stop."""


def run(plan: Plan, folder: Path, jobs: int, console: Console) -> Comparison:
    """A comparison, from its start or from where it was."""
    console.print(f"{folder.name}: {len(plan.arms)} arms x {len(plan.seeds)} seeds", highlight=False)
    start_comparison(plan, folder, resume=True)
    if not run_comparison(plan, folder, jobs, console):
        raise Stopped
    return load_comparison(folder)


def tune(plan: Tournament, folder: Path, jobs: int, console: Console) -> dict[str, dict]:
    """By method: what it chose and every trial it chose from; kept in chosen.json."""
    trials = strength_trials(plan)
    found = tuning_scores(
        run(tuning_plan(plan, trials, [MIDDLE]), folder / "tune-strength", jobs, console), plan.tuning.level
    )
    strengths = {name: trials[arm][1] for name, arm in choose(trials, found).items()}
    others = rate_trials(plan, strengths)
    rates = [rate for rate in plan.learning_rates if rate != MIDDLE]
    second = run(tuning_plan(plan, others, rates), folder / "tune-rate", jobs, console)
    found |= tuning_scores(second, plan.tuning.level)
    kept = {arm: trial for arm, trial in trials.items() if trial[1] == strengths[trial[0]]} | others
    chosen = {}
    for name, arm in choose(kept, found).items():
        _, strength, rate = kept[arm]
        tried = [
            {"strength": s, "learning_rate": r, "at_level": _or_none(found[a][0]), "highest_pass@1": found[a][1]}
            for a, (n, s, r) in (trials | others).items()
            if n == name
        ]
        overrides = settings_of(plan.methods[name], strength, rate)
        chosen[name] = {"strength": strength, "learning_rate": rate, "overrides": overrides, "tried": tried}
    grpo = [
        {"strength": None, "learning_rate": r, "at_level": _or_none(found[a][0]), "highest_pass@1": found[a][1]}
        for r in plan.learning_rates
        for a in [f"grpo.x{r:g}"]
    ]
    keep_choices(folder, chosen, grpo)
    return chosen


def keep_choices(folder: Path, methods: dict[str, dict], grpo: list[dict]) -> None:
    """Write chosen.json, which the later stages and the report read."""
    write_atomically(folder / "chosen.json", json.dumps({"methods": methods, "grpo": grpo}, indent=1) + "\n")


def choices_of(folder: Path, results: dict[str, Any], out: Path) -> dict[str, dict]:
    """What each method chose, without tuning: from chosen.json of the folder, or from earlier results."""
    if not (folder / "chosen.json").is_file():
        if not results:
            raise SteerError(
                f"--stages: neither {folder} nor {out} holds what tuning chose; run without --stages first"
            )
        folder.mkdir(parents=True, exist_ok=True)
        keep_choices(folder, results["chosen"], results["grpo_in_tuning"])
    return json.loads((folder / "chosen.json").read_text(encoding="utf-8"))["methods"]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def make_base(path: Path, numbers: int, console: Console) -> None:
    """The base model of a harder task, where it is not there yet."""
    if not (path / "config.json").is_file():
        console.print(f"{path}: making the base model (6 minutes)", highlight=False)
        script = [sys.executable, str(Path(__file__).with_name("base_model.py"))]
        subprocess.run([*script, "--out", str(path), "--numbers", str(numbers), "--threads", "1"], check=True)


def run_stages(
    plan: Tournament,
    names: list[str],
    chosen: dict[str, dict],
    folder: Path,
    earlier: dict[str, Any],
    jobs: int,
    console: Console,
) -> None:
    """Run stages in the plan's order; the methods are ranked by the first one, of this folder or of results."""
    first = next(iter(plan.stages))
    for name, stage in plan.stages.items():
        if name not in names:
            continue
        model = stage.settings.get("model", {}).get("path")
        if model:
            make_base(Path(model), stage.settings["task"]["numbers"], console)
        best = []
        if stage.best and (folder / first / "plan.yaml").is_file():
            best = best_methods(stage_results(load_comparison(folder / first)), plan, stage.best, stage.best_against)
        elif stage.best:
            if first not in earlier.get("stages", {}):
                raise SteerError(f"--stages: {name} takes the best of {first}, which has not run; run {first} first")
            best = best_methods(earlier["stages"][first], plan, stage.best, stage.best_against)
        run(stage_plan(plan, stage, chosen, best), folder / name, jobs, console)


def main() -> int:
    """Run what is not finished yet, then report; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the runs (default: runs/tournament, or -quick)")
    parser.add_argument("--results", type=Path, help="folder of the results (default: reproduce/results/tournament)")
    parser.add_argument("--quick", action="store_true", help="3 methods, 2 seeds, short runs; decides nothing")
    parser.add_argument("--report", action="store_true", help="train nothing; report what has run")
    parser.add_argument("--stages", nargs="+", metavar="STAGE", help="run these alone, tuned as the results say")
    parser.add_argument(
        "--jobs", type=at_least(1), default=cores(), help="runs at a time (default: the cores, %(default)s)"
    )
    args = parser.parse_args()
    folder = args.out or ROOT / "runs" / ("tournament-quick" if args.quick else "tournament")
    out = args.results or (folder if args.quick else ROOT / "reproduce" / "results" / "tournament")
    console = Console()
    asked = f" --stages {' '.join(args.stages)}" if args.stages else ""
    command = f"python reproduce/tournament.py{' --quick' * args.quick}{asked}"
    try:
        plan = build(Tournament, read_yaml(PLAN))
        plan = quick(plan) if args.quick else plan
        for name in args.stages or ():
            if name not in plan.stages:
                raise SteerError(f"--stages: {name!r} is no stage; choose from {', '.join(plan.stages)}")
        earlier = read_results(out) if args.stages or args.report else {}
        if not args.report:
            tuned = choices_of(folder, earlier, out) if args.stages else tune(plan, folder, args.jobs, console)
            run_stages(plan, args.stages or list(plan.stages), tuned, folder, earlier, args.jobs, console)
        write_results(plan, folder, out, command, console, earlier)
    except Stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    end(main)

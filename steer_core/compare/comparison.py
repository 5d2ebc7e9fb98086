"""What the runs of a comparison measured, and the tables made from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steer_core.common.environment import read_environment
from steer_core.common.errors import SteerError
from steer_core.common.files import read_json
from steer_core.common.settings import build, read_yaml, to_dict
from steer_core.compare.plan import Arm, Plan, arm_name, run_path
from steer_core.runs import logs
from steer_core.runs.folder import RunFolder
from steer_core.stats.intervals import Interval, at_first_crossing, bootstrap_over_problems, interval_over_seeds
from steer_core.stats.pass_at_k import pass_at_k


@dataclass(frozen=True)
class Comparison:
    """What the runs of a comparison measured, as far as they have come.

    metrics: columns arm, seed, step and every metric of metrics.jsonl. evaluations: columns arm,
    seed, step, samples, correct (a list, one count a problem), policy_entropy, truncated, length;
    where the base model was evaluated, every run has it as step 0. complete: every planned run
    came to its end.
    """

    plan: Plan
    metrics: pd.DataFrame
    evaluations: pd.DataFrame
    base: dict[str, Any] | None
    environment: dict[str, Any]
    complete: bool
    notes: list[str] = field(default_factory=list)

    @property
    def ks(self) -> tuple[int, ...]:
        """The k of pass@k that the plan reports."""
        return self.plan.config(self.plan.baseline, self.plan.seeds[0]).evaluation.pass_at

    @property
    def largest_k(self) -> int:
        """The largest k of the plan."""
        return max(self.ks)

    def label(self, arm: str) -> str:
        """How tables and figures call an arm."""
        return self.plan.arms[arm].label

    def curves(self) -> pd.DataFrame:
        """`evaluations` with a column pass@k for 1 and each k of the plan."""
        frame = self.evaluations.copy()
        for k in {1, *self.ks}:
            frame[f"pass@{k}"] = [
                float(pass_at_k(row.correct, row.samples, k).mean()) for row in frame.itertuples(index=False)
            ]
        return frame

    def counts(self) -> list[dict[str, Any]]:
        """Every evaluation, the base model's first: how many samples solved each problem, as one line of numbers.

        What any level, difference or interval of pass@k is made from.
        """
        base = [] if self.base is None else [{"arm": None, "seed": None, "step": 0, **self.base}]
        rows = [*base, *self.evaluations[self.evaluations.step > 0].to_dict("records")]
        names = ("arm", "seed", "step", "samples", "policy_entropy")
        return [{name: row[name] for name in names} | {"correct": " ".join(map(str, row["correct"]))} for row in rows]

    def weights(self) -> dict[str, dict[str, Interval]]:
        """By arm that weights tokens: mean lambda, and the share of tokens within 1% of 1, means over the rollouts."""
        names, table = ("lambda/mean", "lambda/share_within_1pct_of_1"), {}
        for arm, rows in self.metrics.groupby("arm", sort=False):
            means = [rows.groupby("seed")[name].mean().dropna() for name in names if name in rows]
            if means and all(map(len, means)):
                table[str(arm)] = {name: interval_over_seeds(values) for name, values in zip(names, means, strict=True)}
        return table

    def final(self) -> pd.DataFrame:
        """The last evaluation of every run that came to its end, one row a run."""
        steps = self.plan.config(self.plan.baseline, self.plan.seeds[0]).train.rollouts
        curves = self.curves()
        return curves[curves.step == steps]

    def levels(self) -> dict[str, dict[str, Interval]]:
        """At the last step, by arm: pass@k with intervals over problems; entropy and reward over seeds."""
        final, table = self.final(), {}
        for arm in self.plan.arms:
            rows = final[final.arm == arm]
            if rows.empty:
                continue
            table[arm] = {
                f"pass@{k}": bootstrap_over_problems(
                    np.stack([pass_at_k(row.correct, row.samples, k) for row in rows.itertuples(index=False)])
                )
                for k in self.ks
            }
            table[arm]["entropy"] = interval_over_seeds(rows.policy_entropy)
            last = self.metrics[(self.metrics.arm == arm) & self.metrics.seed.isin(rows.seed)]
            last = last[last.step > last.step.max() - 5]
            if len(last) and "reward/mean" in last:
                table[arm]["reward"] = interval_over_seeds(last.groupby("seed")["reward/mean"].mean())
        return table

    def base_levels(self) -> dict[str, Interval]:
        """The base model as a row of `levels`: pass@k over problems, entropy without bounds. Empty without one."""
        if self.base is None:
            return {}
        correct, samples, nan = self.base["correct"], self.base["samples"], float("nan")
        table = {f"pass@{k}": bootstrap_over_problems([pass_at_k(correct, samples, k)]) for k in self.ks}
        return table | {"entropy": Interval(self.base["policy_entropy"], nan, nan)}

    def changes_from_base(self) -> dict[str, dict[str, Interval]]:
        """At the last step, by arm: pass@k minus the base model's on the same problems, interval over problems."""
        final, table = self.final(), {}
        for arm in self.plan.arms if self.base else ():
            rows = final[final.arm == arm]
            for k in self.ks if len(rows) else ():
                before = pass_at_k(self.base["correct"], self.base["samples"], k)
                after = [pass_at_k(row.correct, row.samples, k) for row in rows.itertuples(index=False)]
                table.setdefault(arm, {})[f"pass@{k}"] = bootstrap_over_problems(np.stack(after) - before)
        return table

    def differences(self, against: str | None = None) -> dict[str, dict[str, Interval]]:
        """At the last step, arm minus `against` (default: the baseline), paired by seed: entropy and each pass@k."""
        final = self.final().set_index(["arm", "seed"])
        if final.empty:
            return {}
        columns = {"entropy": "policy_entropy"} | {f"pass@{k}": f"pass@{k}" for k in self.ks}
        return self._paired({name: final[column] for name, column in columns.items()}, against)

    def common_level(self) -> float:
        """The highest pass@1 that every finished run reached at some evaluation; NaN where none finished."""
        curves = self._finished_curves()
        return float(curves.groupby(["arm", "seed"])["pass@1"].max().min()) if len(curves) else float("nan")

    def at_equal_pass1(self) -> pd.DataFrame:
        """Each finished run where it first reaches `common_level`: step, entropy and pass@k, interpolated."""
        level, rows = self.common_level(), []
        names = {"step": "step", "entropy": "policy_entropy"} | {f"pass@{k}": f"pass@{k}" for k in self.ks if k > 1}
        for (arm, seed), curve in self._finished_curves().groupby(["arm", "seed"], sort=False):
            curve = curve.sort_values("step")
            crossing = {
                name: at_first_crossing(curve["pass@1"], curve[column], level) for name, column in names.items()
            }
            rows.append({"arm": arm, "seed": seed, **crossing})
        return pd.DataFrame(rows, columns=["arm", "seed", *names])

    def differences_at_equal_pass1(self, against: str | None = None) -> dict[str, dict[str, Interval]]:
        """Arm minus `against` (default: the baseline) where both first reach `common_level`, paired by seed."""
        frame = self.at_equal_pass1().set_index(["arm", "seed"])
        return self._paired({name: frame[name] for name in frame.columns if name != "step"}, against)

    def _finished_curves(self) -> pd.DataFrame:
        done = self.final()[["arm", "seed"]]
        return self.curves().merge(done, on=["arm", "seed"])

    def _paired(self, columns: dict[str, pd.Series], against: str | None) -> dict[str, dict[str, Interval]]:
        table: dict[str, dict[str, Interval]] = {}
        against = self.plan.baseline if against is None else against
        for name, values in columns.items():
            present = values.index.get_level_values("arm")
            if against not in present:
                return {}
            for arm in self.plan.arms:
                if arm != against and arm in present:
                    difference = (values.loc[arm] - values.loc[against]).dropna()
                    if len(difference):
                        table.setdefault(arm, {})[name] = interval_over_seeds(difference)
        return table


def load_comparison(folder: str | Path) -> Comparison:
    """The comparison in a folder, finished or not. Raises SteerError where there is none."""
    folder = Path(folder)
    if not (folder / "plan.yaml").is_file():
        raise SteerError(f"{folder}: holds no plan.yaml; give a folder that `steer compare` wrote")
    plan = build(Plan, read_yaml(folder / "plan.yaml"))
    runs = {(arm, seed): run_path(folder, arm, seed) for arm in plan.arms for seed in plan.seeds}
    base = folder / "base.json"
    return _collect(
        plan,
        {key: RunFolder.open(path) for key, path in runs.items() if (path / "config.yaml").exists()},
        _base(base) if base.exists() else None,
        read_environment(folder / "environment.json"),
    )


def comparison_of(paths: list[str | Path]) -> Comparison:
    """Run folders as one comparison: runs whose settings differ in the seed alone are one arm.

    The first arm is the baseline. Raises SteerError for a folder without a run, for two runs of the
    same settings and seed, and for runs of different length or evaluation.
    """
    arms: dict[str, str] = {}
    runs: dict[tuple[str, int], RunFolder] = {}
    plan_arms: dict[str, Arm] = {}
    for path in paths:
        run = RunFolder.open(path)
        settings_of_arm = to_dict(run.config)
        seed = settings_of_arm["train"].pop("seed")
        folder = run.path.resolve()
        name = arm_name(folder.parent.name if run.path.name.startswith("seed_") else folder.name)
        arm = arms.setdefault(
            json.dumps(settings_of_arm, sort_keys=True), name if name not in arms.values() else f"{name}-{len(arms)}"
        )
        if (arm, seed) in runs:
            raise SteerError(f"{path}: has the settings and seed of {runs[arm, seed].path}; give each run once")
        runs[arm, seed] = run
        flat = [
            f"{section}.{key}={json.dumps(value)}"
            for section, part in settings_of_arm.items()
            for key, value in part.items()
        ]
        plan_arms[arm] = Arm(label=arm, overrides=flat)
    lengths = {(run.config.train.rollouts, run.config.evaluation) for run in runs.values()}
    if len(lengths) > 1:
        raise SteerError(f"{paths[0]}: the runs differ in train.rollouts or evaluation; report like with like")
    plan = Plan(arms=plan_arms, baseline=next(iter(plan_arms)), seeds=sorted({seed for _, seed in runs}))
    environment = read_environment(next(iter(runs.values())).path / "environment.json")
    return _collect(plan, runs, None, environment)


_EVALUATED = {"samples", "correct", "policy_entropy", "truncated", "length"}
_NEEDED = {"metrics.jsonl": set(), "evaluations.jsonl": _EVALUATED, "notes.jsonl": {"note"}}
"""What a row of each log holds at least."""


def _base(path: Path) -> dict[str, Any]:
    """What the base model was measured to do. Raises SteerError where the file holds something else."""
    remedy = "delete it and have `steer compare --resume` evaluate the base model again"
    base = read_json(path, "base model", remedy)
    lacking = _EVALUATED - base.keys()
    why = f"lacks {min(lacking)}" if lacking else logs.problem({"step": 0, **{key: base[key] for key in _EVALUATED}})
    if why is not None:
        raise SteerError(f"base model {path}: {why}; {remedy}")
    return base


def _rows(run: RunFolder, name: str) -> list[dict[str, Any]]:
    """The rows of a log. Raises SteerError where one lacks what a report is made of."""
    rows = run.read(name)
    for line, row in enumerate(rows, 1):
        if missing := _NEEDED[name] - row.keys():
            raise SteerError(f"log {run.path / name}, line {line}: lacks {min(missing)}; {logs.REMEDY}")
    return rows


def _check_problems(evaluations: list[dict[str, Any]]) -> None:
    """Raise SteerError where evaluations are not of equally many problems: they could not be compared."""
    counts = {len(row["correct"]): f"{row['arm']}, seed {row['seed']}, step {row['step']}" for row in evaluations}
    if len(counts) > 1:
        told = " and ".join(f"{count} problems ({name})" for count, name in counts.items())
        raise SteerError(f"evaluations.jsonl: {told} are evaluated; report runs of the same problems")


def _collect(
    plan: Plan, runs: dict[tuple[str, int], RunFolder], base: dict[str, Any] | None, environment: dict[str, Any]
) -> Comparison:
    metrics, evaluations, notes, finished = [], [], [], 0
    for (arm, seed), run in runs.items():
        key = {"arm": arm, "seed": seed}
        rows = _rows(run, "metrics.jsonl")
        metrics += [key | row for row in rows]
        evaluations += [{**base, **key, "step": 0}] if base else []
        evaluations += [key | row for row in _rows(run, "evaluations.jsonl")]
        finished += len(rows) == run.config.train.rollouts
        notes += [
            f"{plan.arms[arm].label}, seed {seed}, rollout {row['step']}: {row['note']}"
            for row in _rows(run, "notes.jsonl")
        ]
    _check_problems(evaluations)
    return Comparison(
        plan=plan,
        metrics=pd.DataFrame(metrics, columns=None if metrics else ["arm", "seed", "step"]),
        evaluations=pd.DataFrame(evaluations, columns=None if evaluations else ["arm", "seed", "step"]),
        base=base,
        environment=environment,
        complete=finished == len(plan.arms) * len(plan.seeds),
        notes=notes,
    )

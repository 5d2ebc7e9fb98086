"""The tournament: its plan keeps test and tuning apart, and its tables say what known numbers say."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from synthetic import comparison

from steer_core.common.errors import SteerError
from steer_core.common.settings import build, read_yaml
from steer_core.config.config import Config
from steer_core.interventions import METHODS
from steer_core.stats.intervals import at_first_crossing
from steer_core.stats.pass_at_k import pass_at_k

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import intervals
import tournament as script
import tournament_figures as figures
import tournament_statistics as statistics
import tournament_tables as tables

PLAN = build(script.Tournament, read_yaml(script.PLAN))
CHOSEN = {
    name: {
        "overrides": script.settings_of(method, method.strength.values[0] if method.strength else None, 0.5),
        "strength": method.strength.values[0] if method.strength else None,
        "learning_rate": 0.5,
        "tried": [],
    }
    for name, method in PLAN.methods.items()
}


def stages():
    return {name: script.stage_plan(PLAN, stage, CHOSEN, ["steer", "stare", "opo"][: stage.best])
            for name, stage in PLAN.stages.items()}  # fmt: skip


CAME_LATER = {"repo-r", "differential-smoothing", "boundary-gate", "entrocraft", "erc", "ce-gppo"}
"""Methods that were not there when the tournament's plan was fixed."""


def test_the_test_stage_holds_every_method_with_five_seeds_and_the_controls():
    plan = stages()["test"]
    assert set(PLAN.methods) <= set(plan.arms)
    assert len(PLAN.methods) >= 12
    assert {"grpo", "grpo-lr-half", "grpo-lr-double", "steer-paper", "steer-shuffled", "steer-uniform"} <= set(
        plan.arms
    )
    assert plan.baseline == "grpo"
    assert plan.controls == ["grpo-lr-half"]
    assert len(plan.seeds) >= 5
    # every intervention is there but plain GRPO and the one that only controls use
    named = {config.intervention.name for config in (plan.config(arm, 0) for arm in PLAN.methods)}
    assert named == set(METHODS) - {"steer-control"} - CAME_LATER


def test_no_stage_sees_the_seed_or_the_problems_that_tuning_saw():
    tuning = script.tuning_plan(PLAN, script.strength_trials(PLAN), [1]).config("grpo.x1", PLAN.tuning.seed)
    assert tuning.evaluation.split == "validation"
    for plan in stages().values():
        assert PLAN.tuning.seed not in plan.seeds
        assert plan.config(plan.baseline, plan.seeds[0]).evaluation.split == "test"
    with pytest.raises(SteerError, match=r"stages.test.seeds: 100 is tuning.seed"):
        replace(PLAN, stages={"test": replace(PLAN.stages["test"], seeds=[100])})


def test_every_method_gets_the_same_number_of_trials():
    strengths = script.strength_trials(PLAN)
    rates = script.rate_trials(PLAN, dict.fromkeys(PLAN.methods))
    for name, method in PLAN.methods.items():
        tried = [trial for trial in (*strengths.values(), *rates.values()) if trial[0] == name]
        assert len(tried) == (4 if method.strength else 3), name
    assert sorted({rate for _, _, rate in (*strengths.values(), *rates.values())}) == PLAN.learning_rates


def test_an_arm_of_a_tuned_method_keeps_its_strength_and_takes_the_changes():
    plan = stages()["sgd"]
    steer, uniform = (plan.config(arm, 0) for arm in ("steer", "steer-uniform"))
    assert (steer.intervention.name, uniform.intervention.name) == ("steer", "steer-control")
    assert steer.intervention.lambda_min == uniform.intervention.lambda_min == PLAN.methods["steer"].strength.values[0]
    assert steer.optimizer.learning_rate_factor == uniform.optimizer.learning_rate_factor == 1
    assert steer.optimizer.name == "sgd"
    assert isinstance(stages()["extreme"].config("steer", 0), Config)


def test_a_trial_that_reaches_the_level_beats_one_that_does_not_and_then_pass_at_16_decides():
    missed, better_missed = (float("nan"), 0.1), (float("nan"), 0.17)
    low, high = (0.6, 0.18), (0.7, 0.18)
    assert sorted([high, missed, low, better_missed], key=script.rank) == [missed, better_missed, low, high]
    trials = {"a.0": ("a", 1, 1), "a.1": ("a", 2, 1), "b.0": ("b", None, 1)}
    assert script.choose(trials, {"a.0": low, "a.1": high, "b.0": missed}) == {"a": "a.1", "b": "b.0"}
    assert script.choose(trials, {"a.0": low, "a.1": low, "b.0": missed})["a"] == "a.0"


def test_tuning_scores_are_pass_at_16_where_pass1_first_reaches_the_level():
    rows = pd.DataFrame(
        {
            "arm": ["a"] * 3 + ["b"] * 3,
            "step": [10, 0, 20] * 2,
            "pass@1": [0.2, 0.1, 0.4, 0.12, 0.1, 0.14],
            "pass@16": [0.6, 0.5, 0.8, 0.7, 0.5, 0.9],
            "pass@32": [0.9] * 6,
        }
    )
    made = SimpleNamespace(ks=(1, 16, 32), curves=lambda: rows)
    scores = script.tuning_scores(made, 0.3)
    assert scores["a"] == pytest.approx((0.7, 0.4))  # halfway between steps 10 and 20
    assert np.isnan(scores["b"][0])
    assert scores["b"][1] == pytest.approx(0.14)


def test_the_shared_level_is_the_lower_of_two_highest_pass1_and_must_exceed_the_base():
    made = comparison()
    grpo, steer = statistics.runs_of(made, "grpo")[0], statistics.runs_of(made, "steer")[0]
    assert grpo["pass@1"].max() == pytest.approx(0.4)
    assert steer["pass@1"].max() == pytest.approx(0.4)
    assert statistics.shared_level(grpo, steer) == pytest.approx(0.4)
    sunk = steer.assign(**{"pass@1": [0.05, 0.02, 0.05]})
    assert statistics.shared_level(grpo, sunk) is None


def test_differences_at_equal_pass1_are_those_of_the_interpolated_checkpoints():
    # `slow` ends at pass@1 0.4 too, with pass@2 0.6 against 0.4, entropy 0.28 against 0.20
    gaps = statistics.at_shared_pass1(comparison(), "slow", "grpo")
    assert [gap["seed"] for gap in gaps] == [0, 1, 2]
    assert [gap["pass@2"].mean() for gap in gaps] == pytest.approx([0.2] * 3)
    assert [gap["entropy"].mean() for gap in gaps] == pytest.approx([0.08] * 3)
    table = statistics.differences(gaps)
    assert table["pass@2"]["mean"] == pytest.approx(0.2)
    assert table["pass@2"]["verdict"] == "undecided"  # the seeds agree exactly: no spread to judge by


def test_a_difference_is_decided_only_where_every_interval_excludes_zero():
    wide = [{"seed": s, "pass@2": np.array([1.0, 0, 0, 0, 0, 0, 0, 0, 0, -0.9]) + 0.01 * s} for s in range(5)]
    found = statistics.differences(wide)["pass@2"]
    assert found["over_seeds"][0] > 0  # over seeds alone it would be decided
    assert found["over_seeds_and_problems"][0] < 0
    assert found["verdict"] == "undecided"
    tight = [{"seed": s, "pass@2": np.full(10, 0.2) + 0.01 * s} for s in range(5)]
    assert statistics.differences(tight)["pass@2"]["verdict"] == "higher"


def test_the_problems_shares_of_a_mean_are_the_problems_values():
    values = np.random.default_rng(0).normal(size=12)
    without = values @ statistics.without_each(12)
    assert statistics.pseudo_values(values.mean(), without) == pytest.approx(values)
    without[3] = np.nan  # a problem without which nothing can be matched moves nothing
    assert statistics.pseudo_values(values.mean(), without).mean() == pytest.approx(values.mean())


def test_runs_matched_at_equal_pass1_have_an_interval_as_wide_as_they_spread():
    samples = list(intervals.matched_samples(5, 40, 40, np.random.default_rng(3), 0.3))
    held = intervals.scored(iter(samples), np.random.default_rng(0))
    assert held["crossed"]["coverage"] == pytest.approx(0.95, abs=0.06)
    spread = np.std([values_SQ.mean() for values_SQ in samples])  # of the true mean, 0, with 4 degrees of freedom
    assert held["crossed"]["width"] == pytest.approx(2 * 2.78 * spread, rel=0.25)
    assert held["independent draws"]["width"] > 1.2 * held["crossed"]["width"]


def test_the_seeds_that_a_power_table_asks_for_find_the_difference_8_times_in_10():
    seeds = intervals.seeds_needed(0.035, 0.05)
    assert (seeds, intervals.seeds_needed(0.035, 0.05 / 19)) == (13, 25)
    draws = np.random.default_rng(0).normal(0.03, 0.035, size=(4000, seeds))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.04)
    assert intervals.power(5, 0.027, 0.05 / 19) == pytest.approx(0.05, abs=0.01)


def test_a_stage_without_counts_is_judged_over_seeds_and_one_with_counts_stays():
    found = {"mean": 0.1, "over_seeds": [0.05, 0.15], "over_seeds_and_problems": [-0.1, 0.3], "verdict": "undecided"}
    table = {"equal_steps": {}, "equal_pass@1": {"pass@32": dict(found)}}
    stage = {"arms": {"x": {"against": {"grpo": table}}}}
    kept = json.loads(json.dumps(stage)) | {"evaluations": []}
    judged = tables.by_seeds_alone(stage)["arms"]["x"]["against"]["grpo"]["equal_pass@1"]["pass@32"]
    assert judged == {"mean": 0.1, "over_seeds": [0.05, 0.15], "verdict": "higher"}
    assert tables.by_seeds_alone(kept)["arms"]["x"]["against"]["grpo"]["equal_pass@1"]["pass@32"] == found


def test_values_at_many_levels_are_those_of_one_crossing_each():
    random = np.random.default_rng(0)
    x, y = random.random((5, 40)).cumsum(0), random.random((5, 40))
    levels = x[0] + (x[-1] - x[0]) * random.random(40)
    levels[3] = np.nan
    found = statistics.at_levels(x, y, levels)
    assert np.isnan(found[3])
    for d in [d for d in range(40) if d != 3]:
        assert found[d] == pytest.approx(at_first_crossing(x[:, d], y[:, d], levels[d]))


def test_the_primary_needs_holm_to_be_decided_and_other_measures_are_exploratory():
    def stage(p_holm):
        found = {"mean": 0.1, "over_seeds": [0.05, 0.15], "verdict": "higher"}
        table = {"pass@32": found | {"p_holm": p_holm}, "entropy": found}
        row = {"label": "X", "against": {"grpo": {"equal_pass@1": table}}}
        return {"primary": "pass@32", "arms": {"x": row}}

    firm, exploratory = tables.decided(stage(0.2), "grpo")
    assert (len(firm), len(exploratory)) == (0, 2)
    firm, exploratory = tables.decided(stage(0.04), "grpo")
    assert firm == ["X: pass@32 higher (+0.100 [+0.050, +0.150], p (Holm) 0.040)"]
    assert exploratory == ["X: entropy higher (+0.100 [+0.050, +0.150])"]


def test_the_best_are_ranked_against_the_arm_that_is_named():
    plan = replace(PLAN, methods={"steer": PLAN.methods["steer"], "slow": PLAN.methods["opo"]})
    found = tables.stage_results(comparison())
    assert script.best_methods(found, plan, 1, "grpo") == ["slow"]
    assert script.best_methods(found, plan, 2, "grpo") == ["slow", "steer"]
    assert script.best_methods(found, plan, 0, "grpo") == []
    assert script.best_methods(found, plan, 2, "nobody") == []


def committed():
    return json.loads((Path(script.__file__).parent / "results/tournament/results.json").read_text())


def test_a_stage_alone_takes_choices_and_ranking_from_earlier_results(tmp_path, monkeypatch):
    earlier, ran = committed(), {}
    monkeypatch.setattr(script, "run", lambda plan, folder, *_: ran.update({folder.name: plan}))
    chosen = script.choices_of(tmp_path, earlier, tmp_path / "results")
    assert {name: choice["overrides"] for name, choice in chosen.items()} == {
        name: choice["overrides"] for name, choice in earlier["chosen"].items()
    }
    assert script.choices_of(tmp_path, {}, tmp_path) == chosen  # kept in the folder from now on
    script.run_stages(PLAN, ["rates"], chosen, tmp_path, earlier, 1, None)
    assert list(ran) == ["rates"]
    rows = earlier["stages"]["test"]["arms"]
    gaps = {
        name: rows[name]["against"]["grpo-lr-half"]["equal_pass@1"]["pass@32"]["mean"]
        for name in PLAN.methods
        if name in rows and rows[name]["against"]["grpo-lr-half"]["equal_pass@1"]
    }
    best = sorted(gaps, key=gaps.get)[-3:]
    assert {f"{name}-x0.25" for name in best} <= set(ran["rates"].arms)
    with pytest.raises(SteerError, match="rates takes the best of test, which has not run"):
        script.run_stages(PLAN, ["rates"], chosen, tmp_path, {}, 1, None)
    with pytest.raises(SteerError, match="holds what tuning chose; run without --stages"):
        script.choices_of(tmp_path / "empty", {}, tmp_path)


def test_the_stage_of_rates_holds_the_best_and_steer_at_each_rate():
    arms = stages()["rates"].arms
    assert {"steer-x0.25", "steer-x1", "stare-x0.25", "stare-x1", "opo-x1", "grpo-lr-quarter"} <= set(arms)
    assert "optimizer.learning_rate_factor=0.25" in arms["stare-x0.25"].overrides


def test_the_area_is_the_mean_of_pass1_over_training():
    assert statistics.area(pd.DataFrame({"step": [0, 2, 4], "pass@1": [0.1, 0.2, 0.4]})) == pytest.approx(0.225)


def test_holm_is_taken_over_the_arms_of_a_stage():
    found = {arm: {"pass@2": {"p": p}} for arm, p in (("a", 0.01), ("b", 0.04), ("c", 0.03))} | {"d": {}}
    tables.corrected(found, "pass@2")
    assert [found[arm]["pass@2"]["p_holm"] for arm in "abc"] == pytest.approx([0.03, 0.06, 0.06])


def test_results_and_pictures_are_written_from_the_runs_alone(tmp_path, monkeypatch, capsys):
    from rich.console import Console

    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "plan.yaml").touch()
    (tmp_path / "chosen.json").write_text(json.dumps({"methods": CHOSEN, "grpo": []}))
    made = comparison()
    about = {"date": "2026-01-02T00:00:00", "cores": 2, "processor": "CPU", "command": "x"}
    monkeypatch.setattr(tables, "load_comparison", lambda folder: replace(made, environment=about))
    out = tmp_path / "results"
    tables.write_results(PLAN, tmp_path, out, "python reproduce/tournament.py", Console())
    found = json.loads((out / "results.json").read_text())["stages"]["test"]
    assert found["arms"]["slow"]["against"]["grpo"]["equal_pass@1"]["entropy"]["mean"] == pytest.approx(0.08)
    text = (out / "tournament.md").read_text()
    assert "| GRPO, slower | 3 | 0.290 [0.265, 0.315] |" in text
    assert "2026-01-02" in text
    kept = [row for row in found["evaluations"] if (row["arm"], row["seed"], row["step"]) == ("slow", 0, 4)]
    correct = [int(count) for count in kept[0]["correct"].split()]
    assert pass_at_k(correct, kept[0]["samples"], 2).mean() == pytest.approx(found["arms"]["slow"]["pass@2"]["mean"])
    assert {"test_trade.png", "test_differences.png"} <= {path.name for path in out.iterdir()}
    assert figures.rates({"test": found}) is None
    assert "decided at equal pass@1" in capsys.readouterr().out

    # another stage, run elsewhere later, joins this one and leaves it as it is
    (tmp_path / "later" / "sgd").mkdir(parents=True)
    (tmp_path / "later" / "sgd" / "plan.yaml").touch()
    (tmp_path / "later" / "chosen.json").write_text(json.dumps({"methods": CHOSEN, "grpo": []}))
    before = (out / "test_trade.png").stat().st_mtime_ns
    tables.write_results(PLAN, tmp_path / "later", out, "python x --stages sgd", Console(), tables.read_results(out))
    both = json.loads((out / "results.json").read_text())["stages"]
    assert list(both) == ["test", "sgd"]
    assert both["test"] == found
    assert both["sgd"]["environment"]["command"] == "python x --stages sgd"
    assert (out / "test_trade.png").stat().st_mtime_ns == before
    assert (out / "tournament.md").read_text().count("| GRPO, slower | 3 | 0.290 [0.265, 0.315] |") == 2


def test_a_report_without_a_finished_run_says_so(tmp_path):
    from rich.console import Console

    with pytest.raises(SteerError, match="no finished run of a stage yet"):
        tables.write_results(PLAN, tmp_path, tmp_path, "x", Console())

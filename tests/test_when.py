"""The experiment on when entropy matters: stages choose as the plan says, and pages say what the raw rows say."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from steer_core.common.errors import SteerError
from steer_core.common.settings import build, read_yaml, to_dict
from steer_core.compare.plan import Arm, Plan
from steer_core.interventions import METHODS
from steer_core.stats.pass_at_k import pass_at_k

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import when
import when_plan as plans
import when_report
import when_rows
import when_statistics as statistics

EXPERIMENT = build(plans.Experiment, read_yaml(plans.PLAN))
BASE = {"samples": 32, "correct": [2, 2, 2, 2], "policy_entropy": 0.3}


def row(arm, seed, counts, entropies=None, final=None):
    """A run whose evaluations, every 25 rollouts, solved 4 problems so often."""
    entropies = entropies or [0.2] * len(counts)
    evaluations = [
        {"step": 25 * (i + 1), "samples": 32, "entropy": e, "correct": c}
        for i, (c, e) in enumerate(zip(counts, entropies, strict=True))
    ]
    metrics = {"entropy/policy": [0.3, 0.2], "reward/mean": [0.1, 0.2]}
    return {"arm": arm, "seed": seed, "finished": True, "metrics": metrics, "evaluations": evaluations, "final": final}


def flat(count, evaluations=4):
    return [[count] * 4] * evaluations


def envelope(best=0.5):
    return [
        row(f"grpo-x{rate:g}", seed, flat(16 if rate == best else 8))
        for rate in EXPERIMENT.rates
        for seed in EXPERIMENT.tuning_seeds
    ]


def screening(order, reference=0.5):
    """Rows in which methods lie in this order, each best in its last cell."""
    arms = plans.screened(EXPERIMENT, reference)
    place = {name: len(order) - i for i, name in enumerate(order)}
    return [row(arm, 1000, flat(2 * place[arm.partition(".")[0]] + arm.endswith(".1.1"))) for arm in arms]


def test_no_seed_serves_two_purposes():
    for setting in EXPERIMENT.settings.values():
        seeds = [*EXPERIMENT.tuning_seeds, *setting.test_seeds, *setting.again_seeds]
        assert len(set(seeds)) == len(seeds)
        assert len(setting.test_seeds) >= (20 if setting.title == "To the plateau" else 10)
    data = to_dict(EXPERIMENT)
    data["settings"]["plateau"]["test_seeds"][3] = EXPERIMENT.tuning_seeds[0]
    with pytest.raises(SteerError, match=r"settings.plateau: a seed is used by two"):
        build(plans.Experiment, data)


@pytest.mark.parametrize("setting", EXPERIMENT.settings)
def test_every_stage_of_every_setting_is_a_plan_whose_settings_fit(setting):
    order = list(EXPERIMENT.methods)
    earlier = {"envelope": envelope(), "screening": screening(order)}
    earlier["tuning"] = [row(arm, 1000, flat(9)) for arm in plans.screened(EXPERIMENT, 0.5)]
    for stage in plans.STAGES:
        plan = plans.stage_plan(EXPERIMENT, setting, stage, earlier)
        for arm in plan.arms:
            config = plan.config(arm, plan.seeds[0])
            assert config.evaluation.split == "validation"  # the final evaluation alone sees the test split
            assert config.rollout.old == "sampler"


def test_the_reference_is_the_rate_with_the_highest_pass_at_1_over_the_last_evaluations():
    assert plans.reference_rate(EXPERIMENT, "plateau", {"envelope": envelope(0.25)}) == 0.25
    rows = envelope(0.25)
    for own in rows:  # a rate that is high early and low at the end is not taken
        if own["arm"] == "grpo-x1":
            own["evaluations"][0]["correct"] = [32] * 4
    assert plans.reference_rate(EXPERIMENT, "plateau", {"envelope": rows}) == 0.25


def test_an_earlier_stage_that_lacks_an_arm_is_named():
    rows = [own for own in envelope() if own["arm"] != "grpo-x1"]
    with pytest.raises(SteerError, match="plateau lacks grpo-x1 of envelope; run that stage"):
        plans.reference_rate(EXPERIMENT, "plateau", {"envelope": rows})


def test_finalists_are_the_best_methods_each_with_its_best_cell():
    order = list(EXPERIMENT.methods)
    found = plans.best_of(plans.screened(EXPERIMENT, 0.5), screening(order), 2, "plateau")
    assert list(found) == [f"{order[0]}.1.1", f"{order[1]}.1.1"]
    assert found[f"{order[0]}.1.1"].overrides[-1] == "optimizer.learning_rate_factor=1"


def test_the_test_stage_holds_the_reference_and_so_many_contrasts_on_seeds_of_its_own():
    order = list(EXPERIMENT.methods)
    earlier = {"envelope": envelope(), "screening": screening(order)}
    five = plans.best_of(plans.screened(EXPERIMENT, 0.5), earlier["screening"], EXPERIMENT.finalists, "plateau")
    earlier["tuning"] = [row(arm, 1000, flat(3 + i)) for i, arm in enumerate(five)]
    plan = plans.stage_plan(EXPERIMENT, "plateau", "test", earlier)
    assert list(plan.arms) == ["grpo", *list(reversed(five))[: EXPERIMENT.contrasts]]
    assert plan.seeds == EXPERIMENT.settings["plateau"].test_seeds
    assert plan.arms["grpo"].overrides == ["optimizer.learning_rate_factor=0.5"]


def test_every_method_has_a_source_and_named_interventions_exist():
    for method in EXPERIMENT.methods.values():
        assert method.source
        for override in method.overrides:
            key, _, name = override.partition("=")
            assert key != "intervention.name" or name in METHODS


def test_discovery_is_where_the_line_between_evaluations_passes_the_level():
    own = row("grpo", 0, [[2] * 4, [2] * 4, [10] * 4])
    level = 6 / 32
    assert statistics.discovered(own, level, BASE) == pytest.approx(50 + 25 * 0.5)
    assert statistics.discovered(own, 0.5, BASE) == float("inf")
    assert statistics.discovered(own, 0.01, BASE) == 0


def test_a_contrast_says_what_the_counts_say():
    theirs = [row("grpo", s, [[4, 4, 4, 4], [8, 8, 8, 8 + s]]) for s in (1, 2, 3)]
    mine = [row("m", s, [[4, 4, 4, 4], [8, 12, 16, 8 + 2 * s]]) for s in (1, 2, 3, 4)]
    found = statistics.contrast(mine, theirs, BASE)
    assert found["seeds"] == [1, 2, 3]
    gaps = [(4 + 8 + s) / 4 / 32 for s in (1, 2, 3)]
    primary = found["measures"]["pass@1"]
    assert primary["by_seed"] == pytest.approx(gaps)
    assert primary["mean"] == pytest.approx(np.mean(gaps))
    assert primary["p"] == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    assert primary["verdict"] == "undecided"  # four problems
    assert 0.5 < found["probability_of_improvement"]["mean"] < 1
    assert found["measures"]["entropy"]["mean"] == 0


def test_final_evaluations_are_taken_where_every_run_has_one():
    final = {"samples": 64, "correct": [32, 0], "policy_entropy": 0.05}
    rows = [row("grpo", s, flat(8), final=final) for s in (0, 1)]
    assert statistics.ends(rows, 1).tolist() == [[0.5, 0], [0.5, 0]]
    assert statistics.last_entropy(rows[0]) == 0.05
    rows[1]["final"] = None
    assert statistics.ends(rows, 32) == pytest.approx(np.stack([pass_at_k([8] * 4, 32, 32)] * 2))


def test_the_difference_that_could_be_found_has_the_power_it_says():
    random = np.random.default_rng(1)
    differences = random.normal(0, 0.02, 20)
    size = statistics.detectable(differences.tolist())
    spread = np.std(differences, ddof=1)
    drawn = random.normal(size, spread, (4000, 20))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)
    assert np.isnan(statistics.detectable([0.1]))


def test_a_contrast_is_decided_by_its_interval_and_the_corrected_p():
    def found(p, verdict):
        return {"measures": {"pass@1": {"p": p, "verdict": verdict}}}

    contrasts = statistics.with_holm(
        {"a": found(0.02, "higher"), "b": found(0.04, "higher"), "c": found(0.01, "undecided")}
    )
    told = {arm: c["measures"]["pass@1"] for arm, c in contrasts.items()}
    assert [told[arm]["p_holm"] for arm in "abc"] == pytest.approx([0.04, 0.04, 0.03])
    assert [told[arm]["decided"] for arm in "abc"] == [True, True, False]


def kept(folder, rows, setting="plateau", stage="test", seeds=(0, 1)):
    """The rows of a stage in a folder of results."""
    import lzma

    arms = {own["arm"]: Arm(label=own["arm"].upper()) for own in rows}
    arms = {
        arm: Arm(label=a.label, overrides=[f"optimizer.learning_rate_factor={i + 1}"])
        for i, (arm, a) in enumerate(arms.items())
    }
    plan = Plan(arms=arms, baseline=next(iter(arms)), seeds=list(seeds))
    about = {
        "plan": to_dict(plan),
        "environment": {"processor": "a processor", "date": "2026-11-30T00:00:00"},
        "base": BASE,
    }
    text = "\n".join(map(json.dumps, [about, *rows])) + "\n"
    when_rows.rows_path(folder, setting, stage).write_bytes(lzma.compress(text.encode()))


def test_a_stage_that_is_not_whole_chooses_nothing(tmp_path):
    rows = [row(arm, seed, flat(8)) for arm in ("grpo", "m") for seed in (0, 1)]
    kept(tmp_path, rows)
    assert len(when_rows.whole_stage(tmp_path, "plateau", "test")) == 4
    rows[2]["finished"] = False
    kept(tmp_path, rows)
    assert when_rows.whole_stage(tmp_path, "plateau", "test") == []
    assert when_rows.whole_stage(tmp_path, "plateau", "tuning") == []


def test_the_page_is_made_from_the_rows_and_changes_with_them(tmp_path):
    rows = [row(arm, seed, flat(8 + seed + 2 * (arm == "m"))) for arm in ("grpo", "m") for seed in (0, 1)]
    kept(tmp_path, rows)
    when_report.write_report(EXPERIMENT, tmp_path, Console(quiet=True))
    page, numbers = (tmp_path / "plateau.md").read_text(), json.loads((tmp_path / "numbers.json").read_text())
    found = numbers["plateau"]["test"]["contrasts"]["m"]["measures"]["pass@1"]
    assert found["mean"] == pytest.approx(2 / 32)
    assert "| M | pass@1 | +0.062" in page
    assert "4 of 4 runs (2 arms x 2 seeds); a processor, 2026-11-30" in page
    assert all(
        (tmp_path / f"plateau-test-{name}.png").stat().st_size > 5000 for name in ("curves", "paths", "contrasts")
    )
    rows[2]["evaluations"][-1]["correct"] = [20] * 4
    kept(tmp_path, rows)
    when_report.write_report(EXPERIMENT, tmp_path, Console(quiet=True))
    assert (tmp_path / "plateau.md").read_text() != page


@pytest.mark.long
def test_a_slice_of_a_setting_trains_chooses_tests_and_reports(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["when.py", "rare-moves", "--quick", "--out", str(folder), "--jobs", "2"])
    assert when.main() == 0
    out = folder / "results"
    for stage in plans.STAGES:
        rows = when_rows.whole_stage(out, "rare-moves", stage)
        assert rows
        assert all(len(own["metrics"]["entropy/policy"]) == (2 if stage == "screening" else 4) for own in rows)
        assert all((own["final"] is not None) == (stage in ("test", "again")) for own in rows)
    assert all(own["final"]["samples"] == 32 and len(own["final"]["correct"]) == 20 for own in rows)
    before = (out / "rare-moves.md").read_text()
    assert "never" in before or "discovered" in before
    monkeypatch.setattr(sys, "argv", ["when.py", "--report", "--quick", "--out", str(folder)])
    assert when.main() == 0  # from the rows alone
    assert (out / "rare-moves.md").read_text() == before


def test_an_unknown_setting_is_refused_with_those_there_are(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["when.py", "plateu"])
    with pytest.raises(SteerError, match="SETTING: 'plateu' is no setting; choose from plateau"):
        when.main()

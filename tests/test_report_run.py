"""The report of one run says what happened in it, and compares it with nothing."""

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from small import small_trainer
from synthetic import comparison

from steer_core.compare.comparison import comparison_of
from steer_core.compare.report import one_run
from steer_core.compare.report.page import render, summary, summary_table, write_report

COMPARING = (
    "compared with one",
    "At equal steps",
    "Differences from",
    "equal pass@1",
    "baseline",
    "Other methods",
    "Method minus",
)


def alone(arm="steer", seeds=(1,), **options):
    """A comparison of one arm: what the runs of one method are."""
    made = comparison(seeds, (arm,), **options)
    plan = replace(made.plan, arms={arm: made.plan.arms[arm]}, baseline=arm)
    return replace(made, plan=plan)


def shown(made) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(made))
    return console.export_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run of STEER, of four small rollouts with two evaluations."""
    folder = tmp_path_factory.mktemp("run") / "one"
    settings = ("train.rollouts=4", "evaluation.every=2", "intervention.name=steer", "intervention.lambda_min=0.5")
    trainer = small_trainer(folder, *settings)
    trainer.fit()
    return trainer.run


def test_the_report_of_a_real_run_tells_what_happened_and_compares_nothing(run, tmp_path):
    page = write_report(comparison_of([run.path]), tmp_path).read_text(encoding="utf-8")
    words = re.sub(r"base64,[^\"]*", "", page)
    for text in COMPARING:
        assert text not in words, text
    assert "nan" not in words.lower().split()
    metrics, evaluations = run.read("metrics.jsonl"), run.read("evaluations.jsonl")
    entropies = [row["entropy/policy"] for row in metrics]
    assert f"entropy while sampling went from {entropies[0]:.3f} to {sum(entropies) / 4:.3f} nats a token" in words
    first, last = (row["pass@1"] for row in evaluations)
    assert re.search(rf"from rollout 2 to rollout 4, pass@1 (rose|fell|went) from {first:.3f} to {last:.3f} \(", words)
    assert "The weights λ had mean" in words
    assert "first order with Pearson" in words
    assert "<h1>One run: one</h1>" in words
    assert "method <code>steer</code>" in words
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert {"quadrants", "estimates", "weights"} >= drawn - {"collapse", "training", "heldout"}
    assert drawn >= {"collapse", "training", "heldout"}
    assert page.count("data:image/svg+xml;base64,") == len(drawn)
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["changes"]["pass@1"]["end"] == pytest.approx(last)
    assert not {"differences_at_equal_steps", "common_pass1_level", "against_controls"} & set(told)


def test_pass_at_k_changes_with_an_interval_over_problems_and_the_rest_with_one_over_seeds():
    found = one_run.changes(alone())
    assert (found["pass@1"].start, found["pass@1"].end) == pytest.approx((0.05, 0.4))
    assert found["pass@1"].change.verdict == "higher"
    assert (found["held-out entropy"].start, found["held-out entropy"].end) == pytest.approx((0.4, 0.315))
    assert found["held-out entropy"].change.low != found["held-out entropy"].change.low
    assert found["entropy while sampling"].start == pytest.approx(0.39)
    several = one_run.changes(alone(seeds=(0, 1, 2)))
    assert several["held-out entropy"].change.mean == pytest.approx(-0.085)
    assert several["held-out entropy"].change.verdict == "lower"


def test_what_happened_in_a_run_is_made_from_its_numbers():
    text = " ".join(one_run.what_happened(alone()))
    assert "In 4 rollouts of STEER, entropy while sampling went from 0.390 to 0.360 nats a token" in text
    assert "mean reward went from 0.100 to 0.250" in text
    assert (
        "On 10 held-out problems, from the base model to rollout 4, pass@1 rose from 0.050 to 0.400 (+0.350 [" in text
    )
    assert "policy entropy went from 0.400 to 0.315 nats a token" in text
    assert "λ had mean 1.000; 90% of tokens were within 1% of 1, and the smallest weight was 0.700" in text
    assert "first order with Pearson 0.950 and 90% of signs right and paper (STEER)" in text
    assert "Every token's weight λ was within 1% of 1." in " ".join(one_run.what_happened(alone("grpo")))
    assert "of STEER (mean of 3 seeds)," in one_run.what_happened(alone(seeds=(0, 1, 2)))[0]


def test_the_clip_is_told_where_it_was_logged():
    made = alone()
    made.metrics[["clip/high", "clip/low"]] = [0.002, 0.0005]
    assert "The clip stopped 0.20% of tokens above its range and 0.05% below." in one_run.what_happened(made)
    made.metrics[["clip/high", "clip/low"]] = 0.0
    assert "The clip stopped no token." in one_run.what_happened(made)


def test_a_run_with_one_evaluation_or_none_tells_its_level_or_that_there_is_none():
    made = alone()
    once = replace(made, evaluations=made.evaluations[made.evaluations.step == 4])
    text = " ".join(one_run.what_happened(once))
    assert (
        "after rollout 4, pass@1 is 0.400, pass@2 is 0.500 and policy entropy is 0.315 nats a token; there is" in text
    )
    assert "nan" not in render(once, {}).lower().split()
    assert summary(once)["changes"]["pass@1"] == {
        "start": None,
        "end": pytest.approx(0.4),
        "change": {"mean": None, "low": None, "high": None},
    }
    assert "It has not been evaluated" in " ".join(one_run.what_happened(alone(evaluated=False)))
    render(alone(evaluated=False), {})


def test_a_run_that_is_not_at_its_end_says_how_far_it_has_come():
    made = alone(complete=False)
    half = replace(made, metrics=made.metrics[made.metrics.step <= 2])
    assert one_run.banners(half) == ["Partial: 2 of 4 rollouts; everything here may change."]
    assert '<div class="banner">Partial: 2 of 4 rollouts' in render(half, {})
    assert one_run.banners(alone()) == []
    two = alone(seeds=(0, 1), complete=False)
    two = replace(two, metrics=two.metrics[(two.metrics.seed == 0) | (two.metrics.step <= 3)])
    assert one_run.banners(two) == ["Partial: 4 and 3 of 4 rollouts of seeds 0 and 1; everything here may change."]


def test_the_table_of_a_run_for_the_terminal_has_its_changes_and_no_other_method():
    text = shown(alone())
    assert "STEER: from the first rollout or evaluation to the last" in text
    assert re.search(r"pass@1\s+\S+ 0.050 \S+ 0.400 \S+ \+0.350 \[", text)
    assert "minus" not in text
    assert "baseline" not in text
    assert "equal pass@1" in shown(comparison())

"""Every table of README and docs holds the numbers of the result files that it names."""

import json
from pathlib import Path

import pytest
import yaml

from steer_core.stats.intervals import digits_of

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "reproduce" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def read(path: str):
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def page(name: str) -> str:
    return " ".join((ROOT / "docs" / name).read_text(encoding="utf-8").split())


def interval(bounds: dict, digits: int = 3, sign: str = "") -> str:
    mean = f"{bounds['mean']:{sign}.{digits}f}"
    if bounds["low"] is None:
        return mean
    shown = digits_of(bounds["low"], bounds["high"], digits) if sign else digits
    return f"{mean} [{bounds['low']:{sign}.{shown}f}, {bounds['high']:{sign}.{shown}f}]"


def over_seeds(difference: dict, sign: str = "+") -> str:
    low, high = difference["over_seeds"]
    return interval({"mean": difference["mean"], "low": low, "high": high}, sign=sign)


def row_of(text: str, first_cell: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first_cell} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


MAIN_JOB = read("reproduce/results/collapse/summary.json")
SHORT = read("reproduce/results/compare/summary.json")
TOURNAMENT = read("reproduce/results/tournament/results.json")
AT_EQUAL = "equal_pass@1"


@pytest.mark.parametrize(
    ("label", "arm"),
    [
        ("GRPO", "grpo"),
        ("STEER, lambda_min 0.7 (paper)", "steer"),
        ("STEER, lambda_min 0.3, 90% quantile", "steer-strong"),
        ("GRPO, half the learning rate", "grpo-half-lr"),
    ],
)
def test_the_levels_of_three_seeds_are_those_of_its_summary(label, arm):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    measures = ("entropy", "pass@1", "pass@16", "pass@32")
    assert row_of(text, label)[1:] == [interval(SHORT["levels"][arm][name]) for name in measures]
    base = row_of(text, "base model")[2:]
    assert base == [interval({**SHORT["base"][name]}) for name in measures[1:]]
    assert row_of(text, "base model")[1] == f"{SHORT['base']['entropy']['mean']:.3f}"


def test_the_differences_told_of_three_seeds_are_those_of_its_summary():
    text, change = page("results.md"), SHORT["changes_from_base"]["grpo"]
    for name in ("pass@1", "pass@16", "pass@32"):
        assert interval(change[name], sign="+") in text, name
    equal = SHORT["differences_at_equal_pass1"]
    assert interval(equal["steer-strong"]["entropy"], sign="+") in text
    assert interval(equal["grpo-half-lr"]["pass@16"], sign="+") in text
    assert f"{SHORT['estimates']['watched_steps']} watched steps" in text
    by_estimate = SHORT["estimates"]["by_estimate"]
    for form in ("first_order", "paper"):
        assert f"| {interval(by_estimate[form]['pearson'])} | {interval(by_estimate[form]['sign'])} |" in text


@pytest.mark.parametrize(
    ("label", "arm"),
    [
        ("GRPO, 200 rollouts", "grpo"),
        ("STEER, lambda_min 0.7 (paper), 200 rollouts", "steer"),
        ("GRPO, half the learning rate, 200 rollouts", "grpo-half-lr"),
    ],
)
def test_the_levels_of_the_main_job_are_those_of_its_summary(label, arm):
    text, found = (ROOT / "docs" / "results.md").read_text(encoding="utf-8"), MAIN_JOB["levels"][arm]
    told = [f"{found['entropy']['mean']:.3f}", *(interval(found[name]) for name in ("pass@1", "pass@32"))]
    assert row_of(text, label)[1:] == told


def test_collapse_is_told_with_the_numbers_of_the_main_job_and_is_there():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    way = sorted((row for row in MAIN_JOB["evaluations"] if row["arm"] == "grpo"), key=lambda row: row["step"])
    assert row_of(text, "rollouts")[1:] == [str(row["step"]) for row in way]
    names = {"entropy, nats a token": "policy_entropy", "pass@1": "pass@1", "pass@32": "pass@32"}
    for label, name in names.items():
        assert row_of(text, label)[1:] == [f"{row[name]:.3f}" for row in way]
        assert f"from {way[0][name]:.2f} to {way[-1][name]:.2f}" in README
    change = MAIN_JOB["changes_from_base"]["grpo"]
    assert change["pass@1"]["low"] > 0
    assert change["pass@32"]["high"] < 0
    assert all(interval(change[name], sign="+") in page("results.md") for name in ("pass@1", "pass@32"))


def test_what_is_told_of_the_quadrants_is_in_their_results():
    arms = [arm for arm in read("reproduce/results/quadrants/results.json")["arms"].values() if arm["quadrant"]]
    agreed = [arm["verdict"] for arm in arms]
    assert [verdict["average"] for verdict in agreed] == ["as the theory says"] * 8
    assert sum(verdict["held_out"] == "as the theory says" for verdict in agreed) == 7
    rewards = [(arm["difference"]["reward_last_5"], arm["difference"]["average"]) for arm in arms]
    assert all(reward["mean"] * entropy["mean"] < 0 for reward, entropy in rewards)
    assert sum(reward["low"] * reward["high"] > 0 for reward, _ in rewards) == 1
    text = page("results.md")
    assert "in all 8 arms.** All 8 are decided on training rollouts, 7 of 8 on held-out problems" in text
    assert "against entropy in all 8 arms; 1 of these 8 differences in reward is decided" in text


@pytest.mark.parametrize(
    ("label", "case"),
    [
        ("Countdown, base (64; 16)", "countdown-base"),
        ("Countdown, after 48 rollouts of GRPO (64; 15)", "countdown-trained"),
        ("SmolLM2-135M on GSM8K (8; 2)", "smollm2-gsm8k"),
        ("SmolLM2-135M on MATH500 (4; 1)", "smollm2-math500"),
    ],
)
def test_the_table_of_estimates_is_that_of_the_measured_cases(label, case):
    update = read(f"reproduce/results/estimators/{case}.json")["updates"]["sgd:0.001"]

    def told(scores) -> str:
        return interval(dict(zip(("mean", "low", "high"), scores, strict=True)), digits=2)

    own, influence, size = (update[question] for question in ("target", "source", "size"))
    row = row_of((ROOT / "docs" / "estimators.md").read_text(encoding="utf-8"), label)
    assert label.endswith(f"; {update['mini_batches']})")
    assert row[1:] == [
        told(own["paper"]["pearson"]),
        told(own["paper"]["sign"]),
        f"{told(influence['paper']['sign'])} ({influence['baseline']['sign'][0]:.2f})",
        f"{size['paper']['spearman'][0]:.2f}, {size['released']['spearman'][0]:.2f} "
        f"({size['baseline']['spearman'][0]:.2f})",
        f"{own['first_order']['pearson'][0]:.4f}",
    ]


def test_the_replication_is_told_with_the_same_numbers_everywhere():
    rows = yaml.safe_load((ROOT / "reproduce" / "published" / "estimators.yaml").read_text(encoding="utf-8"))
    replication = [row for row in rows if row["case"].startswith("replication")]
    assert {row["form"] for row in replication} == {"paper", "released"}
    for row in replication:
        assert f"| {row['form']} | {row['pearson']} | {row['spearman']} |" in page("estimators.md")
        assert row["pearson"] in page("paper.md")
        assert row["spearman"] in page("paper.md")
        for table in ("table1", "table8"):
            if table == "table8" or row["form"] == "paper":
                assert f"| {row['pearson']} | {row['spearman']} |" in (RESULTS / f"{table}.md").read_text()


@pytest.mark.parametrize("arm", TOURNAMENT["stages"]["test"]["arms"])
def test_every_row_of_the_tournament_is_that_of_its_results(arm):
    found, chosen = TOURNAMENT["stages"]["test"]["arms"][arm], TOURNAMENT["chosen"].get(arm)
    label, _, rate = found["label"].partition(", learning rate ")
    names = {"STEER, tuned": "STEER", "STEER, paper's setting": "STEER, the paper's setting"}
    lines = (ROOT / "docs" / "tournament.md").read_text(encoding="utf-8").splitlines()
    (row,) = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith(f"| {names.get(label, label)} |") and (label != "GRPO" or f"| {rate or 'x 1'} |" in line)
    )
    if chosen:
        settings = (chosen["strength"], f"x {chosen['learning_rate']:g}")
        assert row[1] == ", ".join(f"{x:g}" if isinstance(x, float) else x for x in settings if x is not None)
    assert row[2:5] == [f"{found[name]['mean']:.3f}" for name in ("entropy", "pass@1", "pass@32")]
    for cell, rival in zip(row[5:], ("grpo", "grpo-lr-half"), strict=True):
        assert cell == ("" if rival == arm else over_seeds(found["against"][rival][AT_EQUAL]["pass@32"]))


def test_what_is_told_of_power_and_of_the_rerun_is_what_was_worked_out():
    found, text = read("reproduce/results/intervals.json"), page("tournament.md")
    for row in found["power"]:
        chances = f"{row['power']:.0%} | {row['power_corrected']:.0%}"
        assert f"| {row['spread']:.3f} | {row['seeds']} | {row['seeds_corrected']} | {chances} |" in text
    spreads = found["spread_over_seeds"]
    assert f"deviation of {spreads['grpo-lr-half'][AT_EQUAL]:.3f} (against half the rate) to" in text
    assert f"{spreads['grpo'][AT_EQUAL]:.3f} (against GRPO)" in text
    rerun = found["rerun"]
    assert "pass@32 is {1:.3f} where it was {0:.3f}".format(*rerun["levels"]) in text
    assert interval(dict(zip(("mean", "low", "high"), rerun["first_minus_rerun"], strict=True)), sign="+") in text
    assert f"That {rerun['below']['first']} of the 14 methods lie below" in text
    assert f"Against the rerun {rerun['below']['rerun']} of the 14 are below" in text
    assert f"In the mean {rerun['below']['first']} are below it" in README
    assert f"on the same seeds, {rerun['below']['rerun']}." in README
    bonus = rerun["methods"]["entropy-advantage"]
    assert f"({bonus['first']:+.3f}, p 0.038)" in text
    assert f"({bonus['rerun']:+.3f}, undecided)" in text
    noise = found["evaluation_noise"]
    assert f"a standard deviation of {noise['sd']:.3f}" in text
    assert f"of two evaluations {noise['sd_of_a_difference']:.3f}" in text
    covered = [100 * row["crossed"]["coverage"] for row in found["coverage"] if row["seeds"] >= 5]
    assert f"holds the truth in {min(covered):.0f} to {max(covered):.1f} of 100 simulated cases" in text
    matched = [row["independent draws"]["coverage"] for row in found["coverage"] if row["case"].startswith("matched")]
    assert min(matched) > 0.99


def test_what_is_decided_in_the_tournament_is_what_the_docs_tell():
    decided = {
        (stage, rival, arm): found
        for stage, told in TOURNAMENT["stages"].items()
        for arm, row in told["arms"].items()
        for rival, tables in row.get("against", {}).items()
        if (found := tables[AT_EQUAL].get("pass@32")) and found["verdict"] != "undecided" and found["p_holm"] < 0.05
    }
    assert set(decided) == {("test", "grpo", "entropy-loss"), ("test", "grpo-lr-half", "entropy-advantage")}
    for found in decided.values():
        assert f"({found['mean']:+.3f}, p {found['p_holm']:.3f}" in page("tournament.md")


def test_the_figures_of_speed_are_those_of_the_benchmark():
    text, found = page("speed.md"), read("benchmarks/results/throughput.json")
    ratios = {
        "steer over grpo": "one micro-batch a step (the main job) |",
        "steer over grpo, 4 micro-batches, scope rollout": "`intervention.scope=rollout` |",
        "steer over grpo, 4 micro-batches, scope micro": "`intervention.scope=micro` |",
        "steer over grpo, 4 micro-batches, scope step": "`intervention.scope=step` |",
        "influence over grpo": "the same of influence weights |",
        "grpo with the probe over grpo": "(`train.probe_sequences=16` over 0) |",
    }
    for name, before in ratios.items():
        ratio = found["update_time_ratios"][name]
        assert f"{before} {interval({**ratio, 'mean': ratio['median']}, digits=2)}" in text, name
    for what in ("sampling", "training"):
        assert f"{round(found[f'{what}_tokens_per_second']['median'], -2):,.0f} response tokens a second" in text
    memory = found["update_peak_memory_mib"]
    assert f"{memory['grpo']} and {memory['steer']} MiB" in text


def test_the_loops_and_the_statistics_figures_of_speed_are_those_of_the_benchmarks():
    text = page("speed.md")
    arms = read("benchmarks/results/loop.json")["arms"]
    for arm, row in arms.items():
        faster = row.get("times_as_fast_as_trl")
        told = "1" if faster is None else interval({**faster, "mean": faster["median"]}, digits=2)
        assert f"| {row['seconds_a_rollout']['median']:.2f} | {told} |" in text, arm
    compiled = read("benchmarks/results/compiled.json")
    for what, ratio in compiled["compiled_over_plain"].items():
        assert interval({**ratio, "mean": ratio["median"]}, digits=2) in text, what
    assert f"a first pass of {compiled['first_pass_seconds']:.0f} seconds" in text
    for name, shape in (("token_statistics_qwen2.5-0.5b", "qwen2.5-0.5b"), ("token_statistics", "embedded")):
        for arm, row in read(f"benchmarks/results/{name}.json")["shapes"][shape]["float32"].items():
            if "not_run" not in row and arm != "product":
                values, step = (row[part]["over_product"]["median"] for part in ("forward", "step"))
                assert f"| {values:.2f} | {step:.2f} |" in text, arm
    for model, found in read("benchmarks/results/sampling.json")["models"].items():
        for batch, cell in found["batches"].items():
            speeds = cell["tokens_a_second"]
            assert (
                f"| {model}, {batch} | {speeds['native']['median']:,.0f} | {speeds['huggingface']['median']:,.0f} |"
                in text
            )


def test_the_costs_told_are_those_of_the_benchmarks():
    ladder = read("benchmarks/results/ladder_cpu.json")["time over a training step"]
    assert f"in {ladder['first order']['median']:.1f} times the time of a training step" in page("estimators.md")
    assert f"in {ladder['influence']['median']:.1f} times that time" in page("estimators.md")
    assert f"costs {ladder['first order']['median']:.1f} times a training step" in README
    sandbox = read("benchmarks/results/sandbox.json")
    for ratio in (sandbox["over_plain"]["sandbox, 1 test"], sandbox["further_test_over_plain"]):
        digits = 1 if ratio["median"] > 1 else 2
        assert interval({**ratio, "mean": ratio["median"]}, digits=digits) in page("evaluation.md")


def test_the_readmes_table_of_findings_is_that_of_the_results():
    rows = [line for line in README.splitlines() if line.startswith("| Does ") or line.startswith("| Is ")]
    assert len(rows) == 6
    change = MAIN_JOB["changes_from_base"]["grpo"]
    assert f"{interval(change['pass@32'], sign='+')} ({interval(change['pass@1'], sign='+')})" in rows[0]
    arms = TOURNAMENT["stages"]["test"]["arms"]
    for row, arm in zip(rows[1:3], ("steer-paper", "grpo-lr-half"), strict=True):
        difference = arms[arm]["against"]["grpo"][AT_EQUAL]["pass@32"]
        assert over_seeds(difference) in row
        assert difference["verdict"] == "undecided" or difference["p_holm"] > 0.05
        assert ": undecided" in row
    assert f"p {arms['grpo-lr-half']['against']['grpo'][AT_EQUAL]['pass@32']['p_holm']:.3f} after Holm" in rows[2]
    own = read("reproduce/results/estimators/smollm2-gsm8k.json")["updates"]["sgd:0.001"]
    mean, low, high = own["target"]["paper"]["pearson"]
    assert interval({"mean": mean, "low": low, "high": high}, digits=2) in rows[5]
    world = (RESULTS / "tabular_world" / "tabular_world.md").read_text(encoding="utf-8")
    for place in (rows[3], page("when.md")):
        assert world.split("share of right actions is 2/32 (")[1].split(")")[0] in place
        assert "no difference above 0.01" in place
    coin = read("reproduce/results/coin/results.json")
    assert coin["seeds"] == coin["planned"]
    for place in (rows[4], page("when.md")):
        assert interval(coin["arms"]["symmetric"]["change"], sign="+") in place
    mean, low, high = own["source"]["paper"]["sign"]
    assert f"right for {interval({'mean': mean, 'low': low, 'high': high}, digits=2)} of" in README
    assert f"alone has {own['source']['baseline']['sign'][0]:.2f}" in README
    assert MAIN_JOB["environment"]["date"][:10] == "2026-11-30"
    assert TOURNAMENT["stages"]["test"]["environment"]["date"][:10] == "2026-11-23"


def test_what_is_told_of_the_strict_grader_on_everyday_forms_is_in_its_results():
    forms = read("reproduce/results/everyday.json")["forms"].values()
    right, wrong, rejected, accepted = (
        sum(form[key] for form in forms) for key in ("right", "wrong", "rejected", "accepted")
    )
    assert rejected / right <= 0.01
    assert accepted / wrong <= 0.001
    text = page("evaluation.md")
    assert f"rejects {100 * rejected / right:.2f}% of {right:,} right answers" in text
    assert f"accepts {100 * accepted / wrong:.2f}% of {wrong:,} wrong ones" in text

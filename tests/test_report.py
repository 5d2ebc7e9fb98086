"""The report says what its numbers allow, shows them in every figure, and carries all it needs."""

import json
import re
from dataclasses import replace

import matplotlib
import pandas as pd
import pytest
from rich.console import Console
from synthetic import AGREEMENT, comparison

from steer_core.common.errors import SteerError
from steer_core.compare.report import captions, figures, probes, wording
from steer_core.compare.report.findings import banners, what_happened
from steer_core.compare.report.page import changed_settings, render, summary, summary_table, write_report
from steer_core.formulas.entropy_change import ENTROPY_CHANGE
from steer_core.stats.intervals import Interval

NAN = float("nan")
UP, DOWN, OPEN = Interval(0.04, 0.02, 0.06), Interval(-0.04, -0.06, -0.02), Interval(0.01, -0.02, 0.04)
HOSTILE = '<script>alert("x")</script> $\\frac{ & [bold]'


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(comparison(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report):
    return report.read_text(encoding="utf-8")


def without(made, *prefixes):
    """A comparison whose logs lack the columns of these prefixes."""
    gone = [name for name in made.metrics if name.startswith(prefixes)]
    return replace(made, metrics=made.metrics.drop(columns=gone))


def lines(axis):
    return {line.get_label(): line for line in axis.get_lines()}


def test_a_finding_names_the_direction_only_where_the_interval_excludes_0():
    assert wording.finding("pass@2", UP) == "pass@2 is higher (+0.040 [+0.020 to +0.060])"
    assert wording.finding("pass@2", DOWN).startswith("pass@2 is lower (−0.040")  # noqa: RUF001
    assert wording.finding("pass@2", OPEN) == "pass@2 is undecided (+0.010 [−0.020 to +0.040])"  # noqa: RUF001


def test_one_seed_is_told_as_no_interval_and_agreeing_seeds_as_such():
    assert wording.difference(Interval(0.1, NAN, NAN)) == "+0.100 [no interval (one seed)]"
    assert wording.verdict(Interval(0.1, NAN, NAN)) == "undecided: no interval (one seed)"
    assert wording.finding("entropy", Interval(0.1, 0.1, 0.1)).endswith("undecided (+0.100 [the same in every seed])")


def test_a_level_that_may_not_have_moved_is_not_said_to_have_moved():
    assert wording.movement("entropy", 0.4, Interval(0.2, 0.1, 0.3)).startswith("entropy fell from 0.400 to 0.200")
    assert wording.movement("entropy", 0.1, Interval(0.3, 0.2, 0.4)).startswith("entropy rose")
    assert "undecided" in wording.movement("entropy", 0.25, Interval(0.2, 0.1, 0.3))


def test_more_than_slow_learning_is_claimed_only_above_the_control():
    def tell(interval):
        return wording.slower_learning("STEER", "slow", "pass@2", {"pass@2": interval, "entropy": UP})

    assert "more than this slower learning gives" in tell(UP)
    assert "learning more slowly did better" in tell(DOWN)
    assert "do not show an effect beyond learning more slowly" in tell(OPEN)
    assert "one seed cannot tell" in tell(Interval(0.1, NAN, NAN))
    assert "not tested yet" in wording.slower_learning("STEER", "slow", "pass@2", {})


def test_a_number_that_rounds_to_0_has_no_sign():
    assert [wording.number(x, signed=True) for x in (-0.0001, 0.0, NAN)] == ["0.000", "0.000", wording.MISSING]


def test_what_happened_is_made_from_the_numbers():
    text = " ".join(what_happened(comparison()))
    assert "held-out policy entropy fell from 0.400 to 0.210" in text
    assert "pass@1 rose from 0.050 to 0.400 (+0.350 [" in text
    assert "entropy higher under STEER (+0.105 [+0.093 to +0.117])" in text
    assert "STEER against GRPO, slower" in text


def test_every_table_of_the_report_is_in_summary_json():
    told = summary(comparison())
    assert told["differences_at_equal_steps"]["steer"]["entropy"]["mean"] == pytest.approx(0.105)
    assert told["common_pass1_level"] == pytest.approx(0.4)
    assert told["finished_seeds"]["slow"] == [0, 1, 2]
    assert told["base"]["entropy"] == {"mean": 0.4, "low": None, "high": None}
    assert "steer" in told["against_controls"]["slow"]["at_equal_pass1"]
    json.dumps(told, allow_nan=False)


def test_html_needs_nothing_from_another_place(page):
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert re.findall(r"url\((?!data:)", page) == []
    assert page.count("data:image/svg+xml;base64,") == 7


def test_html_states_numbers_setting_and_limits(page):
    for text in (
        "+0.093 to +0.117",
        "0.210",
        "intervention.name=",
        "steer compare",
        "2026-01-02",
        "Undecided",
        "a note",
    ):
        assert text in page
    assert 'class="banner"' not in page


def test_hostile_labels_are_escaped_and_drawn_as_they_stand(tmp_path):
    hostile = comparison(labels={"steer": HOSTILE, "slow": "_hidden"})
    page = write_report(hostile, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    console = Console(width=400, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(hostile))
    assert HOSTILE in console.export_text()
    legend = [text.get_text() for text in figures.training_figure(hostile).legends[0].get_texts()]
    assert [text.strip("\u200a") for text in legend] == ["GRPO", HOSTILE.replace("$", r"\$"), "_hidden"]


def test_training_figure_shows_seeds_and_their_mean():
    entropy, reward = figures.training_figure(comparison()).axes
    drawn = lines(entropy)
    assert drawn["_grpo 2"].get_ydata() == pytest.approx([0.40, 0.38, 0.36, 0.34])
    assert drawn["grpo"].get_ydata() == pytest.approx([0.39, 0.37, 0.35, 0.33])
    assert lines(reward)["steer"].get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_the_mean_is_over_the_seeds_that_came_furthest():
    whole = comparison()
    early = replace(whole, metrics=whole.metrics[(whole.metrics.seed < 2) | (whole.metrics.step < 3)])
    drawn = lines(figures.training_figure(early).axes[0])
    assert drawn["grpo"].get_ydata() == pytest.approx([0.385, 0.365, 0.345, 0.325])
    assert len(drawn["_grpo 2"].get_ydata()) == 2


def test_collapse_figure_shows_entropy_and_both_pass_at_k_from_the_base_model_on():
    entropy, first, last = figures.collapse_figure(comparison()).axes
    assert lines(entropy)["grpo"].get_ydata() == pytest.approx([0.4, 0.31, 0.21])
    assert lines(entropy)["_base"].get_ydata() == pytest.approx([0.4, 0.4])
    assert lines(first)["grpo"].get_ydata() == pytest.approx([0.05, 0.2, 0.4])
    assert lines(last)["steer"].get_ydata() == pytest.approx([0.1, 0.3, 0.5])
    assert [axis.get_title(loc="left") for axis in (entropy, first, last)] == ["Entropy", "pass@1", "pass@2"]
    with pytest.raises(SteerError, match="nothing has been evaluated"):
        figures.collapse_figure(comparison(evaluated=False))


def test_heldout_figure_starts_at_the_base_model():
    first, last = figures.heldout_figure(comparison()).axes
    assert lines(first)["grpo"].get_xdata() == pytest.approx([0, 2, 4])
    assert lines(first)["grpo"].get_ydata() == pytest.approx([0.05, 0.2, 0.4])
    assert lines(last)["steer"].get_ydata() == pytest.approx([0.1, 0.3, 0.5])


def test_trade_figure_marks_the_common_level_and_every_evaluation():
    passes, entropy = figures.trade_figure(comparison()).axes
    assert lines(passes)["_common level"].get_xdata() == pytest.approx([0.4, 0.4])
    assert lines(passes)["_steer 1"].get_xdata() == pytest.approx([0.2, 0.4])
    assert lines(passes)["_steer 1"].get_ydata() == pytest.approx([0.3, 0.5])
    assert lines(entropy)["_grpo 1"].get_ydata() == pytest.approx([0.31, 0.21])


def test_quadrants_figure_has_a_panel_an_arm_and_a_line_a_quadrant():
    figure = figures.quadrants_figure(comparison())
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["GRPO", "STEER", "GRPO, slower"]
    drawn = lines(figure.axes[1])
    assert drawn["positive_unlikely"].get_ydata() == pytest.approx([-2e-9] * 4)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(figures.QUADRANT_NAMES.values())


def test_weights_figure_draws_weighted_arms_and_the_share_near_1():
    figure = figures.weights_figure(comparison())
    drawn = lines(figure.axes[0])
    assert drawn["steer"].get_xdata() == pytest.approx([0.7, 0.99, 1, 1])
    assert drawn["steer"].get_ydata() == pytest.approx([0, 0.1, 0.5, 1])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["STEER: 90% within 1% of 1", "all weights 1: GRPO; GRPO, slower"]


def test_estimates_figure_pools_runs_and_rollouts_near_each_other():
    pearson, sign, means = figures.FIGURES["estimates"](comparison()).axes
    assert lines(pearson)["first_order"].get_ydata() == pytest.approx([0.95] * 4)
    assert lines(pearson)["paper"].get_xdata() == pytest.approx([1, 2, 4])  # undefined at rollout 3
    assert lines(sign)["covariance"].get_ydata() == pytest.approx([0.4] * 3)
    assert lines(sign)["_chance"].get_ydata() == pytest.approx([0.5, 0.5])
    assert lines(means)["first_order"].get_ydata() == pytest.approx([-1e-3, -2e-3, -3e-3, -4e-3] * 9)
    assert lines(means)["first_order"].get_xdata() == pytest.approx([-0.9e-3, -1.8e-3, -2.7e-3, -3.6e-3] * 9)


def test_a_running_mean_reaches_two_rollouts_to_each_side():
    metrics = pd.DataFrame({"step": [1, 2, 4, 9, 9], "x": [1.0, 2.0, 6.0, 4.0, 8.0]})
    pooled = probes.running(metrics, "x")
    assert list(pooled.index) == [1, 2, 4, 9]
    assert pooled["mean"].tolist() == pytest.approx([1.5, 3, 4, 6])
    assert pooled["low"].tolist() == pytest.approx([1.25, 1.5, 3, 5])


def test_every_estimate_that_the_probe_logs_has_a_name_in_the_report():
    assert set(probes.ESTIMATES) == {"first_order", *ENTROPY_CHANGE} == set(AGREEMENT)


def test_quality_is_the_mean_over_rollouts_then_methods_with_an_interval_over_seeds():
    told = probes.quality(comparison())
    paper, half = told["by_estimate"]["paper"], 4.302653 * 0.01 / 3**0.5
    assert (paper["pearson"].mean, paper["sign"].mean) == (pytest.approx(0.05), pytest.approx(0.5))
    assert (paper["sign"].low, paper["sign"].high) == (pytest.approx(0.5 - half), pytest.approx(0.5 + half))
    assert told["by_estimate"]["first_order"]["change"].mean == pytest.approx(-2.25e-3)
    assert told["measured_change"].mean == pytest.approx(-2.5e-3)
    assert told["watched_steps"] == 36
    assert (told["probe_seconds"], told["share_of_training_time"]) == (pytest.approx(0.1), pytest.approx(0.02))
    assert told["by_arm"]["steer"]["exact"]["pearson"].mean == pytest.approx(0.2)
    assert summary(comparison())["estimates"]["by_estimate"]["paper"]["sign"]["low"] == pytest.approx(0.5 - half)


def test_a_method_with_more_rollouts_or_seeds_does_not_weigh_more_within_a_seed():
    whole = comparison(seeds=(0, 1))
    metrics = whole.metrics.copy()
    metrics.loc[metrics.arm == "steer", "probe/pearson/exact"] = 0.8
    metrics = metrics[(metrics.arm == "grpo") | ((metrics.arm == "steer") & (metrics.step == 1))]
    exact = probes.quality(replace(whole, metrics=metrics))["by_estimate"]["exact"]["pearson"]
    assert exact.mean == pytest.approx((0.195 + 0.8) / 2)


def test_a_coin_is_beaten_only_where_the_whole_interval_lies_above_a_half():
    told = probes.better_than_a_coin(probes.quality(comparison())["by_estimate"])
    assert told == {
        "higher": ["first order", "exact (one state)", "released code"],
        "lower": ["covariance"],
        "undecided": ["paper (STEER)"],
    }


def test_the_caption_of_the_estimates_tells_their_numbers(page):
    text = captions.CAPTIONS["estimates"].numbers(comparison())
    assert "paper (STEER) 0.050 [0.025 to 0.075] and 0.500 [0.475 to 0.525] of signs" in text
    assert "more often than a coin: first order, exact (one state) and released code; less" in text
    assert "\u22122.5\N{MULTIPLICATION SIGN}10⁻³ measured" in text
    assert "0.10 seconds a rollout, 2.0% of sampling, scoring and updates" in text
    assert "How good the estimates were.</b>" in page
    assert "is not shown" not in page
    alone = captions.CAPTIONS["estimates"].numbers(comparison(seeds=(1,)))
    assert "(one seed: no interval): first order 0.950 and 0.900 of signs" in alone
    assert "coin" not in alone


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (comparison(probed=False), "the probe was switched off (train.probe_sequences=0)"),
        (without(comparison(), "probe/"), "no watched step has been logged"),
        (without(comparison(), "probe/pearson", "probe/sign"), "at no watched step was an agreement defined"),
    ],
    ids=["off", "older runs", "undefined"],
)
def test_a_report_without_estimates_says_why(made, why):
    assert f"the estimates of the entropy change were is not shown: {why}." in render(made, {})
    assert f"is not known here: {why}." in captions.CAPTIONS["quadrants"].shows(made)
    assert summary(made)["estimates"] == {}
    with pytest.raises(SteerError, match="nothing to draw"):
        probes.estimates_figure(made)


def test_an_estimate_that_is_nowhere_defined_is_left_out_and_the_others_stay():
    made = comparison()
    made.metrics[["probe/pearson/paper", "probe/sign/paper", "probe/pearson/exact"]] = NAN
    figure = probes.estimates_figure(made)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["first order", "exact (one state)", "released code", "covariance"]
    assert "exact" not in lines(figure.axes[0])
    assert set(probes.quality(made)["by_estimate"]["exact"]) == {"sign", "change"}
    assert f"exact (one state) {wording.MISSING} and 0.600 [" in captions.estimates_numbers(made)
    assert "nan" not in captions.estimates_numbers(made)


def test_methods_without_a_probe_are_not_counted_and_the_others_are_named():
    made = comparison()
    made.metrics.loc[made.metrics.arm != "steer", [name for name in made.metrics if name.startswith("probe/")]] = NAN
    assert probes.watched_arms(made) == ["steer"]
    assert list(probes.quality(made)["by_arm"]) == ["steer"]
    assert captions.estimates_shows(made).startswith("At every rollout of STEER one optimiser step")
    without_times = probes.quality(without(made, "time/"))
    assert without_times["probe_seconds"] != without_times["probe_seconds"]


def test_an_arm_keeps_its_colour_when_others_are_missing():
    whole, part = figures.training_figure(comparison()), figures.training_figure(comparison(arms=("slow",)))
    assert lines(whole.axes[0])["slow"].get_color() == lines(part.axes[0])["slow"].get_color()


def test_a_report_made_twice_has_the_same_bytes_and_leaves_the_settings_of_matplotlib_alone(report, tmp_path):
    before = dict(matplotlib.rcParams)
    assert write_report(comparison(), tmp_path).read_bytes() == report.read_bytes()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("made", "banner"),
    [
        (comparison(seeds=(0,)), "One seed"),
        (comparison(seeds=(0, 1)), "Fewer than 3 seeds"),
        (comparison(arms=("grpo", "steer"), complete=False), "Partial: 6 of 9"),
        (comparison(arms=("steer",), complete=False), "Partial: 3 of 9"),
        (comparison(evaluated=False, complete=False), "Partial: 0 of 9"),
    ],
    ids=["one seed", "two seeds", "an arm missing", "no baseline", "no evaluation"],
)
def test_partial_and_small_comparisons_render_under_a_banner(made, banner, tmp_path):
    page = write_report(made, tmp_path).read_text(encoding="utf-8")
    assert f'<div class="banner">{banner}' in page
    assert any(text.startswith(banner) for text in banners(made))
    assert ("no interval (one seed)" in page) == (made.plan.seeds == [0])
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower().split()
    summary_table(made)


def test_an_empty_comparison_has_no_figure(tmp_path):
    with pytest.raises(SteerError, match="train first"):
        figures.save_figures(comparison(seeds=(0,), arms=()), tmp_path)


def test_settings_are_told_by_what_differs_and_without_the_seed():
    before, after = {"train": {"seed": 0, "rollouts": 4}}, {"train": {"seed": 1, "rollouts": 8}}
    assert changed_settings(before, after) == ["train.rollouts=8"]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.0003, 0.027, "+0.0003 to +0.0270"),
        (-0.02, -0.00004, f"{wording.MINUS}0.02000 to {wording.MINUS}0.00004"),
        (-0.0004, 0.02, f"{wording.MINUS}0.0004 to +0.0200"),
        (0.0006, 0.02, "+0.001 to +0.020"),
        (0.0, 0.02, "0.000 to +0.020"),
    ],
)
def test_the_bounds_of_a_difference_have_the_digits_that_decide(low, high, told):
    assert wording.bounds(Interval((low + high) / 2, low, high), signed=True) == told


def test_what_stands_between_backticks_is_code_and_nothing_stays_raw():
    made = comparison()
    noted = replace(made, plan=replace(made.plan, note="Run `steer compare` for <all>."), notes=["see `x`; 1 ` 2"])
    page = render(noted, {})
    text = re.sub(r"<style.*?</style>|<[^>]*>", "", page, flags=re.DOTALL)
    assert "Run <code>steer compare</code> for &lt;all&gt;." in page
    assert text.replace("see `x`; 1 ` 2", "").count("`") == 0


def test_the_summary_keeps_counts_by_problem_and_mean_weights():
    told, made = summary(comparison()), comparison()
    assert len(told["counts"]) == 1 + (made.evaluations.step > 0).sum()
    assert told["counts"][0]["arm"] is None
    row = next(row for row in told["counts"] if (row["arm"], row["seed"], row["step"]) == ("steer", 1, 4))
    assert [int(count) for count in row["correct"].split()] == [2] * 3 + [1] * 2 + [0] * 5
    weighted = made.metrics[made.metrics.arm == "steer"].groupby("seed")["lambda/mean"].mean()
    assert told["weights"]["steer"]["lambda/mean"]["mean"] == pytest.approx(weighted.mean())

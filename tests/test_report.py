"""The report says what its numbers allow, shows them in every figure, and carries all it needs."""

import json
import re
from dataclasses import replace

import matplotlib
import pytest
from rich.console import Console
from synthetic import comparison

from steer_core.errors import SteerError
from steer_core.report import figures, wording
from steer_core.report.page import banners, changed_settings, summary, summary_table, what_happened, write_report
from steer_core.statistics import Interval

NAN = float("nan")
UP, DOWN, OPEN = Interval(0.04, 0.02, 0.06), Interval(-0.04, -0.06, -0.02), Interval(0.01, -0.02, 0.04)
HOSTILE = '<script>alert("x")</script> $\\frac{ & [bold]'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return write_report(comparison(), tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


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
    assert page.count("data:image/svg+xml;base64,") == 5


def test_html_states_numbers_setting_and_limits(page):
    for text in ("+0.093 to +0.117", "0.210", "steer.form=", "steer compare", "2026-01-02", "Undecided", "a note"):
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


def test_an_arm_keeps_its_colour_when_others_are_missing():
    whole, part = figures.training_figure(comparison()), figures.training_figure(comparison(arms=("slow",)))
    assert lines(whole.axes[0])["slow"].get_color() == lines(part.axes[0])["slow"].get_color()


def test_figures_leave_the_settings_of_matplotlib_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    figures.save_figures(comparison(), tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_figures_and_report_are_the_same_bytes_when_made_twice(tmp_path):
    one, two = write_report(comparison(), tmp_path / "one"), write_report(comparison(), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


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

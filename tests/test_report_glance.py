"""The first screen of a report answers "what happened?": one sentence, three verdicts, and the numbers that decide."""

import re
from dataclasses import replace

import pytest
from synthetic import comparison, counts

from steer_core.compare.report import glance
from steer_core.compare.report.page import render, write_report
from steer_core.stats.intervals import Interval

NAN = float("nan")


def with_levels(**levels):
    """A comparison whose arms end at these (twice, once) right of 10 problems, by seed: ((seed 0), (seed 1), ...)."""
    made = comparison()
    frame = made.evaluations.copy()
    for arm, by_seed in levels.items():
        for seed, pair in enumerate(by_seed):
            rows = (frame.arm == arm) & (frame.seed == seed) & (frame.step == 4)
            frame.loc[rows, "correct"] = frame.loc[rows, "correct"].map(lambda _, pair=pair: counts(*pair))
    return replace(made, evaluations=frame)


def alone(arm="steer", seeds=(1,), **options):
    made = comparison(seeds, (arm,), **options)
    return replace(made, plan=replace(made.plan, arms={arm: made.plan.arms[arm]}, baseline=arm))


def started_at(made, twice, once):
    """The same with a base model that was right so often."""
    base = {**made.base, "correct": counts(twice, once)}
    frame = made.evaluations.copy()
    rows = frame.step == 0
    frame.loc[rows, "correct"] = frame.loc[rows, "correct"].map(lambda _: counts(twice, once))
    return replace(made, base=base, evaluations=frame)


@pytest.mark.parametrize(
    ("interval", "mark"),
    [
        (Interval(0.1, 0.05, 0.2), "yes"),
        (Interval(-0.1, -0.2, -0.05), "no"),
        (Interval(0.1, -0.1, 0.3), "open"),
        (Interval(0.1, NAN, NAN), "open"),
    ],
)
def test_an_answer_is_given_only_where_the_interval_excludes_0(interval, mark):
    assert glance.mark_of(interval) == mark
    assert glance.mark_of(interval, "lower") == {"yes": "no", "no": "yes", "open": "open"}[mark]


def test_collapse_is_said_where_entropy_and_pass_at_k_fell():
    made = started_at(comparison(), 0, 10)  # pass@2 is 1 at the start, 0.4 at the end
    collapse = glance.verdicts(made)[0]
    assert (collapse.question, collapse.mark) == ("Does GRPO collapse?", "yes")
    assert collapse.answer == "Entropy fell, and so did pass@2."
    assert collapse.number.startswith("pass@2, end minus start: \u22120.600 [")
    assert glance.result(made).startswith("GRPO collapses: in 4 rollouts entropy went from 0.400 to 0.210, ")
    assert "pass@2 went from 1.000 to 0.400" in glance.result(made)


def test_entropy_that_rose_is_no_collapse_whatever_pass_at_k_did():
    made = started_at(comparison(), 0, 10)
    base = {**made.base, "policy_entropy": 0.1}
    frame = made.evaluations.copy()
    frame.loc[frame.step == 0, "policy_entropy"] = 0.1
    collapse = glance.verdicts(replace(made, base=base, evaluations=frame))[0]
    assert collapse.mark == "no"
    assert collapse.answer.startswith("Entropy did not fall")


def test_a_pass_at_k_that_may_not_have_moved_leaves_collapse_open():
    collapse = glance.verdicts(comparison())[0]
    assert (collapse.mark, collapse.answer) == ("open", "Entropy fell; whether pass@2 fell is open.")


def test_a_method_is_better_only_where_its_interval_at_equal_pass_at_1_lies_above_0():
    better = with_levels(steer=((2, 4), (2, 4), (1, 6)), grpo=((4, 0),) * 3)
    worse = with_levels(grpo=((2, 4), (2, 4), (1, 6)), steer=((4, 0),) * 3)
    for made, mark, words in ((better, "yes", "has more pass@2 than GRPO"), (worse, "no", "has less pass@2 than GRPO")):
        verdict = glance.verdicts(made)[1]
        assert (verdict.question, verdict.mark) == ("Is STEER better than GRPO?", mark)
        assert words in glance.result(made)
    assert "whether STEER has more pass@2 than GRPO at equal pass@1 is undecided" in glance.result(comparison())


def test_one_seed_and_agreeing_seeds_decide_nothing_and_say_why():
    one, agreeing = (glance.verdicts(comparison(seeds))[1] for seeds in ((0,), (0, 1, 2)))
    assert (one.mark, one.answer) == ("open", "One seed cannot tell: there is no interval.")
    assert (agreeing.mark, agreeing.answer) == ("open", "Every seed says the same: there is no spread to judge by.")


def test_the_third_question_is_the_controls_or_entropys_where_there_is_none():
    assert glance.verdicts(comparison())[2].question == "Is STEER more than learning more slowly?"
    made = comparison()
    plan = replace(made.plan, arms={arm: made.plan.arms[arm] for arm in ("grpo", "steer")})
    frames = {name: getattr(made, name)[lambda f: f.arm.isin(["grpo", "steer"])] for name in ("metrics", "evaluations")}
    third = glance.verdicts(replace(made, plan=plan, **frames))[2]
    assert (third.question, third.mark) == ("Does STEER keep more entropy?", "yes")
    assert "entropy, STEER minus GRPO: +0.105 [" in third.number


def test_unfinished_runs_answer_nothing():
    made = comparison(evaluated=False, complete=False)
    assert glance.result(made) == "Nothing is compared yet: GRPO has not finished a seed."
    assert {verdict.mark for verdict in glance.verdicts(made)} == {"open"}


def test_one_run_answers_for_itself():
    told = glance.verdicts(alone())
    assert [(v.question, v.mark) for v in told] == [
        ("Did entropy fall?", "yes"), ("Is it right more often?", "yes"), ("Does it reach fewer problems?", "no"),
    ]  # fmt: skip
    assert "pass@1 rose from 0.050 to 0.400." in told[1].answer
    assert "no interval (one seed)" in told[0].number
    assert glance.result(alone()).startswith("In 4 rollouts of STEER, entropy went from 0.400 to 0.315")
    assert glance.result(started_at(alone(), 0, 10)).startswith("STEER collapses: in 4 rollouts entropy")
    unseen = glance.verdicts(alone(evaluated=False))
    assert [v.question for v in unseen] == ["Did entropy fall?"]
    assert "from 0.390 to 0.360 nats" in unseen[0].answer


@pytest.mark.parametrize("made", [comparison(), alone()], ids=["comparison", "one run"])
def test_the_page_begins_with_the_sentence_two_definitions_the_verdicts_and_the_figure(made, tmp_path):
    page = write_report(made, tmp_path).read_text(encoding="utf-8")
    places = [page.index(text) for text in ('class="result"', 'class="words"', 'class="verdicts"', "<figure", "<h2>")]
    assert places == sorted(places)
    first = page[: page.index("<h2>")]
    assert len(re.findall(r"<dt>", first)) == 2
    assert first.count('<span class="mark">') == 3
    assert first.count("<figure") == 1
    assert "Figure 1. Entropy collapse." in first
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings.index("In words") < headings.index("More figures") < headings.index("How to read this")


def test_without_an_evaluation_the_first_figure_is_the_training_one():
    page = render(alone(evaluated=False), {"training": b"", "weights": b""})
    assert "Figure 1. Training." in page[: page.index("<h2>")]


def test_of_several_methods_the_number_is_that_of_one_that_is_decided(monkeypatch):
    made = comparison()
    table = {"steer": {"pass@2": Interval(0.3, -0.1, 0.7)}, "slow": {"pass@2": Interval(0.1, 0.05, 0.2)}}
    monkeypatch.setattr(glance, "tested", lambda _: ["steer", "slow"])
    monkeypatch.setattr(type(made), "differences_at_equal_pass1", lambda self, against=None: table)
    better = glance.verdicts(made)[1]
    assert (better.question, better.mark) == ("Is any method better than GRPO?", "yes")
    assert better.answer == "At equal pass@1, GRPO, slower has more pass@2."
    assert better.number.startswith("pass@2, GRPO, slower minus GRPO: +0.100 [")
    told = glance.result(made)
    assert "at equal pass@1 GRPO, slower has more pass@2 than GRPO; whether STEER has more pass@2 than GRPO" in told

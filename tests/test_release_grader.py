"""The release's grading beside the strict one: what it takes, from where, and where the two part."""

import pytest

from steer_core.rewards import Verdict, graders_of
from steer_core.rewards.maths import MathsGrader
from steer_core.rewards.release import ReleaseGrader, judge


def right(truth, response, training=False):
    return judge((truth, response, training))[0] == "right"


def test_training_asks_for_the_very_text_of_the_last_box_within_the_last_100_characters():
    assert right("18", r"\boxed{5} \boxed{18}", training=True)
    assert not right("18", r"\boxed{18} \boxed{5}", training=True)
    assert not right("18", r"\boxed{18.0}", training=True)
    assert right("18", r"\boxed{18}" + "." * 90, training=True)
    assert not right("18", r"\boxed{18}" + "." * 91, training=True)
    assert judge(("18", "Answer: 18", True)) == ("unanswered", None)
    assert judge(("18", r"\boxed{18", True)) == ("unanswered", None)


def test_evaluation_reads_a_box_then_a_phrase_then_the_last_number_of_the_last_300_characters():
    assert right("18", r"the answer is 5, \boxed{18}, or 4")
    assert right("18", "The answer is 18.\nThere were 5.")
    assert not right("18", "The answer is 5.\nThere were 18.")
    assert right("18", "first 5, then 18")
    assert right("1,800", "first 5, then 1,800 of them")
    assert right("18", r"\boxed{18" + "\n")
    assert right("18", "18" + "." * 298)
    assert not right("18", "18" + "." * 300)
    assert judge(("18", r"The value is 18: \boxed{}", False)) == ("unanswered", None)
    assert judge(("18", "I do not know", False)) == ("unanswered", None)


HALVES = ["0.5", "50", "0.005", r"50\%", "0.500049", r"\frac{1}{2}", "x=0.5", r"0.5\text{ cm}", r"\sqrt{0.25}"]


@pytest.mark.parametrize("answer", HALVES)
def test_evaluation_takes_a_number_its_hundredth_and_its_hundredfold_within_1e_4(answer):
    assert right("0.5", rf"\boxed{{{answer}}}")


@pytest.mark.parametrize("answer", ["5", "0.50006", "-0.5", "", r"\text{half}", "0.5x", r"9^9^9^9", "(0.5, 1)"])
def test_evaluation_takes_nothing_else_for_a_number(answer):
    assert not right("0.5", rf"\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("truth", "answer"),
    [("(1,2)", "[1, 200]"), ("x^2+2x+1", "(x+1)^2"), ("Evelyn", "evelyn"), (r"2\sqrt{5}", "4.4721"), ("2x", "x+x")],
)
def test_evaluation_compares_parts_text_and_formulas(truth, answer):
    assert right(truth, rf"\boxed{{{answer}}}")
    assert not right(truth, r"\boxed{7}")


@pytest.mark.parametrize(
    ("truth", "response", "strict", "release"),
    [
        ("18", r"\boxed{18}", True, True),
        ("18", r"\boxed{17}", False, False),
        ("18", r"\boxed{1800}", False, True),
        ("100000", r"\boxed{100001}", False, True),
        ("18", "so 18", False, True),
        ("18", r"\boxed{18", False, True),
        ("18", r"The value is 18: \boxed{}", False, False),
        ("18", r"\boxed{18 \text{ thousand}}", False, True),
        ("(1,2)", r"\boxed{[1,2]}", False, True),
        ("1,2", r"\boxed{2,1}", True, False),
        ("18", r"\boxed{18}" + " That is all there is to say." * 15 + " 5", True, False),
    ],
)
def test_where_the_two_graders_part(truth, response, strict, release):
    verdicts = [grader.grade([truth], [response])[0].correct for grader in graders_of("maths")]
    assert verdicts == [strict, release]


def test_the_strict_grader_comes_first_and_both_answer_in_verdicts():
    graders = graders_of("maths")
    assert [grader.name for grader in graders] == ["strict", "release"]
    assert [type(grader) for grader in graders] == [MathsGrader, ReleaseGrader]
    assert ReleaseGrader().grade(["1", "1", "1"], [r"\boxed{1}", "2", "?"]) == [
        Verdict("right", "1"),
        Verdict("wrong", "2"),
        Verdict("unanswered", None),
    ]
    assert ReleaseGrader(training=True).grade(["1"], ["1"]) == [Verdict("unanswered", None)]
    with pytest.raises(ValueError, match="longer"):
        ReleaseGrader().grade(["1"], ["1", "2"])

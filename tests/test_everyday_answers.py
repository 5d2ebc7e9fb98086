"""The strict maths grader on everyday right and wrong answers, the facts behind them, and what thinking is."""

import random
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from steer_core.config.tasks import MathsConfig
from steer_core.rewards import graders_of
from steer_core.rewards.answers import final_answer, last_expression
from steer_core.rewards.base import after_thinking
from steer_core.rewards.maths import MathsGrader, judge
from steer_core.rewards.quantities import changes_a_number, measure, number
from steer_core.rewards.ranges import as_intervals
from steer_core.rewards.same_answer import agree, canonical

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import everyday
from everyday_forms import FORMS

ANSWERS = yaml.safe_load((Path(__file__).parent / "fixtures" / "everyday_answers.yaml").read_text(encoding="utf-8"))
EXAMPLES = settings(max_examples=40, deadline=None)
WHOLE = st.integers(2, 10**9)


def judged_right(truth: str, response: str, anywhere: bool = False) -> bool:
    return judge((truth, after_thinking(response), anywhere))[0] == "right"


@pytest.mark.parametrize("form", ANSWERS["right"])
def test_a_right_answer_in_an_everyday_form_is_right(form):
    made = ANSWERS["right"][form]
    assert [(truth, each) for truth, answers in made.items() for each in answers if not agree(truth, each)] == []


@pytest.mark.parametrize("form", ANSWERS["wrong"])
def test_a_wrong_answer_in_an_everyday_form_is_wrong(form):
    made = ANSWERS["wrong"][form]
    assert [(truth, each) for truth, answers in made.items() for each in answers if agree(truth, each)] == []


@pytest.mark.parametrize("right", [True, False])
def test_a_response_in_prose_is_judged_by_the_answer_that_it_marks(right):
    made = ANSWERS["right responses" if right else "wrong responses"]["prose"]
    found = [(truth, each) for truth, responses in made.items() for each in responses]
    assert [pair for pair in found if judged_right(*pair) != right] == []


@EXAMPLES
@given(WHOLE, WHOLE)
def test_numbers_side_by_side_are_a_product_and_never_a_sum(one, other):
    one, other = one % 1000 + 2, other % 1000 + 3
    for written in (f"{one}({other})", f"({one})({other})", rf"{one}\left({other}\right)", f"x={one}({other})"):
        assert agree(str(one * other), written)
        assert not agree(str(one + other), written)
    for nothing in (f"{one} {other % 90 + 1}", rf"{one}\,{other % 90 + 1}", f"{one}{{{other}}}"):
        assert not agree(str(one + other % 90 + 1), nothing)
        assert not agree(str(one * (other % 90 + 1)), nothing)


@EXAMPLES
@given(st.integers(1000, 10**12), st.sampled_from([",", "{,}", r"\,", r"\ ", " ", r",\!", "\u202f", "~"]))
def test_groups_of_three_digits_are_one_number_with_and_without_a_unit(value, mark):
    written = f"{value:,}".replace(",", mark)
    for answer in (written, rf"\${written}", rf"{written} \text{{ miles}}", f"{written} dollars", f"x = {written}"):
        assert agree(str(value), answer)
        assert not agree(str(value + 1), answer)
        assert not agree(str(value % 1000), answer)
        assert canonical(answer) == str(value)


@EXAMPLES
@given(st.integers(-99, 99), st.integers(1, 98), st.integers(2, 99))
def test_a_whole_number_before_a_fraction_is_a_mixed_number(whole, over, under):
    sign, size = ("-", -whole) if whole < 0 else ("", whole)
    value = Fraction(over, under) + size
    truth = f"{'-' if whole < 0 else ''}{value}"
    for written in (rf"{sign}{size}\frac{{{over}}}{{{under}}}", f"{sign}{size} {over}/{under}"):
        assert agree(truth, written)
    if size * Fraction(over, under) != value:
        assert not agree(truth, rf"{sign}{size}\cdot\frac{{{over}}}{{{under}}}")


@EXAMPLES
@given(st.integers(0, 99), st.text("0123456789", max_size=3), st.text("0123456789", min_size=1, max_size=6))
def test_a_decimal_with_a_period_is_its_fraction(whole, before, period):
    value = whole + Fraction(int(before or 0), 10 ** len(before))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(before))
    for written in (rf"{whole}.{before}\overline{{{period}}}", f"{whole}.{before}({period})"):
        assert number(written).value == value
    assert number(rf"{whole}.{before}{period * 3}\ldots").value == value
    assert number(rf"{whole}.{before}\ldots") is None or len(before) > 1


@EXAMPLES
@given(st.integers(-50, 50), st.integers(1, 50), st.booleans(), st.booleans())
def test_an_inequality_is_its_interval_and_no_other(lower, width, closed_below, closed_above):
    upper, opening, closing = lower + width, "(["[closed_below], ")]"[closed_above]
    interval = f"{opening}{lower},{upper}{closing}"
    less = [r"\le" if closed else "<" for closed in (closed_below, closed_above)]
    more = [r"\ge" if closed else ">" for closed in (closed_below, closed_above)]
    for written in (
        f"{lower} {less[0]} x {less[1]} {upper}",
        f"{upper} {more[1]} x {more[0]} {lower}",
        rf"x {more[0]} {lower} \text{{ and }} x {less[1]} {upper}",
        rf"\{{t \mid {lower} {less[0]} t {less[1]} {upper}\}}",
    ):
        assert agree(interval, written)
        assert not agree(f"{'(['[not closed_below]}{lower},{upper}{closing}", written)
        assert not agree(f"{opening}{lower},{upper + 1}{closing}", written)


@EXAMPLES
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5, unique=True), st.randoms())
def test_a_list_agrees_in_any_order_and_in_boxes_of_its_own(values, draw):
    truth, turned = ", ".join(map(str, values)), values.copy()
    draw.shuffle(turned)
    assert judged_right(truth, " and ".join(rf"$\boxed{{{each}}}$" for each in turned))
    assert judged_right(truth, rf"\boxed{{\{{{', '.join(map(str, turned))}\}}}}")
    assert not judged_right(truth, " and ".join(rf"$\boxed{{{each}}}$" for each in turned[1:]))
    assert not judged_right(str(turned[-1]), ", ".join(rf"\boxed{{{each}}}" for each in turned))


def test_entries_of_a_tuple_have_to_be_as_many():
    assert not agree("(2,3)", "(2,3,4)")
    assert not agree("(2,3,4)", "(2,3)")


def test_words_that_change_a_number_are_no_units_and_words_for_things_are():
    changing = ["thousands", "dozen", "hundredths", "million", "quintillions", "twentieths", "divided", "squared"]
    assert all(changes_a_number([word]) for word in changing)
    assert not any(map(changes_a_number, (["miles"], ["tents"], ["seconds"], ["people"])))
    assert measure(r"7 \text{ dozens}") == (r"7 \text{ dozens}", None)
    assert measure("7 dollars an hour")[0] == "7"


def test_inequalities_in_two_variables_are_no_interval():
    assert as_intervals("x<y") == (None, "x<y")
    assert not agree("x<3", "y<3")
    assert agree("x<3", r"(-\infty,3)")


def test_a_stray_number_is_read_whole_and_with_the_word_that_changes_it():
    found = {
        "it comes to 10 000": "10 000",
        "it comes to 1 4/5": "1 4/5",
        "so 57,500 dollars": "57,500",
        "so 7 thousand": "7 thousand",
        r"so 7 \text{ dozens}": "7 dozens",
        "3 of 7 eggs": "7",
    }
    assert {text: last_expression(text) for text in found} == found
    assert not judged_right("0", "it comes to 10 000", anywhere=True)
    assert judged_right("10000", "it comes to 10 000", anywhere=True)
    assert not judged_right("7", "Answer: 7 dozens", anywhere=True)
    assert not judged_right("7", r"\boxed{2\,5}", anywhere=True)


@pytest.mark.parametrize(
    ("response", "skip", "read"),
    [
        (r"<think>\boxed{18}</think>", "unanswered", "right"),
        (r"<think>\boxed{18}", "unanswered", "right"),
        (r"\boxed{18}</think>", "unanswered", "right"),
        (r"<think>\boxed{5}</think> So \boxed{18}", "right", "right"),
        (r"<think>\boxed{18}</think> So \boxed{5}", "wrong", "wrong"),
        (r"<think>a</think> \boxed{18} <think>b", "unanswered", "right"),
        (r"<think>a</think> \boxed{5} <think>b</think> The answer is 18.", "right", "wrong"),
        (r"<thinking>Answer: 18</thinking>", "unanswered", "wrong"),
        (r"\boxed{18}", "right", "right"),
    ],
)
def test_what_is_thought_is_no_answer_unless_it_is_asked_for(response, skip, read):
    assert MathsGrader().grade(["18"], [response])[0].status == skip
    assert MathsGrader(thinking="read").grade(["18"], [response])[0].status == read


def test_the_policy_on_thinking_is_a_setting_of_training_and_evaluation():
    assert graders_of("maths")[0].thinking == MathsConfig(file="a").thinking == "skip"
    assert graders_of("maths", thinking="read")[0].thinking == "read"
    with pytest.raises(ValueError, match="thinking: 'hide' is none of skip, read"):
        MathsGrader(thinking="hide")


def test_every_form_writes_right_and_wrong_answers_of_a_truth_that_it_fits():
    fits = {
        "currency": "57500", "thousands": "57500", "units": r"2\sqrt{5}", "interval and inequality": r"(5,\infty)",
        "mixed fraction": r"\frac{9}{5}", "percent": r"\frac{1}{4}", "repeating decimal": r"\frac{1}{6}",
        "equation": "5", "set and list order": "1,2,3", "choice letter": "(B)", "nested box": r"\frac{1}{2}",
        "prose": "42",
    }  # fmt: skip
    assert fits.keys() == FORMS.keys()
    for name, truth in fits.items():
        answers = FORMS[name](truth)
        assert [each for each in answers.right if not judged_right(truth, each)] == [], name
        assert [each for each in answers.wrong if judged_right(truth, each)] == [], name
        assert answers.right
        assert answers.wrong
        assert name == "prose" or FORMS[name]("There is no such number").right == []


def test_the_table_of_forms_counts_what_is_rejected_and_accepted():
    form = everyday.measure_form("equation", ["5", "7"])
    assert (form["ground_truths"], form["right"], form["wrong"]) == (2, 4, 4)
    assert (form["rejected"], form["accepted"], form["exceptions"]) == (0, 0, [])
    assert everyday.drawn("equation", "5") == everyday.drawn("equation", "5")
    text = everyday.rates({"equation": form | {"rejected": 1}})
    assert "| equation | 2 | 4 | 25.00 (1) | 4 | 0.00 (0) |" in text
    assert "| all | 2 | 4 | 25.00 (1) | 4 | 0.00 (0) |" in text


def test_random_text_is_judged_without_an_exception_and_agrees_with_itself_only():
    draw, pieces = (
        random.Random(0),
        [r"\frac", "{", "}", "1", "23", ",", r"\boxed{", r"\text{ cm}", "=", "x", "(", ")", "%"],
    )
    pieces += [r"\$", r"\approx", r"\overline{3}", ".", "<", r"\cup", " or ", "(B) ", r"\pm", "^", "_", "$", r"\ldots"]
    for _ in range(150):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 9)))
        assert judge(("918273", rf"\boxed{{{text}}}", True))[0] in ("wrong", "unanswered"), text
        final_answer(text)
        canonical(text)

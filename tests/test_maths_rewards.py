"""The strict maths grader: which answers agree, what cannot fool it, and that it always comes to an end."""

import random
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import pytest

from steer_core.common.errors import SteerError
from steer_core.problems import Countdown, Problem
from steer_core.problems.sets import data_folder, facts_of, read_release
from steer_core.rewards import Grader, Verdict
from steer_core.rewards.answers import final_answer, last_expression
from steer_core.rewards.countdown import CountdownGrader
from steer_core.rewards.maths import MathsGrader, judge
from steer_core.rewards.same_answer import agree, canonical
from steer_core.rewards.same_formula import DEEPEST
from steer_core.rewards.workers import WorkerPool

sys.path.insert(0, str(Path(__file__).parent.parent / "reproduce"))
import graders as script
from wrong_answers import KINDS, boxed, neighbour, wrong_answer

SAMPLE = 15
SAME = {
    "18": [
        "18.00", "018", "+18", "18,", r"\text{18}", r"\mathbf{18}", r"\left(18\right)", "{18}", r"\displaystyle 18",
        "x = 18", r"\angle ABC = 18^\circ", "AB = 18", r"n = 9 \cdot 2 = 18", r"\text{Area} = 18", r"18 \text{ cm}",
        r"18\,\mathrm{cm}", r"18\ \text{cm}^2", "18 dollars", r"\$18", r"18^\circ", r"18\text{ eggs}", r"\frac{36}{2}",
        r"2\cdot 9", r"1.8\times 10^1", r"\{18\}", r"\boxed{18}", "(18)", "1800%",
    ],
    r"\frac{1}{2}": ["0.5", "1/2", r"\dfrac{1}{2}", ".5", r"\frac12", r"50\%", r"\frac{2}{4}"],
    "1/3": ["0.333333", r"\frac{-1}{-3}"],
    "50": [r"50\%", "50 percent"],
    "62.5%": ["62.5", r"62.5\%", "0.625", r"\frac{5}{8}", r"62.5 \text{ percent}"],
    "2,125": ["2125", r"2{,}125", r"2\,125"],
    "4.5e33": [r"4.5 \times 10^{33}", r"4.5\cdot 10^{33} \text{ erg}", "4.5*10^33"],
    r"2\sqrt{5}": [r"\sqrt{20}", "4.472136", r"2 \sqrt5", "2sqrt(5)"],
    r"1\frac{4}{5}": ["9/5", "1.8"],
    r"\infty": [r"+\infty", "∞"],
    "1,-2": ["-2, 1", r"\{1,-2\}", r"1 \text{ and } -2", "x=1 or x=-2", "x=-2,1", r"x \in \{1,-2\}", "a_1=1, a_2=-2"],
    r"3\pm2\sqrt{2}": [r"3+2\sqrt2, 3-2\sqrt2", r"x = 3 \pm 2\sqrt{2}"],
    r"(3,\frac{\pi}{2})": [r"\left(3, \frac{\pi}{2}\right)", r"(r, \theta) = (3, \pi/2)"],
    "(1,8,19), (2,7,13)": ["(2,7,13),(1,8,19)", r"\{(1,8,19), (2,7,13)\}"],
    r"(-\infty,2)\cup(3,\infty)": [r"x \in (3,\infty) \cup (-\infty, 2)"],
    "[-2,7]": [r"-2\le x\le 7", r"x\in[-2,7]"],
    r"k \geqslant 2": [r"k \ge 2", r"2 \le k", "k≥2", r"[2,\infty)"],
    r"\begin{pmatrix}-1/3\\2/3\end{pmatrix}": [r"\begin{bmatrix} -\frac{1}{3} \\ \frac{2}{3} \end{bmatrix}"],
    "y=-2x": ["-2x", "y = -2 x"],
    "f(x)=x+1": ["f(x) = 1 + x", "x+1"],
    "5x-7y+11z+4=0": ["10x-14y+22z+8=0", "5x-7y+11z=-4", "-4=5x-7y+11z"],
    "a = 2, b = -14": ["b=-14, a=2"],
    "(a+5)(b+2)": ["ab+2a+5b+10"],
    "6-5i": ["-5i+6", "6 - 5 i"],
    r"\frac{4A}{3+3i}e^{it}": [r"\frac{4 A e^{i t}}{3+3i}"],
    "Evelyn": [r"\text{Evelyn}", "evelyn", r"\textbf{Evelyn}"],
    r"\text{No}": ["no", "No."],
    "(B)": ["B", r"\text{(B)}"],
    "4210_{5}": ["4210_5", "4210"],
    r"40 \text{ minutes}": ["40", "40 minutes", r"40\text{ min}"],
    r"5 \text{ cm}^2": [r"5 \text{ square centimeters}"],
    r"\cos\frac{\pi}{5}": [r"\frac{1+\sqrt{5}}{4}"],
    r"\[\boxed{337}\]": ["337"],
    r"n=\boxed {1,3}": ["1,3"],
    r"k \ne 1": [r"k \neq 1"],
    r"\frac{7}{4} \text{ OR } 1.75": ["1.75", r"\frac{7}{4}"],
    "Player 0 wins": [r"\text{Player } 0\text{ wins}"],
    r"\[ n = 2^{a}, \text{ for any } a \]": [r"n=2^{a}, \text{for any } a"],
}  # fmt: skip
DIFFERENT = {
    "3": [
        "x+1=3", "x=2+2=3", "2x=3", r"\sin(x)=3", "x(x+1)=3", "x<3", r"x \equiv 3 \pmod 5", r"\text{Is it }3\text{?}",
        "3?",
    ],
    "18": [
        "", r"\text{}", "18)", "{18", "1 or 18", r"17 \text{ or } 18", "1,18", r"\pm 18", "(2,18)", r"18\ldots",
        r"18 \approx 18.2", r"18 \text{ thousand}", "18 million", r"18\text{ is wrong}", r"\text{not }18", "18!",
        r"18\text{ or more}", r"18 \mod 19", "\uff11\uff18", "\u0661\u0668", "1\uff18", "x=18,y=2", r"18\cdot 10",
        "8", "118", "18.5", "-18", r"\frac{1}{18}", "Answer", r"18\text{ 19}", "1 8", r"18\\19", "18%19", r"\geq 18",
        r"18+10^{-30}", "17.9999999999999999999999999", "17=18", r"\max(18,19)", "f(18)", "18x",
    ],
    "0.5": ["50", "5", r"500\%", "0.50001", ".05"],
    "50": ["0.5", "5000", r"0.5\%"],
    "1/3": ["0.3333", "0.333334", "0.33"],
    "1.325e-27": ["2e-27", "0", "1.325e-26"],
    ".0000672": [".0000673"],
    r"\frac{1}{2^{2017}}": [r"\frac{1}{2^{2018}}", "0", r"-\frac{1}{2^{2017}}"],
    r"\frac{x}{2^{2017}}": [r"\frac{x}{2^{2018}}"],
    r"\sqrt{53}": ["7.28", r"\sqrt{54}"],
    "(2,4)": ["2,4", "[2,4]", r"\{2,4\}", "(4,2)", "(2,4]"],
    "(8,-2)": ["(9,-2)", "(-2,8)"],
    r"1+\frac{1}{2^{2020}}": [r"1+\frac{1}{2^{2021}}", "1"],
    r"\frac{2013^{2014}}{2013^{2013}-1}": [r"\frac{2013^{2014}}{2013^{2013}-2}"],
    r"1.772453850905516 \ldots": [r"1.772453850905517 \ldots", "1.772453850905516"],
    r"|e| = 1": ["|e| = 2"],
    "200203_{-4}": ["200203_{-5}"],
    r"n \equiv 0 (\bmod 6)": [r"n \equiv 0 (\bmod 7)", r"-n \equiv 0 (\bmod 6)", "0"],
    r"\[\boxed{337}\]": [r"-\boxed{337}", r"\frac{1}{\boxed{337}}", r"{\boxed{337}}+1"],
    "1,2,3": ["1,2", "1,2,3,4", "1,2,2", "123"],
    "-2,-2": ["-2"],
    "1,1,2": ["1,2,3", "1,2,2"],
    "4210_{5}": ["4210_6"],
    r"40 \text{ minutes}": [r"40 \text{ hours}", "40 seconds", r"40\%"],
    r"45^\circ": [r"45 \text{ radians}"],
    r"5 \text{ cm}^2": [r"5 \text{ cm}"],
    "6m": ["6", "6 meters"],
    "3R^2": ["3r^2"],
    "x=2": ["x+1=3", "y=2", "x=3"],
    "5x-7y+11z+4=0": ["0", "5x-7y+11z+5=0"],
    r"m\frac{dv}{dt}+bv=f": [r"-m\frac{dv}{dt}+bv=f"],
    r"\gcd(m+1, n) = 1": [r"\gcd(m+1, n) = 2", r"-\gcd(m+1, n) = 1"],
    r"\begin{pmatrix}-7\\16\end{pmatrix}": [r"\begin{pmatrix}-7\\17\end{pmatrix}", "(16,-7)", "-7,16", "[-7,16]"],
    "SRMC": ["MRSC"],
    "NYYYYY": ["YYYYYN"],
    "even": ["odd"],
    "7:55": ["14:110", "7:56"],
    r"\infty": [r"-\infty"],
    "6-5i": ["6+5i"],
    "}{": ["5"],
}  # fmt: skip
TOWER = r"\boxed{9^{9^{9^9}}}"
QUICKLY_READ = [
    r"\boxed{18!!}",
    r"\boxed{e^{e^{e^{e^{10}}}}}",
    r"\boxed{\frac{1}{2014!^{2014}}}",
    r"\boxed{" + "1" * 1_000_000 + "}",
    r"\boxed{" + "{" * 100_000 + "}" * 100_000 + "}",
    r"\boxed{" + r"\frac{1}{" * 90 + "1" + "}" * 91,
    r"\boxed{" + "(" * 450 + "1" + ")" * 450 + "}",
    r"\boxed{" + r"\text{" * 150 + "1" + "}" * 151,
    r"\boxed{" + r"\text{" * 20_000 + "1" + "}" * 20_001,
    r"\boxed{" + "1=" * 400 + "1}",
    r"\boxed{" + " " * 900 + "1}",
    "\\boxed{\x00}",
    "\\boxed{\ud800}",
    r"\boxed{" * 100_000,
    "answer is " * 100_000,
    "answer:" + " " * 1_000_000,
    r"\(a" * 300_000,
    "$ " * 500_000,
    "1," * 500_000,
]


@pytest.mark.parametrize("truth", SAME)
def test_the_same_answer_in_another_form_agrees(truth):
    assert [answer for answer in [truth, *SAME[truth]] if not agree(truth, answer)] == []


@pytest.mark.parametrize("truth", DIFFERENT)
def test_another_answer_that_looks_like_it_does_not_agree(truth):
    assert [answer for answer in DIFFERENT[truth] if agree(truth, answer)] == []


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed {18}", "18"),
        (r"first \boxed{5}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{18}}", r"\boxed{18}"),
        (r"\boxed{7 + \boxed{5}}", r"7 + \boxed{5}"),
        (r"\text{so \boxed{18}}", "18"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"put it in \boxed{ like so: \boxed{18}", "18"),
        (r"\boxed{18} and then \boxed{", None),
        (r"\boxed{18} and then \boxed{19", None),
        (r"\boxed{18} and then \boxed{}", None),
        (r"\boxed{18} and then \boxed{ }", None),
        (r"Answer: 18. In a box: \boxed{}", None),
        (r"\boxed 18", "18"),
        (r"put it in a \boxed form: \boxed{18}", "18"),
        (r"It is $\boxed 18$, I think.", "18"),
        (r"so \boxed5.", "5"),
        (r"so $\boxed -\frac12$.", r"-\frac12"),
        (r"\boxed{18}, as \boxed asks", "18"),
        (r"\fbox{18}", "18"),
        (r"\boxed{5}, or rather \framebox{18}", "18"),
        (r"$\boxed{1}$ and $\boxed{2}$", "1, 2"),
        (r"$x=\boxed{1}$ or $x=\boxed{2}$.", "1, 2"),
        (r"\boxed{1}, \boxed{2}, and \boxed{3}", "1, 2, 3"),
        (r"first \boxed{5}. Then \boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{5} and \boxed{5}", "5"),
        (r"\boxed{1} and \boxed{}", None),
        (r"\boxed{1}, no, \boxed{2}", "2"),
        (r"\boxed{1}. \boxed{2}", "2"),
        (r"\boxed{\boxed{1} and \boxed{2}}", r"\boxed{1} and \boxed{2}"),
        ("The final answer is $42$. I hope it is correct.", "42"),
        ("The final answer is \\(42\\). I hope it is correct.", "\\(42\\)"),
        ("The answer is 42. No, it is 43.", "42. No, it is 43"),
        ("Final Answer: 4.5. Check: 9/2 = 4.5", "4.5"),
        ("Answer: 42, because 40 + 2 = 42", "42"),
        ("The answer is therefore 42.", "42"),
        ("Thus the answer to the question is 42.", "42"),
        ("The answer should be 42!", "42!"),
        ("Answer = 42", "42"),
        ("<answer>42</answer> and so on", "42"),
        ("**Final Answer**\n\n$42$\n", "42"),
        ("### Answer\n42", "42"),
        ("6 + 36 = 42\n#### 42", "42"),
        ("Answer: 42\n#### Notes\nnothing", "42"),
        ("Answer: 4\nAnswer: 18", "18"),
        ("**Answer:** 18.", "18"),
        ("Answer: .25", ".25"),
        ("Answer:\n18 dollars\nThat is all", "18 dollars"),
        ("The answer is $18$.", "18"),
        ("The answer is:\n$$\n18\n$$", "18"),
        ("Unanswered: 18", None),
        ("Answer:", None),
        ("so 18", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_last_box_or_else_the_last_answer_line(response, answer):
    assert final_answer(response) == answer


def test_a_formula_nested_deeper_than_any_answer_is_compared_as_text_alone():
    def nested(depth: int) -> str:
        return r"\frac{1}{" * depth + "2" + "}" * depth

    assert agree("2", nested(DEEPEST))
    assert agree(nested(DEEPEST), "2")
    assert not agree("2", nested(DEEPEST + 1))
    assert agree(nested(DEEPEST + 1), nested(DEEPEST + 1))
    assert canonical(nested(DEEPEST)) == "2"
    assert canonical(nested(DEEPEST + 1)) == nested(DEEPEST + 1)


def test_a_stray_number_is_an_answer_only_where_it_is_asked_for():
    assert judge(("18", "so it comes to 18", False)) == ("unanswered", None)
    assert judge(("18", "so it comes to 18", True)) == ("right", "18")
    assert judge(("18", "Answer: She makes 18 dollars a day.", False))[0] == "wrong"
    assert judge(("18", "Answer: She makes 18 dollars a day.", True))[0] == "right"
    assert judge(("18", r"18, or rather \boxed{}", True)) == ("unanswered", None)
    found = {
        "3-4": "4",
        "is -4": "-4",
        r"so \(x^2\), not 5 but $\frac12$": r"\frac12",
        "1,000.5%": "1,000.5%",
        "no": None,
    }
    assert {text: last_expression(text) for text in found} == found


@pytest.mark.parametrize(
    "equal",
    [
        ["1/2", "0.5", r"\frac{2}{4}", r"x = \frac{1}{2}", r"0.5 \text{ cm}"],
        ["1,-2", r"\{-2, 1\}", r"x=1 \text{ or } x=-2"],
        [r"2\sqrt{5}", r"\sqrt{20}"],
        ["x^2+2x+1", "(x+1)^2", "1 + 2x + x^2"],
        ["(3, 4/8)", r"\left(3, \frac{1}{2}\right)"],
        [r"\text{No}", "no"],
        ["1,000", "1000", r"10^{3}"],
    ],
)
def test_equal_answers_are_one_text_to_a_vote(equal):
    assert len({canonical(answer) for answer in equal}) == 1


def test_different_answers_are_different_texts_to_a_vote():
    answers = ["1", "-1", "1/2", "(1,2)", "(2,1)", "[1,2]", "1,2", "x", "x+1", r"\sqrt{2}", "no", "18!", "18 thousand"]
    answers += ["\ud800", "\uff11", r"2^{2010}", r"2^{2011}", "123456789012345", "123456789012346", r"18\ldots", "18"]
    assert len({canonical(answer) for answer in answers}) == len(answers)


@pytest.mark.parametrize("anywhere", [False, True])
def test_grading_comes_to_an_end_on_every_hostile_text_and_judges_the_others(anywhere):
    texts = QUICKLY_READ if anywhere else [TOWER, *QUICKLY_READ]
    with WorkerPool("steer_core.rewards.maths:judge", workers=2) as pool:
        both = [text for each in texts for text in (each, r"\boxed{18}")]
        verdicts = MathsGrader(anywhere, pool).grade(["18"] * len(both), both)
    assert {verdict.status for verdict in verdicts[1::2]} == {"right"}
    assert not any(verdict.correct for verdict in verdicts[::2])
    ends = [verdict.status for verdict in verdicts[::2]]
    assert ends[:1] == ["timed out"] or anywhere
    assert set(ends[not anywhere :]) == {"wrong", "unanswered"}


def test_graders_answer_from_several_threads_at_once():
    got = {}

    def ask(thread):
        answers = [str(i + thread) for i in range(50)]
        verdicts = MathsGrader().grade([str(i) for i in range(50)], [boxed(answer) for answer in answers])
        got[thread] = [verdict.correct for verdict in verdicts], [verdict.answer for verdict in verdicts] == answers

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {thread: ([thread == 0] * 50, True) for thread in range(4)}


def test_a_verdict_tells_status_and_answer_and_lengths_have_to_match():
    grader: Grader = MathsGrader()
    assert grader.name == "strict"
    assert grader.grade(["1", "1", "1"], [r"\boxed{1.0}", r"\boxed{2}", "1"]) == [
        Verdict("right", "1"),
        Verdict("wrong", "2"),
        Verdict("unanswered", None),
    ]
    assert grader.grade([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        grader.grade(["1", "2"], [r"\boxed{1}"])


def test_long_text_is_right_only_where_it_is_the_references_own():
    sentence = "There is no such number, " * 60
    assert agree(sentence, " ".join(sentence.split(" ")).replace(", ", ",  "))
    assert not agree(sentence, sentence + "and no other")
    assert not agree("1", "1" + "+0" * 600)


def truths_of(name):
    try:
        folder = data_folder()
    except SteerError:
        folder = None
    if folder is None or not (folder / facts_of(name).file).exists():
        pytest.skip(f"{facts_of(name).file} is not in ../shared/data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truths = sorted({truth for _, truth in read_release(name).rows if truth})
    return random.Random(f"graders {name}").sample(truths, min(SAMPLE, len(truths)))


@pytest.mark.parametrize(
    "name", ["dapo-math-17k", "aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench", "gsm8k", "omni"]
)
def test_a_files_ground_truths_are_right_and_ten_wrong_answers_made_from_each_are_wrong(name):
    truths = truths_of(name)
    right = MathsGrader().grade(truths, [boxed(truth) for truth in truths])
    assert [truth for truth, verdict in zip(truths, right, strict=True) if not verdict.correct] == []
    made = [(truth, wrong_answer(kind, truth)) for truth in truths for kind in KINDS]
    made = [(truth, response) for truth, response in made if response is not None]
    wrong = MathsGrader().grade([truth for truth, _ in made], [response for _, response in made])
    assert [pair for pair, verdict in zip(made, wrong, strict=True) if verdict.correct] == []
    assert len(made) > 6 * len(truths)


def test_no_wrong_answer_is_made_that_could_be_right():
    def kinds_without(truth):
        return {kind for kind, make in KINDS.items() if make(truth) is None}

    assert kinds_without("18") == set()
    assert kinds_without("0") == {"sign", "swapped fraction", "other unit"}
    assert kinds_without("0.0") >= {"sign", "other unit"}
    assert kinds_without("1") == {"swapped fraction"}
    assert kinds_without("0,1,2") >= {"sign"}
    assert kinds_without(r"\frac{3}{3}") == {"swapped fraction"}
    assert kinds_without(r"\infty") >= {"nested braces", "off by one", "unicode digits"}
    assert {"sign", "other unit", "off by one", "swapped fraction"} <= kinds_without("Evelyn")
    assert wrong_answer("off by one", r"\[\boxed{337}\]") == boxed("338")
    assert KINDS["sign"](r"\left(\frac{1}{2}\right)^{2}") == boxed(r"-\left(\frac{1}{2}\right)^{2}")
    assert KINDS["swapped fraction"](r"\frac{3}{4}x") == boxed(r"\frac{4}{3}x")
    assert KINDS["other unit"](r"40 \text{ minutes}") == boxed(r"40 \text{ light years}")
    assert [neighbour(truth) for truth in ("1.09", "x^{2}+9", "no")] == ["1.10", "x^{2}+10", None]


def test_the_table_of_rates_counts_problems_and_lists_what_is_not_as_it_should_be():
    file = script.measure_file("some", Counter({"18": 3, "1 \\text{ if } {": 1}))
    assert (file["problems"], file["ground_truths"]) == (4, 2)
    assert file["counts"]["right, boxed"] == {"00": 1, "11": 3}
    assert {each["reason"] for each in file["exceptions"]} == {"its braces do not pair, so no box can hold it"}
    text = script.rates({"some": file}, 0)
    assert text.splitlines()[2].startswith("| some | 4 | 2 | 75.00 (1) | 100 |")
    assert text.splitlines()[0].count("|") == 5 + len(KINDS)
    assert "| right, boxed | 4 | 75.00 | 0.00 | 0.00 | 25.00 |" in script.agreement({"some": file})


def test_countdown_is_graded_by_its_own_verification():
    grader: Grader = CountdownGrader()
    prompt = "3,7,8,21=24:"
    traces = ["21/7=3,3-3=0", "8-7=1,21+3=24,24*1=24", "21+3=24,8-7=1,24*1=24", "8-7=1,21+3=25,24*1=24", "", "24"]
    verdicts = grader.grade([prompt] * len(traces), traces)
    assert [verdict.status for verdict in verdicts] == ["wrong", "right", "right", "wrong", "unanswered", "wrong"]
    assert verdicts[1].answer == verdicts[2].answer != verdicts[3].answer
    task, problem = Countdown(), Problem(prompt, prompt, prompt)
    assert task.grade([problem] * len(traces), traces) == verdicts
    with pytest.raises(ValueError, match="shorter"):
        task.grade([problem, problem], ["24"])
    with pytest.raises(ValueError, match="is no prompt of Countdown"):
        grader.grade(["24"], ["24"])
    with pytest.raises(ValueError, match="shorter"):
        grader.grade([prompt, prompt], ["24"])

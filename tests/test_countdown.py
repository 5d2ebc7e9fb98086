"""Countdown: the verifier against an independent one, on every valid trace and on damaged ones; the splits."""

import random
import re
from fractions import Fraction
from itertools import islice, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steer_core.common.errors import SteerError
from steer_core.config.tasks import CountdownConfig
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems import Countdown, make_task, split_of
from steer_core.problems import countdown as module
from steer_core.rewards.countdown import apply, is_solution

TASK = Countdown()
SMALL = CountdownConfig(numbers=3, largest_number=9)


def value(left, operator, right):
    """The rule in exact fractions: results are positive whole numbers."""
    left, right = Fraction(left), Fraction(right)
    result = {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else None}[operator]
    return int(result) if result is not None and result > 0 and result.denominator == 1 else None


def is_number(text):
    return bool(text) and set(text) <= set("0123456789") and str(int(text)) == text


def solves(prompt, response):
    """The verifier's rules, written a second time, with lists and fractions."""
    numbers, target = prompt.rstrip(":").split("=")
    table = [int(n) for n in numbers.split(",")]
    for step in response.split(","):
        question, equals, result = step.partition("=")
        operators = [c for c in question if c in "+-*/"]
        if len(operators) != 1 or not equals:
            return False
        operands = question.split(operators[0])
        if not all(map(is_number, [*operands, result])):
            return False
        for operand in map(int, operands):
            if operand not in table:
                return False
            table.remove(operand)
        if value(int(operands[0]), operators[0], int(operands[1])) != int(result):
            return False
        table.append(int(result))
    return table == [int(target)]


def traces(table):
    """Every valid trace from the numbers on the table, with its end."""
    if len(table) == 1:
        yield [], table[0]
        return
    for i, j in permutations(range(len(table)), 2):
        rest = [v for k, v in enumerate(table) if k not in (i, j)]
        for operator in "+-*/":
            result = value(table[i], operator, table[j])
            if result is not None:
                step = f"{table[i]}{operator}{table[j]}={result}"
                for steps, end in traces([*rest, result]):
                    yield [step, *steps], end


@pytest.mark.parametrize(
    "config",
    [
        CountdownConfig(),
        SMALL,
        CountdownConfig(numbers=6, largest_number=99, largest_target=999),
        CountdownConfig(numbers=2),
    ],
    ids=str,
)
def test_every_generated_trace_solves_its_problem(config):
    task = Countdown(config)
    for generated, trace in islice(task.solved(random.Random(0)), 300):
        assert task.grade([generated], [trace])[0].correct
        assert solves(generated.prompt, trace)
        numbers, target = generated.prompt.removesuffix(":").split("=")
        numbers = [int(n) for n in numbers.split(",")]
        assert len(numbers) == config.numbers
        assert numbers == sorted(numbers)
        assert 1 <= numbers[0] <= numbers[-1] <= config.largest_number
        assert config.smallest_target <= int(target) <= config.largest_target
        assert generated.id == generated.prompt == generated.reference
        assert set(generated.prompt + trace) <= set(module.CHARACTERS)


@pytest.mark.parametrize("numbers", ["1,2,3", "2,2,4", "3,6,9", "1,1,1,2"])
def test_verifier_accepts_every_valid_trace_and_only_for_its_target(numbers):
    ends = {}
    for steps, end in traces([int(n) for n in numbers.split(",")]):
        ends.setdefault(end, set()).add(",".join(steps))
    assert max(map(len, ends.values())) > 3  # there is something to explore
    for target in ends:
        for end, valid in ends.items():
            assert {is_solution(f"{numbers}={target}:", trace) for trace in valid} == {end == target}


@given(st.integers(0, 10**6), st.data())
def test_verifier_judges_damaged_traces_as_the_rules_do(seed, data):
    generated, trace = next(TASK.solved(random.Random(seed)))
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(trace)))
        width, new = data.draw(st.integers(0, 2)), data.draw(st.text(module.CHARACTERS, max_size=2))
        trace = trace[:at] + new + trace[at + width :]
    assert is_solution(generated.prompt, trace) == solves(generated.prompt, trace)


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("2,3,4=24:", "2*3=7,7*4=24"),  # wrong arithmetic that ends at the target
        ("2,3,4=24:", "2*3=6,6*4=25"),
        ("2,3,4=24:", "2*3=6,6*4=24,24*1=24"),
        ("2,3,4=24:", "2*3=6"),  # a number left over
        ("2,3,4=6:", "2*3=6"),
        ("2,3,4=24:", "4*3=12,12*4=48"),  # 4 used twice
        ("2,3,4=14:", "2*4=8,8+6=14"),  # a number that is not there
        ("2,2,3=12:", "2*3=6,6*3=18"),
        ("2,3,4=24:", "2*3=6,2*4=8"),  # 2 is gone by then
        ("2,3,4=24:", "2+3=5,5+4=9"),  # valid, another target
        ("2,3,4=24:", "4-3=1,1*24=24"),
        ("2,3,4=3:", "2-3=-1,4+-1=3"),  # negative on the way
        ("2,3,4=3:", "2-3=1,4-1=3"),
        ("2,2,3=3:", "2-2=0,0+3=3"),  # zero on the way
        ("2,3,4=5:", "3/2=1,1+4=5"),  # inexact
        ("2,3,4=6:", "3/2=1.5,1.5*4=6"),
        ("2,2,3=3:", "2-2=0,3/0=3"),
        ("2,3,4=24:", "02*3=6,6*4=24"),  # leading zeros
        ("2,3,4=24:", "2*3=06,06*4=24"),
        ("2,3,4=24:", "2*3=6,6*4=024"),
        ("2,3,4=24:", "+2*3=6,6*4=24"),
        ("2,3,4=24:", "2*3=6,6*4=24,"),  # trailing or leading junk
        ("2,3,4=24:", ",2*3=6,6*4=24"),
        ("2,3,4=24:", "2*3=6,6*4=24 "),
        ("2,3,4=24:", "2*3=6,6*4=24\n"),
        ("2,3,4=24:", "2*3=6, 6*4=24"),
        ("2,3,4=24:", "2*3=6,6*4=24=24"),
        ("2,3,4=24:", "2*3=6,6*4=24<eos>"),
        ("2,3,4=24:", "2*3=6;6*4=24"),
        ("2,3,4=24:", "2**3=8,8*3=24"),
        ("2,3,4=24:", "2*3*4=24"),
        ("2,3,4=24:", "2\u00d73=6,6\u00d74=24"),
        ("2,3,4=24:", "٢*٣=٦,٦*٤=٢٤"),  # Arabic-Indic digits
        ("2,3,4=24:", "\uff12*\uff13=\uff16,\uff16*\uff14=\uff12\uff14"),  # full-width digits
        ("2,3,4=24:", "²*3=6,6*4=24"),
        ("2,3,4=24:", ""),
        ("2,3,4=24:", ","),
        ("2,3,4=24:", "24"),
        ("2,3,4=24:", "\x00"),
    ],
)
def test_verifier_rejects(prompt, response):
    assert is_solution(prompt, response) is False


def test_verifier_accepts_what_the_rejected_traces_were_made_from():
    for prompt, response in [
        ("2,3,4=24:", "2*3=6,6*4=24"),
        ("2,3,4=24:", "3*4=12,2*12=24"),
        ("2,3,4=3:", "3-2=1,4-1=3"),
        ("2,2,3=3:", "2/2=1,3/1=3"),
        ("2,2,3=12:", "2*3=6,6*2=12"),
        ("2,3,4=6:", "4/2=2,2*3=6"),
    ]:
        assert is_solution(prompt, response) is True


@pytest.mark.parametrize("text", ["9" * 10**6, "1+1=2," * 10**5, "*" * 10**6, "2*3=6," + "6" * 10**5 + "*4=24"])
def test_verifier_survives_huge_text(text):
    assert is_solution("2,3,4=24:", text) is False


@given(st.text(max_size=60))
def test_verifier_never_raises(text):
    assert is_solution("2,3,4=24:", text) is solves("2,3,4=24:", text)


@pytest.mark.parametrize(
    ("left", "operator", "right", "result"),
    [
        (2, "+", 3, 5),
        (5, "-", 3, 2),
        (3, "-", 3, None),
        (3, "-", 5, None),
        (4, "*", 3, 12),
        (6, "/", 3, 2),
        (7, "/", 3, None),
        (3, "/", 6, None),
        (3, "/", 0, None),
        (0, "/", 3, None),
    ],
)
def test_apply_gives_positive_whole_numbers_or_none(left, operator, right, result):
    assert apply(left, operator, right) == result


def test_apply_raises_on_another_operator():
    with pytest.raises(ValueError, match="operator"):
        apply(1, "%", 1)


def test_splits_are_disjoint_deduplicated_and_go_by_the_hash():
    found = {split: [p.id for p in TASK.problems(split, 300)] for split in ("train", "validation", "test")}
    for split, ids in found.items():
        assert len(set(ids)) == len(ids) == 300
        assert {split_of(i) for i in ids} == {split}
    assert not set(found["train"]) & set(found["test"])
    assert not set(found["train"]) & set(found["validation"])
    assert not set(found["validation"]) & set(found["test"])


def test_split_shares_are_80_10_10():
    names = [split_of(f"{i}") for i in range(5000)]
    shares = {split: names.count(split) / 5000 for split in ("train", "validation", "test")}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.015)


def test_split_of_a_problem_never_moves():
    splits = [split_of(f"1,2,3,{n}=24:") for n in range(4, 14)]
    assert splits == ["train", "train", "validation"] + 7 * ["train"]
    assert split_of("1,2,3,26=24:") == "test"


def test_problems_are_the_same_every_time_and_a_longer_list_begins_with_the_shorter():
    for split in ("train", "test"):
        long = Countdown().problems(split, 60)
        assert Countdown().problems(split, 60) == long
        assert Countdown().problems(split, 25) == long[:25]
    assert TASK.problems("test", 0) == []


def test_every_problem_can_be_solved():
    for generated in TASK.problems("validation", 40):
        numbers, target = re.fullmatch(r"([0-9,]+)=([0-9]+):", generated.prompt).groups()
        assert any(end == int(target) for _, end in traces([int(n) for n in numbers.split(",")]))


def test_asking_for_more_problems_than_exist_raises():
    tiny = Countdown(CountdownConfig(numbers=2, largest_number=3, smallest_target=1, largest_target=9))
    with pytest.raises(SteerError, match=r"found \d+ distinct train problems where 100 are asked for"):
        tiny.problems("train", 100)


def test_targets_that_cannot_be_reached_raise_and_do_not_loop_for_ever(monkeypatch):
    calls, original = [0], module.apply

    def counted(*arguments):
        calls[0] += 1
        assert calls[0] < 200_000, "still searching after 200,000 steps of play"
        return original(*arguments)

    monkeypatch.setattr(module, "apply", counted)
    unreachable = Countdown(CountdownConfig(numbers=2, largest_number=2, smallest_target=10))
    with pytest.raises(SteerError, match="found 0 distinct"):
        unreachable.problems("train", 1)


def test_make_task_passes_the_configuration_on():
    task = make_task(SMALL, character_tokenizer(module.CHARACTERS))
    assert isinstance(task, Countdown)
    assert task.config is SMALL
    assert task.name == SMALL.name


@pytest.mark.parametrize("numbers", [(1, 2), (1, 2, 3), (2, 2, 4), (1, 4, 6, 6)])
@pytest.mark.parametrize("operations", ["+-*/", "+*/", "-"])
def test_reachable_values_are_the_ends_of_all_traces(numbers, operations):
    ends = {
        end
        for steps, end in traces(list(numbers))
        if all(set(re.findall(r"[+*/-]", s)) <= set(operations) for s in steps)
    }
    assert module.reachable(numbers, operations) == ends


def test_reachable_values_have_at_most_six_digits():
    assert module.reachable((999, 999), "*") == {998_001}
    assert module.reachable((999, 1_002), "*") == frozenset()


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_problems_that_need_an_operation_have_no_trace_without_it(split):
    task = Countdown(CountdownConfig(needed="-"))
    for problem in task.problems(split, 12):
        numbers, target = problem.prompt.removesuffix(":").split("=")
        solving = [steps for steps, end in traces([int(n) for n in numbers.split(",")]) if end == int(target)]
        assert solving
        assert all("-" in "".join(steps) for steps in solving)
        assert split_of(problem.id) == split


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_the_share_of_training_problems_that_need_an_operation_holds_for_any_first_ones(share):
    task = Countdown(CountdownConfig(needed="-", needed_share=share))
    needing = [task.needs(problem) for problem in task.problems("train", 100)]
    assert [sum(needing[:n]) for n in range(101)] == [int(n * share + 1e-9) for n in range(101)]
    assert all(map(task.needs, task.problems("test", 20)))


def test_a_share_of_problems_spreads_them_evenly_and_repeats_none():
    task = Countdown(CountdownConfig(needed="-", needed_share=0.5))
    found = [problem.id for problem in task.problems("train", 200)]
    assert len(set(found)) == 200
    assert [task.needs(problem) for problem in task.problems("train", 6)] == [False, True] * 3
    assert [problem.id for problem in task.problems("train", 50)] == found[:50]


def test_an_operation_that_every_problem_needs_and_none_has_is_told_with_the_setting():
    with pytest.raises(SteerError, match=r"task: found 0 distinct test problems \(task.needed /, needed_share 1\)"):
        Countdown(CountdownConfig(needed="/", numbers=2, largest_number=3, smallest_target=90)).problems("test", 1)


def test_settings_of_what_problems_need_are_checked():
    with pytest.raises(SteerError, match=r"task.needed: '-' with 6 numbers .* task.numbers to 5"):
        CountdownConfig(needed="-", numbers=6)
    with pytest.raises(SteerError, match=r"task.needed_share: 0.5 .* task.needed"):
        CountdownConfig(needed_share=0.5)


def test_operations_are_played_as_often_as_they_weigh():
    plays = list(islice(TASK.solved(random.Random(0), [0.5, 0.0, 0.5, 0.0]), 500))
    text = "".join(trace for _, trace in plays)
    assert not {"-", "/"} & set(text)
    assert all(solves(problem.prompt, trace) for problem, trace in plays)


def test_a_play_that_is_stuck_is_given_up():
    plays = list(islice(TASK.solved(random.Random(0), [0, 0, 1, 0]), 20))  # beyond 999 nothing can be multiplied
    assert {operator for _, trace in plays for operator in "+-*/" if operator in trace} == {"*"}

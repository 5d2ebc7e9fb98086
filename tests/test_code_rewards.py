"""Code rewards: what is a program, what is a test, what is right; and hostile programs beside honest ones."""

import json
import random
import secrets
import signal
import subprocess
import sys
import threading
import time

import pytest
from honest_programs import honest
from hostile_answers import FUNCTIONS, HOSTILE
from processes import wait_until
from sandboxes import SHORT, needs_bubblewrap, resident, sandboxed

from steer_core.common.errors import SteerError
from steer_core.rewards.base import Verdict
from steer_core.rewards.code import CodeGrader, run
from steer_core.rewards.code_tests import parse_tests
from steer_core.rewards.sandbox import Limits, Sandbox

WORKERS = 4


@pytest.fixture(scope="module")
def grader():
    grader = CodeGrader(WORKERS, SHORT)
    yield grader
    grader.close()


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def stdin_tests(*pairs) -> str:
    return json.dumps({"inputs": [given for given, _ in pairs], "outputs": [output for _, output in pairs]})


def function_tests(name, *pairs) -> str:
    tests = [{"input": given, "output": output, "testtype": "functional"} for given, output in pairs]
    return json.dumps({"tests": tests, "func_name": name})


def judged(grader, reference: str, program: str) -> Verdict:
    return grader.grade([reference], [fenced(program)])[0]


# Hostile programs


@needs_bubblewrap
def test_hostile_programs_never_pass_and_honest_ones_beside_them_are_scored_exactly(grader):
    secret = secrets.token_hex(16)
    rows = [(name, *row) for name, *row in honest()]
    assert len(rows) >= 200
    assert len(HOSTILE) + len(FUNCTIONS) >= 60
    rows += [(name, stdin_tests(("1\n", secret)), fenced(program), False) for name, program in HOSTILE.items()]
    reference = function_tests("solve", ("1", json.dumps(secret)))
    rows += [(name, reference, fenced(program), False) for name, program in FUNCTIONS.items()]
    random.Random(0).shuffle(rows)

    done, peak = threading.Event(), [0]

    def sample():
        while not done.wait(0.05):
            peak[0] = max(peak[0], resident(sandboxed()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        verdicts = grader.grade([reference for _, reference, _, _ in rows], [response for _, _, response, _ in rows])
    finally:
        done.set()
        sampler.join()

    misjudged = [(name, verdict) for (name, *_, right), verdict in zip(rows, verdicts, strict=True)
                 if verdict.correct != right]  # fmt: skip
    assert not misjudged
    assert not [verdict for verdict in verdicts if secret in verdict.detail]
    assert peak[0] < WORKERS * (SHORT.memory + SHORT.disk + 3 * SHORT.output + (48 << 20))
    assert judged(grader, stdin_tests(("2\n", "4")), "print(int(input()) ** 2)").correct
    wait_until(lambda: not sandboxed(), "nothing is left", seconds=5)


@needs_bubblewrap
def test_right_answers_never_enter_the_sandbox(grader):
    """A program that prints all it can reach, and all that its process holds, prints no answer."""
    secret = secrets.token_hex(16)
    program = HOSTILE["prints every string it can reach"]
    reference = json.dumps({"inputs": ["given-1\n", "given-2\n"], "outputs": [secret, secret]})
    with Sandbox(program, Limits()) as sandbox:
        seen = run(parse_tests(reference)[0], sandbox)
    assert seen.end == "done"
    assert b"given-1" in seen.output
    assert b"given-2" not in seen.output
    assert secret.encode() not in seen.output


@needs_bubblewrap
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "equal to everything" in name])
def test_equality_that_always_holds_does_not_cross(grader, name):
    assert not judged(grader, function_tests("solve", ("1", "5")), FUNCTIONS[name]).correct


@needs_bubblewrap
@pytest.mark.parametrize(
    ("written", "right"),
    [(b"[1]", True), (b" [1] ", True), (b"[1][1]", False), (b"[1]\n[1]", False), (b"[1", False), (b"", False),
     (b"[1]]", False), (b"[1]\0", False), (b"\xff[1]", False), (b'{"size": 3}\n[1]', False)],
)  # fmt: skip
def test_a_result_written_past_the_function_counts_as_what_it_says_and_once(grader, written, right):
    """Who writes the right value by another way knew it; anything beside it is no result."""
    program = f"import os\ndef solve(x):\n    os.write(3, {written!r})\n    os._exit(0)"
    assert judged(grader, function_tests("solve", ("1", "[1]")), program).correct is right


@needs_bubblewrap
def test_what_one_test_leaves_behind_the_next_does_not_find(grader):
    program = (
        "import os, random\nn = int(input())\nassert not os.listdir('/tmp') and not hasattr(random, 'kept')\n"
        "random.kept = n\nopen('/tmp/kept', 'w').write(str(n))\nprint(n)"
    )
    assert judged(grader, stdin_tests(("1", "1"), ("2", "2"), ("3", "3")), program).correct


@needs_bubblewrap
def test_interrupted_it_leaves_nothing_running():
    script = """
import json
from steer_core.rewards.code import CodeGrader
grader = CodeGrader(3)
reference = json.dumps({"inputs": [""], "outputs": ["1"]})
print("ready", flush=True)
grader.grade([reference] * 9, ["```python\\nimport time\\ntime.sleep(60)\\n```"] * 9)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    mark = f"steer-sandbox-of-{parent.pid}"
    wait_until(lambda: len(sandboxed(mark)) >= 9, "three programs run")
    began = time.monotonic()
    parent.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in parent.communicate()[1]
    assert time.monotonic() - began < 10
    wait_until(lambda: not sandboxed(mark), "nothing is left", seconds=5)


@needs_bubblewrap
def test_calls_from_several_threads_share_the_workers(grader):
    verdicts = {}

    def square(number):
        reference = stdin_tests(("3", str(number * 3)))
        responses = [fenced(f"print(int(input()) * {n})") for n in (number, number + 1)]
        verdicts[number] = [verdict.correct for verdict in grader.grade([reference] * 2, responses)]

    callers = [threading.Thread(target=square, args=(number,)) for number in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert verdicts == {number: [True, False] for number in range(6)}


# Verdicts


@needs_bubblewrap
@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("n = int(input())\nprint(n * n)", "right", "passed 3 tests"),
        ("n = int(input())\nprint(n + n)", "wrong", "test 2 of 3: wrong answer"),
        ("n = int(input())\nprint(n * n if n < 4 else 1 // 0)", "wrong", "test 3 of 3: failed (ZeroDivisionError"),
        ("def", "wrong", "test 1 of 3: failed (SyntaxError"),
        ("n = int(input())\nprint(n * n, flush=True)\nif n == 3: import time; time.sleep(9)", "timed out",
         "test 2 of 3: timed out (more than 2 seconds)"),
        ("n = int(input())\nx = bytearray(n << 27)\nprint(n * n)", "crashed", "test 1 of 3: memory (MemoryError)"),
        ("n = int(input())\nprint(n * n)\nwhile n == 4: print('x' * 9999)", "crashed",
         "test 3 of 3: output (more than"),
        ("n = int(input())\nprint(n * n)\nexit(1)", "right", "passed 3 tests"),
        ("n = int(input())\nprint(n * n)\nquit()", "right", "passed 3 tests"),
        ("print(int(open(0).read()) ** 2, end='')", "right", "passed 3 tests"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_first_test_that_failed(grader, program, status, detail):
    verdict = judged(grader, stdin_tests(("2", "4"), ("3", "9"), ("4", "16")), program)
    assert (verdict.status, verdict.answer) == (status, None)
    assert verdict.detail.startswith(detail)


@needs_bubblewrap
def test_no_block_is_unanswered_and_a_block_too_long_is_wrong(grader):
    long = fenced("#" * (2 << 20) + "\nprint(1)")
    verdicts = grader.grade([stdin_tests(("", "1"))] * 3, ["print(1)", long, fenced("print(1)")])
    assert [verdict.status for verdict in verdicts] == ["unanswered", "wrong", "right"]
    assert "more than 1048576" in verdicts[1].detail


@needs_bubblewrap
def test_all_tests_together_have_a_time():
    grader = CodeGrader(1, Limits(total=1.0))
    reference = stdin_tests(*[("", "1")] * 50)
    busy = "import time\nwhile time.process_time() < 0.4: pass\nprint(1)"
    verdict = judged(grader, reference, busy)
    assert verdict.status == "timed out"
    assert "of 50: more than 1 seconds of CPU" in verdict.detail


@needs_bubblewrap
def test_time_is_cpu_time_so_that_a_program_beside_load_is_judged_as_one_alone(grader):
    """Waiting stands for a crowded machine: more seconds by the clock than any limit of CPU time, alone and in all."""
    patient = CodeGrader(1, Limits(cpu=1, wall=60.0, total=1.0))
    waits = "import time\ntime.sleep(1.2)\nprint(1)"
    assert judged(patient, stdin_tests(("", "1"), ("", "1")), waits).correct
    patient.close()
    assert Limits().wall >= 10 * Limits().cpu


@needs_bubblewrap
def test_a_slow_test_is_not_run_after_one_that_failed(grader):
    began = time.monotonic()
    program = "import time\nn = int(input())\ntime.sleep(n)\nprint(n)"
    verdict = judged(grader, stdin_tests(("0", "1"), *[("1", "1")] * 20), program)
    assert verdict.detail == "test 1 of 21: wrong answer"
    assert time.monotonic() - began < 10


@needs_bubblewrap
@pytest.mark.parametrize(
    "program",
    [
        "def total(numbers, times):\n    return sum(numbers) * times",
        "class Solution:\n    def total(self, a: List[int], b: Optional[int]) -> int:\n        return sum(a) * b",
        "total = lambda numbers, times: reduce(operator.add, numbers, 0) * times",
        "class Solution:\n    pass\ndef total(a, b):\n    return float(sum(a) * b)",
        "def total(a, b):\n    print('noise')\n    return sum(a) * b\nif __name__ == '__main__':\n    total(*input())",
    ],
)
def test_functions_and_methods_are_called_with_one_value_a_line(grader, program):
    assert judged(grader, function_tests("total", ("[1, 2]\n3", "9"), ("[]\n1\n", "0")), program).correct


@needs_bubblewrap
@pytest.mark.parametrize(
    ("expression", "expected", "right"),
    [("(1, (2, 3))", "[1, [2, 3]]", True), ("{'a': (1,)}", '{"a": [1]}', True), ("{1: 2}", '{"1": 2}', True),
     ("None", "null", True), ("'1'", "1", False), ("[1, 2]", "[2, 1]", False), ("1.0", "1", True),
     ("{1}", "[1]", False), ("'é\\ud83d'", '"é"', False), ("True", "true", True), ("True", "false", False)],
)  # fmt: skip
def test_results_are_compared_as_json_values(grader, expression, expected, right):
    program = f"def give(x):\n    return {expression}"
    assert judged(grader, function_tests("give", ("1", expected)), program).correct is right


def test_lists_of_different_length_are_refused_and_malformed_tests_before_anything_runs(monkeypatch):
    grader = CodeGrader.__new__(CodeGrader)  # no pool: nothing could run
    with pytest.raises(ValueError, match="1 references for 2 responses"):
        grader.grade([stdin_tests(("", ""))], ["", ""])
    with pytest.raises(SteerError, match="outputs"):
        grader.grade([stdin_tests(("", "")), '{"inputs": [""]}'], ["", ""])


def test_workers_must_be_positive():
    with pytest.raises(SteerError, match="workers: 0"):
        CodeGrader(0, mode="limits")


def test_limits_mode_grades_too():
    grader = CodeGrader(1, SHORT, mode="limits")
    verdicts = grader.grade([stdin_tests(("2", "4"))] * 2, [fenced("print(int(input()) ** 2)"), fenced("print(5)")])
    grader.close()
    assert [verdict.correct for verdict in verdicts] == [True, False]


@needs_bubblewrap
@pytest.mark.parametrize(
    "response",
    [
        "```python\nprint(int(input()) ** 2)\n```\nFor 3 it prints:\n```\n9\n```",
        "1. The program:\n\n   ```python\n   n = int(input())\n   print(n ** 2)\n   ```",
        "````python\nprint(int(input()) ** 2)\n````",
        "~~~python\nprint(int(input()) ** 2)\n~~~",
        "```python\nprint()\nprint('', int(input()) ** 2)\n```",
        "```python\nseed(1)\nassert maxsize == sys.maxsize and randint(1, 1) and datetime.date and mean([1])\n"
        "print(int(stdin.readline()) ** 2)\n```",
    ],
)
def test_an_answer_is_judged_as_livecodebench_judges_it_in_whatever_form_it_is_written(grader, response):
    verdicts = grader.grade([stdin_tests(("3", "9")), stdin_tests(("3", "8"))], [response] * 2)
    assert [verdict.status for verdict in verdicts] == ["right", "wrong"]

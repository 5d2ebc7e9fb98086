"""What of a response is a program, what in a file is a test, and what of an output is right."""

import json
import time

import pytest

from steer_core.common.errors import SteerError
from steer_core.rewards.code import same_text, same_value
from steer_core.rewards.code_tests import Case, first_tests, parse_tests
from steer_core.rewards.fences import python_blocks
from steer_core.rewards.inside import chosen

# What is a program


@pytest.mark.parametrize(
    ("response", "blocks"),
    [
        ("a\n```python\nx = 1\n```\nb", ["x = 1\n"]),
        ("```\nx = 1\n```", ["x = 1\n"]),
        ("```py\n1\n```\n```python\n2\n```\n", ["1\n", "2\n"]),
        ("```python\n1\n```\n```text\n2\n```\n", ["1\n"]),
        ("```python\n1\n```\n```python\n2", ["1\n"]),
        ("```python\nforgot\n```python\n2\n```", ["2\n"]),
        ("```Python\r\n1\r\n```\r\n", ["1\r\n"]),
        ("```python\ns = '```'\nt = '''\n ```x y\n'''\n```", ["s = '```'\nt = '''\n ```x y\n'''\n"]),
        ("```python\n```", [""]),
        ("print(1)", []),
        ("```python\nprint(1)", []),
        ("```java\n1\n```", []),
        ("", []),
        # of every length, mark and label
        ("````python\ns = '''\n```\n'''\n````", ["s = '''\n```\n'''\n"]),
        ("````markdown\n```python\n1\n```\n````", ["1\n"]),
        ("~~~python\ns = '''\n```\n'''\n~~~~", ["s = '''\n```\n'''\n"]),
        ("~~~\n1\n~~~", ["1\n"]),
        ("``` python3\n1\n```", ["1\n"]),
        ("```{.python .numberLines}\n1\n```", ["1\n"]),
        ("```Python 3.11\n1\n```", ["1\n"]),
        ('```python title="a.py"\n1\n```', ["1\n"]),
        ("```pycon\n>>> 1\n```", []),
        ("```python-repl\n>>> 1\n```", []),
        ("inline ```x``` is no fence\n```python\n1\n```", ["1\n"]),
        # words before the first, and an end mark or words behind the last
        ("So:```python\n1\n```", ["1\n"]),
        ("<answer>```python\n1\n```</answer>", ["1\n"]),
        ("\ufeff```python\n1\n```", ["1\n"]),
        ("```python\n1\n```<|im_end|>", ["1\n"]),
        ("```python\n1\n``` It takes linear time.", ["1\n"]),
        ("```python\n1\n```这样。", ["1\n"]),
        ("it prints ```x\n```python\n1\n```", ["1\n"]),
        # indented: by as much as the fence, and no more than the first line
        ("1. so:\n\n   ```python\n   if x:\n       y\n   ```", ["if x:\n    y\n"]),
        ("- ```python\n  if x:\n    y\n  ```", ["if x:\n  y\n"]),
        ("10. ```python\n    s = '''\nflush'''\n    ```", ["s = '''\nflush'''\n"]),
        ("   ```python\nif x:\n  y\n   ```", ["if x:\n  y\n"]),
        ("\t```python\n\tif x:\n\t\ty\n\t```", ["if x:\n\ty\n"]),
        ("```python\n  1\n```", ["  1\n"]),
        # thoughts are no answer
        ("<think>```python\n1\n```</think>\n```python\n2\n```", ["2\n"]),
        ("<think>\n```python\n1\n```\n</think>I do not know.", []),
    ],
)
def test_a_block_that_may_be_the_program_is_closed_and_fenced_as_python_or_as_nothing(response, blocks):
    assert python_blocks(response) == blocks


@pytest.mark.parametrize(
    ("texts", "function", "which"),
    [
        (["print(1)", "print(2)"], None, 1),
        (["print(1)", "3\n5"], None, 0),  # a sample of output
        (["print(1)", "[1, 2]"], None, 0),
        (["print(1)", "YES"], None, 0),
        (["print(1)", "Case #1: 5"], None, 0),
        (["print(1)", "$ python a.py < in.txt"], None, 0),
        (["3 4", "print(1)", "7", ">>> f(1)"], None, 1),
        (["def f(x):\n    return x", "f(3)  # 3"], "f", 0),  # how to use it
        (["class Solution:\n    def f(self, x):\n        return x", "print(Solution().f(3))"], "f", 0),
        (["f = lambda x: x", "def g(x):\n    return f(x)"], "f", 0),
        (["def f(x):\n    return 1", "def f(x):\n    return x"], "f", 1),
        (["x = 1", "y"], None, 1),  # none is one: the last, whatever it says
        (["print(1)", "("  * 5000], None, 0),
        (["print(1)", "\ud83d"], None, 0),
    ],
)  # fmt: skip
def test_of_several_blocks_the_program_is_the_last_that_is_one(texts, function, which):
    assert chosen(texts, function) == texts[which]


@pytest.mark.parametrize("text", ["```" * 3_000_000, "```\n" * 500_000, "``` " + " " * 5_000_000 + "x y",
                                  "\n" * 9_000_000, "```" + "a" * 9_000_000 + " b"])  # fmt: skip
def test_looking_for_a_block_takes_linear_time(text):
    began = time.process_time()
    python_blocks(text)
    assert time.process_time() - began < 10


# What is right


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1  \n2\r\n\n\n", "1\n2", True),
        ("1\n\n2", "1\n2", False),
        ("1\n2", "1", False),
        ("1", "1\n2", False),
        ("1 2", "1\n2", False),
        ("  *", "*", True),
        ("\n\n1\n2", "1\n2", True),
        ("yes", "YES", False),
        ("0.50", "0.5", True),
        ("1e3", "1000", True),
        ("1  2.0", "1 2", True),
        ("0.1", "0.10000000000000001", False),
        ("1 a", "1.0 a", False),
        ("NaN", "nan", False),
        ("sNaN", "1", False),
        ("1e999999999999999999999", "2", False),
        ("", "", True),
        ("\n", "", True),
        ("0", "", False),
        ("é", "é", True),
    ],
)
def test_stdout_is_compared_by_lines_and_as_decimals(output, expected, same):
    assert same_text(output.encode(), expected) is same


def test_output_that_is_not_utf8_is_wrong_and_bombs_are_not_unpacked():
    began = time.monotonic()
    assert not same_text(b"\xff", "\ufffd")
    assert not same_text(b"\n" * (64 << 20) + b"x", "1\nx")
    assert not same_value(b"[" + b"[]," * (8 << 20) + b"0]", [0])
    assert not same_value(b"[" * 100_000, ["x" * 99_999])
    assert not same_value(b"9" * 9_000, ["x" * 9_000])
    assert not same_value(b"NaN", float("nan"))
    assert time.monotonic() - began < 5


# What is a test


def test_apps_stdin_and_function_formats():
    assert parse_tests('{"inputs": ["1\\n", ["2", "3"]], "outputs": ["2\\n", ["4"]]}') == [
        Case("1\n", ("2\n",)), Case("2\n3", ("4",))]  # fmt: skip
    assert parse_tests('{"fn_name": "f", "inputs": [[1, [2]], [3]], "outputs": [[5], 6]}') == [
        Case([1, [2]], ([5], 5), "f"), Case([3], (6,), "f")]  # fmt: skip


def test_a_function_s_input_may_be_a_text_of_one_value_a_line():
    """As LiveCodeBench's own harness and verl's take it; APPS ships lists."""
    reference = {"fn_name": "f", "inputs": ['[1, 2]\n"a"', "3"], "outputs": ["[3]", '"b"']}
    assert parse_tests(json.dumps(reference)) == [Case([[1, 2], "a"], ([3],), "f"), Case([3], ("b",), "f")]


@pytest.mark.parametrize(("named", "kind"), [({}, None), ({"metadata": '{"func_name": "f"}'}, "f")])
def test_a_test_without_a_type_calls_a_function_where_one_is_named(named, kind):
    assert parse_tests(json.dumps([{"input": "1", "output": "2", **named}]))[0].function == kind


def test_livecodebench_formats_and_the_places_of_a_function_s_name():
    stdin = {"input": "1\n", "output": "2\n", "testtype": "stdin"}
    called = {"input": '[1, 2]\n"a"', "output": "[3]", "testtype": "functional"}
    expected = Case([[1, 2], "a"], ([3],), "f")
    assert parse_tests(json.dumps([stdin])) == [Case("1\n", ("2\n",))]
    for reference in ([called | {"func_name": "f"}], [called | {"metadata": {"func_name": "f"}}],
                      [called | {"metadata": '{"func_name": "f"}'}], {"tests": [called], "func_name": "f"},
                      {"tests": [called], "metadata": {"func_name": "f"}}):  # fmt: skip
        assert parse_tests(json.dumps(reference)) == [expected]
    assert parse_tests(json.dumps({"tests": [stdin, called], "func_name": "f"}))[1] == expected


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", r"tests: ''.*no JSON"),
        ("[" * 100_000, r"tests: .*no JSON"),
        ("3", r"tests: 3: no tests.*inputs"),
        ("[]", r"tests: \[\]: no tests"),
        ('{"tests": []}', r"no tests"),
        ('{"inputs": []}', r"inputs: \[\]: give a list"),
        ('{"inputs": ["1"]}', r"outputs: None: give a list"),
        ('{"inputs": ["1"], "outputs": ["1", "2"]}', r"outputs: .*2 for 1 inputs"),
        ('{"inputs": [1], "outputs": ["1"]}', r"inputs\[0\]: 1: give a text"),
        ('{"inputs": ["1"], "outputs": [null]}', r"outputs\[0\]: None: give a text"),
        ('{"inputs": ["\\ud800"], "outputs": ["1"]}', r"inputs\[0\]: .*surrogate"),
        ('{"inputs": [1], "outputs": ["1"], "fn_name": "f"}', r"inputs\[0\]: 1: give the list"),
        ('{"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}', r"inputs\[0\]: 'x': give JSON"),
        ('[{"input": "1", "output": "2", "metadata": "{"}]', r"tests\[0\]\.metadata: '{': give JSON"),
        ('{"inputs": [[1]], "outputs": ["1"], "fn_name": "a b"}', r"fn_name: 'a b': give the name"),
        ("[1]", r"tests\[0\]: 1: give"),
        ('[{"input": "1", "output": 2, "testtype": "stdin"}]', r"tests\[0\]\.output: 2: give a text"),
        ('[{"input": "1", "output": "2", "testtype": "std"}]', r"tests\[0\]\.testtype: 'std': give 'stdin'"),
        ('[{"input": "1", "output": "2", "testtype": "functional"}]', r"tests\[0\]\.func_name: None: give the name"),
        ('[{"input": "x", "output": "2", "testtype": "functional", "func_name": "f"}]', r"tests\[0\]\.input: 'x': g"),
        ('[{"input": "1", "output": "y", "testtype": "functional", "func_name": "f"}]', r"tests\[0\]\.output: 'y': g"),
    ],
)  # fmt: skip
def test_malformed_tests_are_told_by_field_value_and_remedy(reference, message):
    with pytest.raises(SteerError, match=message) as caught:
        parse_tests(reference)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_long_value_is_shortened_in_the_message():
    with pytest.raises(SteerError) as caught:
        parse_tests(json.dumps([{"input": "1", "output": ["x" * 10**6, 3], "testtype": "stdin"}]))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "reference",
    [
        '{"inputs": ["1", "2"], "outputs": ["1", "2"]}',
        '[{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]',
        '{"tests": [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}], "metadata": "{}"}',
    ],
)
def test_the_first_tests_are_cut_in_every_format(reference):
    assert parse_tests(first_tests(reference, 1)) == [Case("1", ("1",))]
    assert first_tests(reference, None) == reference

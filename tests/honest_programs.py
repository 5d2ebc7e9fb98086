"""Small real problems with right and wrong solutions, in each form that a response or a reference may take."""

import inspect
import json
import textwrap
from collections.abc import Callable, Iterator
from typing import Any


def gcd_of_all(numbers):
    a = 0
    for b in numbers:
        while b:
            a, b = b, a % b
    return a


def is_prime(n):
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def reversed_words(text):
    return " ".join(text.split()[::-1])


def is_palindrome(text):
    kept = [letter.lower() for letter in text if letter.isalnum()]
    return kept == kept[::-1]


def two_sum(numbers, target):
    seen = {}
    for place, number in enumerate(numbers):
        if target - number in seen:
            return [seen[target - number], place]
        seen[number] = place
    return []


def largest_subarray(numbers):
    best = here = numbers[0]
    for number in numbers[1:]:
        here = max(number, here + number)
        best = max(best, here)
    return best


def balanced(text):
    stack, pairs = [], {")": "(", "]": "[", "}": "{"}
    for letter in text:
        if letter in pairs:
            if not stack or stack.pop() != pairs[letter]:
                return False
        else:
            stack.append(letter)
    return not stack


def merged(spans):
    result = []
    for low, high in sorted(spans):
        if result and low <= result[-1][1]:
            result[-1][1] = max(high, result[-1][1])
        else:
            result.append([low, high])
    return result


def coins(values, total):
    ways = [1] + [0] * total
    for value in values:
        for amount in range(value, total + 1):
            ways[amount] += ways[amount - value]
    return ways[total]


def longest_rising(numbers):
    tails = []
    for number in numbers:
        place = bisect_left(tails, number)  # noqa: F821 - a solution finds it imported
        tails[place : place + 1] = [number]
    return len(tails)


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def roman(n):
    values = {"M": 1000, "CM": 900, "D": 500, "CD": 400, "C": 100, "XC": 90, "L": 50, "XL": 40, "X": 10, "IX": 9}
    text = ""
    for letters, value in (values | {"V": 5, "IV": 4, "I": 1}).items():
        text += letters * (n // value)
        n %= value
    return text


def spiral(grid):
    seen = []
    while grid:
        seen += grid[0]
        grid = [list(row) for row in zip(*grid[1:], strict=True)][::-1]
    return seen


def islands(rows):
    land = {(i, j) for i, row in enumerate(rows) for j, cell in enumerate(row) if cell == "#"}
    count = 0
    while land:
        count += 1
        near = [land.pop()]
        for i, j in near:
            for place in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if place in land:
                    land.remove(place)
                    near.append(place)
    return count


def mean_of(numbers):
    return sum(numbers) / len(numbers)


def counted(text):
    return dict(sorted(Counter(text).items()))  # noqa: F821 - a solution finds it imported


def base(n, b):
    digits = ""
    while n:
        n, digit = divmod(n, b)
        digits = "0123456789abcdef"[digit] + digits
    return digits or "0"


def paths(rows, columns):
    return 1 if 1 in (rows, columns) else paths(rows - 1, columns) + paths(rows, columns - 1)


def next_permutation(numbers):
    i = len(numbers) - 2
    while i >= 0 and numbers[i] >= numbers[i + 1]:
        i -= 1
    if i >= 0:
        j = max(k for k in range(i, len(numbers)) if numbers[k] > numbers[i])
        numbers[i], numbers[j] = numbers[j], numbers[i]
    return numbers[: i + 1] + numbers[i + 1 :][::-1]


PROBLEMS: list[tuple[Callable[..., Any], str, str, list[tuple[list[Any], Any]]]] = [
    (gcd_of_all, "a % b", "a // (b + 1)", [([[12, 18]], 6), ([[7]], 7), ([[10**18, 10**12]], 10**12)]),
    (is_prime, "int(n**0.5) + 1", "int(n**0.5)", [([97], True), ([1], False), ([49], False)]),
    (fibonacci, "0, 1", "1, 1", [([0], 0), ([10], 55), ([90], 2880067194370816120)]),
    (reversed_words, "[::-1]", "[::1]", [(["the sky is blue"], "blue is sky the"), ([" a "], "a")]),
    (is_palindrome, ".lower()", "", [(["A man, a plan, a canal: Panama"], True), (["ab"], False)]),
    (two_sum, "place]", "place + 1]", [([[2, 7, 11, 15], 9], [0, 1]), ([[3, 3], 6], [0, 1])]),
    (
        largest_subarray,
        "max(number, here + number)",
        "here + number",
        [([[-2, 1, -3, 4, -1, 2, 1, -5, 4]], 6), ([[-1]], -1)],
    ),
    (balanced, "not stack\n", "True\n", [(["([]{})"], True), (["(]"], False), (["(("], False)]),
    (merged, "low <=", "low <", [([[[1, 3], [2, 6], [8, 10]]], [[1, 6], [8, 10]]), ([[[1, 4], [4, 5]]], [[1, 5]])]),
    (coins, "total + 1)", "total)", [([[1, 2, 5], 5], 4), ([[2], 3], 0), ([[10], 10], 1)]),
    (longest_rising, "_left", "_right", [([[10, 9, 2, 5, 3, 7, 101, 18]], 4), ([[7, 7, 7]], 1)]),
    (edit_distance, "(x != y)", "1", [(["horse", "ros"], 3), (["", "abc"], 3), (["same", "same"], 0)]),
    (roman, "900", "901", [([1994], "MCMXCIV"), ([3], "III"), ([58], "LVIII")]),
    (spiral, "[::-1]", "", [([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]], [1, 2, 3, 6, 9, 8, 7, 4, 5])]),
    (islands, "(i, j - 1)", "(i, j)", [([["##..", "...#", ".#.#"]], 3), ([[".#", "##"]], 1), ([["."]], 0)]),
    (mean_of, "len(numbers)", "2", [([[1, 2]], 1.5), ([[1, 1, 2]], 4 / 3), ([[-5]], -5.0)]),
    (counted, "Counter(text)", "Counter(text[1:])", [(["banana"], {"a": 3, "b": 1, "n": 2}), (["é"], {"é": 1})]),
    (base, "+ digits", "", [([255, 16], "ff"), ([10, 2], "1010"), ([0, 7], "0")]),
    (paths, "columns - 1", "columns - 2", [([3, 7], 28), ([3, 2], 3), ([7, 3], 28)]),
    (next_permutation, "[::-1]", "", [([[1, 2, 3]], [1, 3, 2]), ([[1, 3, 2]], [2, 1, 3]), ([[3, 2, 1]], [1, 2, 3])]),
]


def honest() -> Iterator[tuple[str, str, str, bool]]:
    """Name, reference, response and whether it is right: 20 problems, right and wrong, in five forms each."""
    for function, old, new, tests in PROBLEMS:
        source = inspect.getsource(function)
        assert source.count(old), function.__name__
        for right in (True, False):
            program = source if right else source.replace(old, new)
            for form in (apps_function, apps_stdin, livecodebench_function, livecodebench_method, livecodebench_stdin):
                reference, script = form(function.__name__, program, tests)
                yield f"{function.__name__}, {form.__name__}, {right}", json.dumps(reference), fenced(script), right


def fenced(program: str) -> str:
    """A response that thinks aloud first, with a block that is not the answer."""
    return f"First an idea:\n```\nprint('no')\n```\nThe solution is\n\n```python\n{program}```\nIt is linear.\n"


def apps_function(name, program, tests):
    inputs, outputs = [given for given, _ in tests], [[value] for _, value in tests]
    return {"fn_name": name, "inputs": inputs, "outputs": outputs}, program


def apps_stdin(name, program, tests):
    inputs = ["\n".join(map(json.dumps, given)) + "\n" for given, _ in tests]
    return {"inputs": inputs, "outputs": [shown(value) + "\n" for _, value in tests]}, script(name, program)


def livecodebench_function(name, program, tests):
    items = [
        {"input": "\n".join(map(json.dumps, given)), "output": json.dumps(value), "testtype": "functional"}
        for given, value in tests
    ]
    return {"tests": items, "func_name": name}, program


def livecodebench_method(name, program, tests):
    method = program.replace(f"{name}(", f"self.{name}(").replace(f"def self.{name}(", f"def {name}(self, ")
    reference, _ = livecodebench_function(name, program, tests)
    return reference, "class Solution:\n" + textwrap.indent(method, "    ")


def livecodebench_stdin(name, program, tests):
    reference, program = apps_stdin(name, program, tests)
    pairs = zip(reference["inputs"], reference["outputs"], strict=True)
    return [{"input": given, "output": output, "testtype": "stdin"} for given, output in pairs], program


def script(name, program):
    """The program with a main part that reads one JSON value a line and prints as people do."""
    return (
        "import json, sys\nfrom collections import *\nfrom bisect import *\n\n\n"
        + program
        + inspect.getsource(shown)
        + f"\n\nif __name__ == '__main__':\n    print(shown({name}(*map(json.loads, sys.stdin))))\n"
    )


def shown(value):
    if isinstance(value, dict):
        value = [f"{key}={number}" for key, number in value.items()]
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)

"""The tests of a programming problem, read from the formats that APPS, LiveCodeBench and verl's data files ship.

`parse_tests` is the one place that knows these formats: what loads problems hands a ground truth on as it found it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from steer_core.common.errors import SteerError

FORMATS = (
    'give {"inputs": [...], "outputs": [...], "fn_name": a name where it is a function}, or a list of {"input": text, '
    '"output": text, "testtype": "stdin" or "functional"}, which {"tests": list, "func_name": name} may hold'
)


@dataclass(frozen=True)
class Case:
    """One test: stdin and its accepted stdout, or, of a function, its arguments and the accepted values."""

    given: Any
    accepted: tuple[Any, ...]
    function: str | None = None


def parse_tests(reference: str) -> list[Case]:
    """The tests that a JSON text holds, in APPS' or LiveCodeBench's format.

    APPS: {"inputs": [...], "outputs": [...]}, with "fn_name" where inputs are lists of arguments; a result may be
    the output or, where that is a list, its first item, as in APPS' own harness. With "fn_name" an input may also be
    a text, as LiveCodeBench's and verl's harness take it: one JSON value a line, and one JSON value as its output.
    LiveCodeBench: a list of {"input", "output", "testtype"}; a functional input has one JSON value a line, its
    function is named by "func_name" of the test, of its "metadata", or of the object {"tests": list, "func_name":
    name} around the list. A test without a type is functional where a function is named. Raises SteerError.
    """
    tests = _json(reference)
    if isinstance(tests, dict) and "inputs" in tests:
        return _apps(tests)
    around = tests if isinstance(tests, dict) else {}
    items = around.get("tests") if isinstance(tests, dict) else tests
    if not isinstance(items, list) or not items:
        raise _malformed("tests", tests, f"no tests; {FORMATS}")
    return [_livecodebench(f"tests[{number}]", item, around) for number, item in enumerate(items)]


def first_tests(reference: str, count: int | None) -> str:
    """The JSON text with the first `count` of its tests, in its own format; None leaves it whole. Raises SteerError."""
    tests = _json(reference)
    if count is None:
        return reference
    if isinstance(tests, list):
        return json.dumps(tests[:count])
    lists = ("inputs", "outputs", "tests") if isinstance(tests, dict) else ()
    return json.dumps({**tests, **{key: tests[key][:count] for key in lists if isinstance(tests.get(key), list)}})


def are_tests(reference: str) -> bool:
    """Whether a text is the tests of a programming problem, and not the answer to a question."""
    try:
        return bool(parse_tests(reference))
    except SteerError:
        return False


def _json(reference: str) -> Any:
    try:
        return json.loads(reference)
    except (ValueError, TypeError, RecursionError) as error:
        raise _malformed("tests", reference, f"no JSON ({error}); {FORMATS}") from None


def _apps(tests: dict[str, Any]) -> list[Case]:
    inputs, outputs, function = tests["inputs"], tests.get("outputs"), tests.get("fn_name")
    for field, value in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(value, list) or not value:
            raise _malformed(field, value, "give a list with one entry a test")
    if len(inputs) != len(outputs):
        raise _malformed("outputs", outputs, f"{len(outputs)} for {len(inputs)} inputs; give one for each")
    if function is not None:
        _check_name("fn_name", function)
    return [
        _apps_case(given, output, function, f"[{number}]")
        for number, (given, output) in enumerate(zip(inputs, outputs, strict=True))
    ]


def _apps_case(given: Any, output: Any, function: str | None, place: str) -> Case:
    if function is None:
        return Case(_text(f"inputs{place}", given), (_text(f"outputs{place}", output),))
    if isinstance(given, str):
        return _called(given, _text(f"outputs{place}", output), function, f"inputs{place}", f"outputs{place}")
    if not isinstance(given, list):
        raise _malformed(f"inputs{place}", given, "give the list of the function's arguments, or one a line as JSON")
    return Case(given, (output, output[0]) if isinstance(output, list) and output else (output,), function)


def _livecodebench(field: str, item: Any, around: dict[str, Any]) -> Case:
    if not isinstance(item, dict):
        raise _malformed(field, item, FORMATS)
    given, output = (_text(f"{field}.{name}", item.get(name)) for name in ("input", "output"))
    holders = (item, _metadata(field, item), around, _metadata("tests", around))
    names = [holder["func_name"] for holder in holders if holder.get("func_name")]
    kind = item.get("testtype") or ("functional" if names else "stdin")
    if kind == "stdin":
        return Case(given, (output,))
    if kind != "functional":
        raise _malformed(f"{field}.testtype", kind, "give 'stdin' or 'functional'")
    function = _check_name(f"{field}.func_name", names[0] if names else None)
    return _called(given, output, function, f"{field}.input", f"{field}.output")


def _called(given: str, output: str, function: str, inputs: str, outputs: str) -> Case:
    """The test of a function whose arguments are one JSON value a line, and whose value is one. Names are fields."""
    arguments = [_value(inputs, line) for line in given.split("\n") if line.strip()]
    return Case(arguments, (_value(outputs, output),), function)


def _metadata(field: str, holder: dict[str, Any]) -> dict[str, Any]:
    """The `metadata` of a test or of the object around the list: an object, or one as JSON text; else nothing."""
    found = holder.get("metadata")
    found = _value(f"{field}.metadata", found) if isinstance(found, str) and found.strip() else found
    return found if isinstance(found, dict) else {}


def _text(field: str, value: Any) -> str:
    """A test's text, of which APPS writes some as lists of lines; it must be possible to put it on stdin."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise _malformed(field, value, "give a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _malformed(field, value, "it has half a surrogate pair; give characters that UTF-8 has") from None
    return value


def _value(field: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _malformed(field, text, "give JSON: one value a line of input, one value as output") from None


def _check_name(field: str, name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise _malformed(field, name, "give the name of the function that the tests call")
    return name


def _malformed(field: str, value: Any, remedy: str) -> SteerError:
    shown = repr(value)
    return SteerError(f"{field}: {shown if len(shown) <= 80 else shown[:77] + '...'}: {remedy}")

"""The shape of the package: rooms on floors, arrows that go down, no circle, files and functions of a readable size."""

import ast
import tomllib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
FLOORS = [layer.split(" | ") for layer in reversed(LINTER["contracts"][0]["layers"])]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SOURCES = sorted(
    path
    for folder in ("steer_core", "tests", "examples", "reproduce", "benchmarks")
    for path in ROOT.glob(f"{folder}/**/*.py")
)
ENTRANCES = {"steer_core", "steer_core.__main__"}
"""They stand on no floor: the public API, and `python -m steer_core`."""
FILE_LINES, FUNCTION_LINES = 400, 60
LONG_FUNCTIONS: dict[str, str] = {}
"""`file:function` to the reason why it is longer than a screen."""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Every module of the package with the modules of ours that it imports, those for types alone too."""
    graph = grimp.build_graph("steer_core", cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def rooms_of(imports: dict[str, set[str]]) -> Counter[tuple[str, str]]:
    """(room, room that it imports) to the number of imports between them."""
    pairs = ((one, other) for one in imports.keys() - ENTRANCES for other in imports[one] - ENTRANCES)
    named = ((one.split(".")[1], other.split(".")[1]) for one, other in pairs)
    return Counter((one, other) for one, other in named if one != other)


def test_no_circle_among_modules(imports):
    assert len(list(TopologicalSorter(imports).static_order())) == len(imports)  # raises CycleError, which names them


def test_every_room_stands_on_a_floor_and_imports_go_down(imports):
    arrows = rooms_of(imports)
    rooms = {room for arrow in arrows for room in arrow}
    print(
        f"{len(imports)} modules, {sum(map(len, imports.values()))} imports, {len(rooms)} rooms, "
        f"{len(FLOORS)} floors, {len(arrows)} arrows between rooms"
    )
    assert rooms <= FLOOR.keys()
    assert [f"{one} -> {other}" for one, other in sorted(arrows) if FLOOR[one] <= FLOOR[other]] == []


def test_no_file_is_too_long_for_one_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES} == {}


def test_no_function_is_longer_than_a_screen_without_a_reason():
    functions = (
        (f"{path.relative_to(ROOT)}:{node.name}", node.end_lineno - node.lineno + 1)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = {name: lines for name, lines in functions if lines > FUNCTION_LINES}
    assert long.keys() == LONG_FUNCTIONS.keys(), long

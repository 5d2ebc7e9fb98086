"""All tables of the benchmarks on one page, made from their JSON files alone: nothing is timed.

python benchmarks/tables.py                                # benchmarks/results/*.json to its README.md
python benchmarks/tables.py --results benchmarks/results/cuda
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import RESULTS

from steer_core import SteerError
from steer_core.cli.ending import end
from steer_core.common.files import read_json
from steer_core.common.tables import markdown_table

Table = tuple[str, list[str], list[list[str]]]
"""What it shows, its head, its rows."""


def number(value: float) -> str:
    """Whole numbers as they are, others with three significant digits; thousands with a comma."""
    if isinstance(value, int) or 100 <= abs(value) < 1e7:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def cell(value: Any) -> str:
    """A figure as text: a median with its interval or quartiles, a number, a word."""
    if isinstance(value, dict) and {"median", "low", "high"} <= value.keys():
        return f"{number(value['median'])} [{number(value['low'])}, {number(value['high'])}]"
    if isinstance(value, dict) and {"median", "quartile_low"} <= value.keys():
        return f"{number(value['median'])} ({number(value['quartile_low'])} to {number(value['quartile_high'])})"
    if isinstance(value, dict) and {"median", "best"} <= value.keys():
        return f"{number(value['median'])} (best {number(value['best'])})"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return number(value)


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f}%"


def token_statistics(found: dict) -> Iterator[Table]:
    """A table a shape and precision, a row an arm."""
    head = ["arm", "gives", "forward, ms", "over a product", "step, ms", "over a product", "MiB added: forward, step"]
    for shape, by_dtype in found["shapes"].items():
        size = " x ".join(map(str, found["sizes"][shape]))
        for dtype, arms in by_dtype.items():
            rows = [
                [arm, row["not_run"], *[""] * 5] if "not_run" in row else timed(arm, row) for arm, row in arms.items()
            ]
            yield f"{shape} (tokens x width x vocabulary {size}), {dtype}; medians with quartiles", head, rows


def timed(arm: str, row: dict) -> list[str]:
    """An arm's times, in milliseconds and in products, and its memory."""
    passes = [row["forward"], row["step"]]
    times = [
        text
        for one in passes
        for text in (cell({name: 1000 * value for name, value in one["seconds"].items()}), cell(one["over_product"]))
    ]
    return [arm, row["values"], *times, ", ".join(cell(one.get("peak_mib")) for one in passes)]


def loop(found: dict) -> Iterator[Table]:
    """The loop's arms, then their profiles."""
    arms = found["arms"]
    head = ["arm", "seconds a rollout", "responses a second", "times as fast as TRL", "tokens a response"]
    columns = ("seconds_a_rollout", "responses_a_second", "times_as_fast_as_trl", "tokens_a_response")
    rows = [[arm, *(cell(row.get(column)) for column in columns)] for arm, row in arms.items()]
    rows += [[arm, why, "", "", ""] for arm, why in found["left_out"].items()]
    per = f"{found['responses_a_rollout']} responses and {found['optimiser_steps_a_rollout']} optimiser steps a rollout"
    yield f"{per}; medians with quartiles or 95% intervals", head, rows
    parts = list(next(iter(arms.values()))["share_of_time"])
    shares = [[arm, *(percent(row["share_of_time"][part]) for part in parts)] for arm, row in arms.items()]
    yield "Share of a rollout's time", ["arm", *parts], shares


def sampling(found: dict) -> Iterator[Table]:
    """A row a cell, a column an engine."""
    models = found["models"]
    engines = list(
        dict.fromkeys(e for m in models.values() for c in m["batches"].values() for e in c["tokens_a_second"])
    )
    missing = sorted({row for model in models.values() for row in model["missing"].items()})
    rows = [
        [
            f"{name} ({model['parameters'] / 1e6:,.3g}M)",
            batch,
            *(cell(one["tokens_a_second"].get(engine)) for engine in engines),
            one["faster"],
            cell(one["over_the_next"]),
        ]
        for name, model in models.items()
        for batch, one in model["batches"].items()
    ]
    head = ["model", "sequences", *engines, "faster", "over the next"]
    yield "Response tokens a second, medians with quartiles", head, rows
    if missing:
        yield "Engines that are missing", ["engine", "why"], [list(row) for row in missing]


def growth(found: dict) -> Iterator[Table]:
    """The exponents, then every size."""
    factors = found["factors"]
    base = ", ".join(f"{name} {value}" for name, value in found["base"].items())
    exponents = [[name, cell(one["time_exponent"]), cell(one["memory_exponent"])] for name, one in factors.items()]
    yield f"Exponents around the base case ({base})", ["factor", "time [95%]", "memory"], exponents
    rows = [
        [name, number(size), cell(seconds), number(peak)]
        for name, one in factors.items()
        for size, seconds, peak in zip(one["sizes"], one["seconds"], one["peak_mib"], strict=True)
    ]
    yield "Every size", ["factor", "size", "seconds of an update (quartiles)", "MiB added at the peak"], rows


def throughput(found: dict) -> Iterator[Table]:
    """Speeds, ratios, memory, and the methods' overheads from the cheapest to the dearest."""
    speeds = [[what, cell(found[f"{what}_tokens_per_second"])] for what in ("sampling", "training")]
    yield "Response tokens a second", ["part", "tokens a second"], speeds
    yield "Time of an update", ["ratio", "median [95%]"], named(found["update_time_ratios"])
    methods = sorted(found.get("method_time_ratios", {}).items(), key=lambda row: row[1]["median"])
    if methods:
        yield "Time of an update by each method, over GRPO", ["method", "median [95%]"], named(dict(methods))
    yield "MiB that an update adds at its peak", ["arm", "MiB"], named(found["update_peak_memory_mib"])


def ladder(found: dict) -> Iterator[Table]:
    """A row a rung."""
    over = found["time over a training step"]
    rows = [[name, cell(one), cell(found["peak_mib_added"][name])] for name, one in over.items()]
    told = f"{found['model']} ({found['parameters'] / 1e6:,.3g}M), {found['tokens']} tokens"
    yield told, ["rung", "over a training step [95%]", "MiB added"], rows


def plain(found: dict) -> Iterator[Table]:
    """Any other benchmark: one table a section, one row a figure."""
    single = {name: value for name, value in found.items() if is_figure(value)}
    if single:
        yield "Figures", ["figure", "value"], named(single)
    for section, values in found.items():
        if isinstance(values, list) and values and all(isinstance(row, dict) for row in values):
            head = list(dict.fromkeys(key for row in values for key in row))
            yield words(section), list(map(words, head)), [[cell(row.get(key)) for key in head] for row in values]
        elif isinstance(values, dict) and not is_figure(values):
            yield from sections(words(section), values)


def sections(title: str, values: dict) -> Iterator[Table]:
    """A table of a section: its figures by name, or rows that share their columns."""
    if values and all(isinstance(row, dict) and not is_figure(row) for row in values.values()):
        head = list(dict.fromkeys(key for row in values.values() for key, value in row.items() if is_figure(value)))
        rows = [[name, *(cell(row.get(key)) for key in head)] for name, row in values.items()]
        yield title, ["", *map(words, head)], rows
    else:
        yield title, ["", "value"], named({name: value for name, value in values.items() if is_figure(value)})


def is_figure(value: Any) -> bool:
    """Whether a value fits a cell."""
    return "median" in value if isinstance(value, dict) else not isinstance(value, list)


def named(figures: dict[str, Any]) -> list[list[str]]:
    """A row a figure."""
    return [[words(name), cell(value)] for name, value in figures.items()]


def words(name: str) -> str:
    """A key of JSON in words."""
    return name.replace("_", " ")


TABLES: dict[str, Callable[[dict], Iterator[Table]]] = {
    "loop": loop,
    "token_statistics": token_statistics,
    "sampling": sampling,
    "growth": growth,
    "throughput": throughput,
    "ladder": ladder,
}
"""How a benchmark's file is shown, by the beginning of its name; others are shown as they are."""
TITLES = {
    "loop": "The whole loop, against TRL",
    "sampling": "Sampling by engine",
    "token_statistics": "Token statistics from hidden states",
    "growth": "How an update grows",
    "throughput": "Parts of the main job, and what each method adds",
    "trl_methods": "Every method in TRL, over plain TRL",
    "ladder": "The ladder's rungs over a training step",
    "training": "An update at a real shape",
    "plan_memory": "Planned memory beside measured",
    "sandbox": "The sandbox",
    "peak": "The card's peak, and shares of it",
}
HIDDEN = ("environment", "settings", "repeats", "note")


def section(path: Path) -> str:
    """A benchmark's part of the page: what ran where, then its tables."""
    found = read_json(path, "results", "make it again")
    about, kind = found.get("environment", {}), next((kind for kind in TITLES if path.stem.startswith(kind)), path.stem)
    where = about.get("gpu") or about.get("processor", "machine unknown")
    repeats = f"; {found['repeats']} repeats" if "repeats" in found else ""
    told = (
        f"{where}, {about.get('cores', '?')} cores, {about.get('date', 'date unknown')[:10]}: "
        f"`{about.get('command', path.name)}`{repeats} ([{path.name}]({path.name}))."
    )
    title = TITLES.get(kind, words(path.stem)) + (f" ({words(path.stem)})" if path.stem != kind else "")
    note = [f"Note: {found['note']}"] if found.get("note") else []
    shown = {name: value for name, value in found.items() if name not in HIDDEN}
    tables = [f"{what}:\n\n{markdown_table(head, rows)}" for what, head, rows in TABLES.get(kind, plain)(shown)]
    return "\n\n".join([f"## {title}", told, *note, *tables])


def page(folder: Path) -> str:
    """The page of a folder of results. Raises SteerError where it holds none."""
    paths = sorted(folder.glob("*.json"), key=lambda path: (order(path.stem), path.stem))
    if not paths:
        raise SteerError(f"--results: {folder} holds no JSON file; run `make bench`, or a benchmark with --out")
    opening = (
        "# Results of the benchmarks\n\nMade by `python benchmarks/tables.py` from the JSON files beside it; not "
        "written by hand. Brackets: 95% bootstrap interval of the median; round ones: quartiles."
    )
    return "\n\n".join([opening, *map(section, paths)]) + "\n"


def order(stem: str) -> int:
    """Where a benchmark stands on the page."""
    return next((i for i, kind in enumerate(TITLES) if stem.startswith(kind)), len(TITLES))


def main() -> None:
    """Write the page; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files (benchmarks/results)")
    parser.add_argument("--out", type=Path, help="the page (default: README.md in that folder)")
    args = parser.parse_args()
    out = args.out or args.results / "README.md"
    out.write_text(page(args.results), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    end(main)

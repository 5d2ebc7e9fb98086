"""docs/play.html: a page without a kernel, with the formulas in JavaScript and the committed runs inside.

    python reproduce/play.py

Puts the parts in docs/site/play together with the runs of reproduce/results that have pass@1 and pass@32 along
the way, thinned: collapse, compare, and the rows of when. A second. Run it again where those results change.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from steer_core.cli.ending import end
from steer_core.common.files import write_atomically
from steer_core.show.page import embedded
from steer_core.stats.pass_at_k import pass_at_k

ROOT = Path(__file__).parents[1]
PARTS = ROOT / "docs" / "site" / "play"
RESULTS = ROOT / "reproduce" / "results"
PAGE = ROOT / "docs" / "play.html"
POINTS = 12
"""Evaluations of a run that are kept, its first and its last among them."""
RUNS_OF_AN_ARM = 3
"""Seeds of an arm of one result that are kept, the lowest first."""
DIGITS = 4
K = 32


def thinned(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most POINTS of a run's evaluations, evenly spaced by their place."""
    if len(rows) <= POINTS:
        return rows
    return [rows[round(i * (len(rows) - 1) / (POINTS - 1))] for i in range(POINTS)]


def run(label: str, seed: int, source: str, rows: list[dict[str, float]]) -> dict[str, Any]:
    """A run as the page reads it. rows: of each evaluation, step, entropy, pass1 and pass32."""
    kept = thinned(sorted(rows, key=lambda row: row["step"]))
    columns = {name: [round(row[name], DIGITS) for row in kept] for name in ("entropy", "pass1", "pass32")}
    return {"label": label, "seed": seed, "source": source, "steps": [int(row["step"]) for row in kept], **columns}


def of_summary(path: Path, source: str) -> list[dict[str, Any]]:
    """The runs of a comparison's summary.json."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    for one in summary["evaluations"]:
        point = {"entropy": one["policy_entropy"], "pass1": one["pass@1"], "pass32": one[f"pass@{K}"]}
        rows.setdefault((one["arm"], one["seed"]), []).append({"step": one["step"], **point})
    return [run(summary["labels"][arm], seed, source, points) for (arm, seed), points in rows.items()]


def of_rows(path: Path, source: str) -> list[dict[str, Any]]:
    """The finished runs of a file of when's rows; the base model is their first evaluation."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        about, *lines = map(json.loads, file)
    base = about["base"]
    start = {"step": 0, "entropy": base["policy_entropy"], "pass1": base["pass@1"], "pass32": base[f"pass@{K}"]}
    found, seen = [], {}
    for line in sorted(lines, key=lambda line: (line["arm"], line["seed"])):
        if not line["finished"] or seen.get(line["arm"], 0) == RUNS_OF_AN_ARM:
            continue
        seen[line["arm"]] = seen.get(line["arm"], 0) + 1
        points = [start, *map(_scored, line["evaluations"])]
        found.append(run(about["plan"]["arms"][line["arm"]]["label"], line["seed"], source, points))
    return found


def _scored(evaluation: dict[str, Any]) -> dict[str, float]:
    scores = {name: float(pass_at_k(evaluation["correct"], evaluation["samples"], k).mean()) for name, k in _KS.items()}
    return {"step": evaluation["step"], "entropy": evaluation["entropy"], **scores}


_KS = {"pass1": 1, "pass32": K}


def runs() -> list[dict[str, Any]]:
    """Every committed run with pass@1 and pass@32 along the way."""
    found = of_summary(RESULTS / "collapse" / "summary.json", "collapse")
    found += of_summary(RESULTS / "compare" / "summary.json", "compare")
    for path in sorted((RESULTS / "when").glob("*.jsonl.xz")):
        found += of_rows(path, "when")
    return found


def page() -> str:
    """docs/play.html as text."""
    made = Environment(loader=FileSystemLoader(PARTS), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found = runs()
    lengths = sorted({one["steps"][-1] for one in found})
    return made.get_template("play.html.j2").render(
        style=(PARTS / "play.css").read_text(encoding="utf-8"),
        formulas=(PARTS / "formulas.js").read_text(encoding="utf-8"),
        script=(PARTS / "play.js").read_text(encoding="utf-8"),
        data=embedded({"runs": found}),
        count=len(found),
        sources=f"of {', '.join(map(str, lengths[:-1]))} and {lengths[-1]} rollouts",
    )


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=PAGE, help="where to write (default: docs/play.html)")
    write_atomically(parser.parse_args().out, page())


if __name__ == "__main__":
    end(main)

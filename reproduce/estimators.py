"""The measurements behind Tables 1 and 8: every case of estimators.yaml, measured once and kept.

A case's outcome lies in results/estimators/CASE.json with its command, date and machine; a case that
is there is not measured again unless asked for. table1.py and table8.py print from these files. Data
files are looked for in the folder STEER_DATA, or in ../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from steer_core import ENTROPY_CHANGE, RunFolder, SteerError, estimate, load_config
from steer_core.common.environment import environment
from steer_core.common.files import write_atomically
from steer_core.estimation.estimate import Update
from steer_core.estimation.scores import accuracy
from steer_core.estimation.tables import write_estimate
from steer_core.formulas.tabular import tabular_tokens

HERE = Path(__file__).parent
CASES: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "estimators.yaml").read_text(encoding="utf-8"))
PUBLISHED: list[dict[str, str]] = yaml.safe_load((HERE / "published" / "estimators.yaml").read_text(encoding="utf-8"))
RESULTS = HERE / "results" / "estimators"
EMBEDDED_CASES = ("tabular", "countdown-base", "countdown-trained")


def measure(name: str, again: bool = False, results: Path = RESULTS) -> dict[str, Any]:
    """The outcome of a case: read where it was measured before, else measured and written to results/NAME.json."""
    if name not in CASES:
        raise SteerError(f"case {name!r}: unknown; known: {', '.join(CASES)}")
    path, case = results / f"{name}.json", CASES[name]
    if path.exists() and not again:
        return json.loads(path.read_text(encoding="utf-8"))
    record = {"label": case["label"]} | (_tabular(case) if "tabular" in case else _model(name, case))
    results.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return record


def _located(setting: str) -> str:
    """A `task.file=NAME` setting with the folder of the data files put before the name."""
    key, _, name = setting.partition("=")
    if key != "task.file" or Path(name).is_file():
        return setting
    folder = Path(os.environ.get("STEER_DATA", HERE.parent.parent / "shared" / "data"))
    if not (folder / name).is_file():
        raise SteerError(f"STEER_DATA: {folder} holds no {name}; set it to the folder of the benchmark files")
    return f"task.file={os.path.relpath(folder / name)}"


def _tabular(case: dict[str, Any]) -> dict[str, Any]:
    (update,) = map(Update.parse, case["updates"])
    tokens = tabular_tokens(eta=update.eta, **case["tabular"])
    about = environment() | {"command": shlex.join(["python", *sys.argv])}
    summary = {"tokens": len(tokens), "target": accuracy(tokens, "measured", ENTROPY_CHANGE)}
    return {"model": case["label"], "environment": about, "updates": {str(update): summary}}


def _model(name: str, case: dict[str, Any]) -> dict[str, Any]:
    model = case["model"]
    if model != "embedded" and not Path(model).exists():
        if "make" not in case:
            raise SteerError(f"case {name}: {model} is not there; fetch it as estimators.yaml tells")
        print(f"{name}: {case['make']}", flush=True)
        words = shlex.split(case["make"])
        head = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "steer_core"]
        if subprocess.run([*head, *words[1:]], check=False).returncode:
            raise SteerError(f"case {name}: `{case['make']}` failed as told above; mend that, then run it again")
    run = RunFolder.open(model) if (Path(model) / "config.yaml").exists() else None
    folder = str(run.checkpoints.saved()[-1]) if run else model
    settings = [_located(word) for word in case["settings"]]
    config = load_config(run.path / "config.yaml" if run else None, settings)
    live = sys.stdout.isatty() and "CI" not in os.environ

    def progress(items, title):
        return track(items, f"{name}: {title}", disable=not live)

    updates = [Update.parse(text) for text in case["updates"]]
    result = estimate(folder, config, updates, case.get("with_signal", False), run, progress)
    write_estimate(result, Path("runs") / "estimators" / f"{name}-tokens")
    record = result.record
    record["environment"]["command"] = shlex.join(["python", *sys.argv])
    if "file" in record["config"]["task"]:
        record["config"]["task"]["file"] = Path(record["config"]["task"]["file"]).name  # wherever it lay
    return record


def cases_of(description: str) -> list[str]:
    """The cases that the command line asks for; with --again, measured anew."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "\n".join(f"  {name}: {case['label']} ({case['needs']})" for name, case in CASES.items())
    parser.epilog = f"cases:\n{listed}"
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, metavar="CASE", help="what to measure where it is not yet measured"
    )
    parser.add_argument("--again", action="store_true", help="measure the named cases even if they are measured")
    args = parser.parse_args()
    for name in args.cases or EMBEDDED_CASES:
        measure(name, args.again)
    return [name for name in CASES if (RESULTS / f"{name}.json").exists()]


def measured_cases(names: list[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(label, update, summary) of every update of the cases that are measured."""
    for name in names:
        record = measure(name)
        for update, summary in record["updates"].items():
            yield record["label"], update, summary


def published_rows(forms: Container[str]) -> Iterator[tuple[str, str, str, list[str]]]:
    """(case, update, form, [MSE, Pearson, Spearman]) of the forms that others report, empty where unknown."""
    for row in PUBLISHED:
        if row["form"] in forms:
            scores = [row.get(name, "") for name in ("mse", "pearson", "spearman")]
            yield row["case"], row.get("update", ""), row["form"], scores


def print_table(title: str, columns: Sequence[str], rows: list[list[str]], name: str) -> None:
    """Print the table, and write it as Markdown beside the results."""
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    Console(width=170).print(table)
    lines = [
        f"# {title}",
        "",
        "Bootstrap intervals over prompts, 95%. Command, date and machine of each case: estimators/*.json.",
        "Rows without intervals are what others report; their sources: ../published/estimators.yaml.",
        "",
    ]
    lines += ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
    write_atomically(RESULTS.parent / name, "\n".join(lines) + "\n")

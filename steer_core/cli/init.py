"""`steer init FOLDER`: a task, a reward, a method and a configuration of one's own to begin from."""

from __future__ import annotations

import argparse
import json
import random
import shlex
from pathlib import Path

from steer_core.cli.shared import path_of, writing
from steer_core.common.errors import SteerError

STARTER = Path(__file__).parent / "starter"
PROBLEMS, COUNT, LARGEST = "problems.jsonl", 200, 49
"""The task file, how many problems it holds, and the largest number in them."""


def options(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "folder", type=path_of, metavar="FOLDER", help="where the files are written; no file is replaced"
    )


def run(args: argparse.Namespace) -> int:
    """Write an example to begin from: a task file, an own reward, an own method, and a configuration that trains."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(STARTER.glob("*.*"))}
    texts[PROBLEMS] = "".join(json.dumps(problem) + "\n" for problem in problems())
    folder = args.folder
    there = [name for name in texts if (folder / name).exists()]
    if there:
        raise SteerError(f"FOLDER: {folder} holds {there[0]} already; name another folder")
    with writing("FOLDER", folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    print(f"{folder}: {', '.join(texts)}")
    print(f"train with: cd {shlex.quote(str(folder))} && PYTHONPATH=. steer train run.yaml --out run")
    return 0


def problems() -> list[dict[str, str]]:
    """Distinct sums and differences that are not negative, the same every time, which the embedded model can write."""
    pairs = [(a, b) for a in range(1, LARGEST + 1) for b in range(1, LARGEST + 1)]
    asked = {f"{a}+{b}=": a + b for a, b in pairs} | {f"{a}-{b}=": a - b for a, b in pairs if a >= b}
    chosen = random.Random(0).sample(sorted(asked), COUNT)
    return [{"question": question, "answer": str(asked[question])} for question in chosen]

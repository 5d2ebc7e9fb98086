"""Damage of every kind to every file of a run, and odd values for every setting: one line that tells, and nothing lost.

Seeded, so that a failure repeats. Everything is called in this process; what a command would print is the message of
the SteerError.
"""

import itertools
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from small import SMALL, small_trainer
from steer_core.cli.shared import path_of, trained
from steer_core.common.errors import SteerError
from steer_core.common.settings import describe, read_yaml
from steer_core.compare.comparison import comparison_of
from steer_core.compare.report import write_report
from steer_core.config.config import Config, load_config
from steer_core.interventions import METHODS, method
from steer_core.runs.folder import RunFolder
from steer_core.show import show
from steer_core.training.loop import Trainer

ROLLOUTS = 4


def words(data: bytes, source: random.Random) -> bytes:
    """JSON in which one value, or one key, is another."""
    lines = data.decode().split("\n") if data.startswith(b'{"') else [data.decode()]
    n = source.randrange(max(1, len(lines) - 1))
    row = json.loads(lines[n])
    key = source.choice(sorted(row))
    if source.random() < 0.3:
        row.pop(key)
    else:
        row[key] = source.choice([None, -1, 0.5, "x", [], {}, [1], True, 10**400, 1e308, "\ud800", float("nan"), [[1]]])
    lines[n] = json.dumps(row)
    return "\n".join(lines).encode()


def flipped(data: bytes, source: random.Random) -> bytes:
    """One bit is another."""
    place = source.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << source.randrange(8)]) + data[place + 1 :]


DAMAGES = {
    "emptied": lambda data, source: b"",
    "cut": lambda data, source: data[: source.randrange(len(data))],
    "flipped": flipped,
    "zeros at the end": lambda data, source: data + b"\0" * 100,
    "zeros": lambda data, source: b"\0" * len(data),
    "not UTF-8": lambda data, source: data[:9] + b"\xff\xfe" + data[9:],
    "another shape": lambda data, source: source.choice([b"[]", b"3", b"null", b'{"a": [1]}', b'"x"\n', b"{}\n"]),
    "doubled": lambda data, source: data + data,
    "words": words,
}
FILES = [
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "notes.jsonl",
    "rollouts/step_000004.parquet",
    "checkpoints/step_000004/manifest.json",
    "checkpoints/step_000004/model.safetensors",
    "checkpoints/step_000004/optimizer.safetensors",
    "checkpoints/step_000004/metrics.jsonl.gz",
    "checkpoints/step_000004/config.json",
    "checkpoints/step_000004/tokenizer.json",
]
REPLACED = {
    "gone": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to itself": lambda path: (path.unlink(), path.symlink_to(path)),
}
STRAY_WAYS = ("stray",)
STRAY = ("rollouts/step_x.parquet", "rollouts/step_9.txt", "rollouts/steps_000001-999999999.parquet",
         "checkpoints/step_x/manifest.json", "checkpoints/step_000009", "checkpoints/notes.txt")  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The trainer of a finished run with checkpoints of rollouts 2 and 4, and a note."""
    trainer = small_trainer(tmp_path_factory.mktemp("fuzz") / "run")
    trainer.fit()
    if not trainer.run.read("notes.jsonl"):
        trainer.run.log(ROLLOUTS, {"note": "a note"}, "notes.jsonl")
    return trainer


@pytest.fixture
def drawn_only(monkeypatch):
    """Figures are drawn and not printed, which takes most of a report's time."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **named: Path(path).write_bytes(b"<svg/>"))


def outcome(action) -> str | None:
    """None where it comes to its end, else the one line that a command would print."""
    try:
        action()
    except SteerError as error:
        assert len(str(error).splitlines()) == 1, error
        assert len(str(error)) < 1200, error
        return str(error)
    return None


def content(folder: Path) -> dict[str, bytes | None]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def resume(run: Trainer, folder: Path, fall_back: bool) -> None:
    """What `steer train --resume`, or --auto-resume, does before the next rollout."""
    run.run = RunFolder.open(folder)
    run.finished = 0
    run.resume(fall_back=fall_back)
    run.run.rewind(run.finished)


def check(run: Trainer, whole: list[dict], folder: Path, name: str) -> None:
    """Read a damaged run in every way; what a resume refuses stays as it is, what it takes has its logs in full."""
    if "/" not in name:
        outcome(lambda: write_report(comparison_of([folder]), folder / "report"))
    if name.startswith(("rollouts", "config.yaml")):
        outcome(lambda: show(folder, out=folder / "page.html"))
    if name.startswith("checkpoints"):
        outcome(lambda: trained(str(folder)))
    before = content(folder)
    for fall_back in (False, True):
        if outcome(lambda fall_back=fall_back: resume(run, folder, fall_back)) is not None:
            assert content(folder) == before, name
            continue
        left = RunFolder.open(folder).read()
        assert run.finished, name
        assert left == whole[: run.finished], name
        break


@pytest.mark.parametrize("name", [*FILES, *STRAY])
def test_a_damaged_or_stray_file_of_a_run_is_told_in_one_line_and_nothing_is_lost(
    run, tmp_path, drawn_only, name, capsys
):
    source, whole, original = random.Random(name), run.run.read(), run.run
    try:
        for way in STRAY_WAYS if name in STRAY else [*DAMAGES, *REPLACED]:
            folder = tmp_path / way
            shutil.copytree(original.path, folder)
            path = folder / name
            if name in STRAY:
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"stray")
            elif way in REPLACED:
                REPLACED[way](path)
            elif way != "words" or path.suffix in (".json", ".jsonl"):
                path.write_bytes(DAMAGES[way](path.read_bytes(), source))
            check(run, whole, folder, f"{name} {way}")
            shutil.rmtree(folder)
    finally:
        run.run = original

"""Damage of every kind to every file of a run, and odd values for every setting: one line that tells, and nothing lost.

Seeded, so that a failure repeats. Everything is called in this process; what a command would print is the message of
the SteerError.
"""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from small import SMALL, small_trainer

from steer_core.cli.shared import trained
from steer_core.common.errors import SteerError
from steer_core.common.places import CONFIGS
from steer_core.common.settings import describe
from steer_core.compare.comparison import comparison_of
from steer_core.compare.report import write_report
from steer_core.config.config import Config, load_config
from steer_core.interventions import METHODS, method
from steer_core.runs.folder import RunFolder
from steer_core.show import show
from steer_core.training.loop import Trainer

ROLLOUTS = 4
LONGEST = 120
"""Seconds after which an action is taken to hang."""


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
OTHER_WAYS = {*DAMAGES, *REPLACED} - {"a pipe"}
WAYS = 5
"""Of the ways to damage a file, how many are tried on each beside a pipe, which never ends."""
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


def hangs(*_) -> None:
    raise AssertionError(f"does not come to an end within {LONGEST} s")


def outcome(action) -> str | None:
    """None where it comes to its end, else the one line that a command would print."""
    told = None
    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LONGEST)
    try:
        action()
    except SteerError as error:
        told = str(error)
    finally:
        signal.alarm(0)
    assert told is None or (len(told.splitlines()) == 1 and len(told) < 1200), told
    return told


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
    before = content(original.path)
    try:
        for way in STRAY_WAYS if name in STRAY else ["a pipe", *source.sample(sorted(OTHER_WAYS), WAYS)]:
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
    assert content(original.path) == before  # whatever was damaged, only the copy was written to


WORDS = (
    "0 -1 1 2 3 2.5 .nan .inf -.inf 1e-300 1.0e-300 1e300 1.0e+300 1000000000 99999999999999999999999 null true '' x "
    "[] [1] {} [[1]] 2020-01-01 !!python/name:os.system 0x10 1_000 '\\0' .. ~ none auto"
)
HOSTILE = [*WORDS.split(), "9" * 5000, "[1, 1]", "{a: 1}", "&a [*a]", "\ud800"]
SETTINGS = 500
"""Of all odd settings, how many are tried."""
TRAINED = 8
"""Of the odd settings that are allowed, how many are trained with for a rollout."""
ONE_ROLLOUT = (
    *("train.rollouts=1", "rollout.prompts=2", "rollout.responses=2", "rollout.max_new_tokens=8"),
    *("evaluation.problems=2", "evaluation.samples=2", "evaluation.pass_at=[1]", "evaluation.max_new_tokens=8"),
    "optimizer.mini_batch_prompts=1",
)
ELSEWHERE = ("rollout.engine", "engine.name", "train.tracker", "model.path", "model.device")


def odd_settings() -> list[str]:
    """Every setting of a run and of every method with every hostile value."""
    keys = [key for key, *_ in describe(Config) if key != "intervention.name"]
    odd = [f"{key}={value}" for key in keys for value in HOSTILE]
    for name in METHODS:
        own = [key for key, *_ in describe(method(name), "intervention.") if key != "intervention.name"]
        odd += [f"intervention={{name: {name}, {key.partition('.')[2]}: {value}}}" for key in own for value in HOSTILE]
    return odd


def test_an_odd_value_of_any_setting_is_refused_in_one_line_or_trains(tmp_path):
    taken = [
        odd
        for odd in random.Random(0).sample(odd_settings(), SETTINGS)
        if outcome(lambda odd=odd: load_config(None, [*SMALL, *ONE_ROLLOUT, odd])) is None
        and not odd.startswith(ELSEWHERE)
    ]
    assert TRAINED < len(taken) < SETTINGS / 2
    for i, odd in enumerate(random.Random(1).sample(taken, TRAINED)):
        outcome(lambda odd=odd, i=i: small_trainer(tmp_path / str(i), *ONE_ROLLOUT, odd).fit())


PIECES = [
    *("a: 1\n", "train:\n", "  seed: 1\n", "- x\n", "&a ", "*a", "<<: *a\n", "? ", ": ", "|\n", "!!int ", "# x\n"),
    *("!!python/object:os.x ", "%YAML 9\n", "---\n", "...\n", "extends: x\n", "extends: fuzz\n", "seed: 1\n"),
    *("model: {path: &b [*b]}\n", "1e400", "0o9", "2020-13-45", *"[]{},'\"~=\t\0\x07é\u2028"),
]


def test_random_yaml_is_read_or_refused_in_one_line(tmp_path):
    source, path, told = random.Random(3), tmp_path / "fuzz.yaml", []
    for _ in range(1500):
        path.write_bytes("".join(source.choices(PIECES, k=source.randrange(1, 12))).encode())
        told.append(outcome(lambda: load_config(path)))
    shipped = (CONFIGS / "steer.yaml").read_bytes()
    for _ in range(150):
        path.write_bytes(flipped(flipped(shipped, source), source))
        told.append(outcome(lambda: load_config(path)))
    assert 0 < told.count(None) < len(told) / 2

"""An estimate that was stopped at any moment goes on, and ends as the one that was not."""

import gzip
import json
import os
import random
import signal

import pytest
from processes import start, wait_until
from small import SMALL

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.estimation import estimate as module

KILLS = 3
SETTINGS = ("rollout.prompts=8", "rollout.responses=8", "optimizer.mini_batch_prompts=1", "train.seed=3")
ESTIMATE = ("estimate", "embedded", *SMALL, *SETTINGS, "--with-signal")


def told(folder) -> dict:
    """What an estimate's folder holds, but for readings of the clock."""
    record = json.loads((folder / "estimate.json").read_text())
    del record["environment"]
    for summary in record["updates"].values():
        del summary["seconds"]
    return {path.name: gzip.decompress(path.read_bytes()) for path in folder.glob("tokens_*")} | {"record": record}


def run(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in (*ESTIMATE, *words)])
    return ended.value.code


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate") / "whole"
    assert run("--out", folder) == 0
    assert not (folder / "unfinished").exists()
    return folder


def stopped_at(mini_batch: int, monkeypatch) -> None:
    """Have the measurement of a mini-batch be interrupted, as by Ctrl-C."""
    measured, attribute = [], module.attribute

    def interrupted(*arguments):
        measured.append(1)
        if len(measured) == mini_batch:
            raise KeyboardInterrupt
        return attribute(*arguments)

    monkeypatch.setattr(module, "attribute", interrupted)


def test_an_estimate_that_is_stopped_goes_on_and_measures_nothing_twice(whole, tmp_path, monkeypatch):
    out, settings = tmp_path / "out", "--out"
    with monkeypatch.context() as patch:
        stopped_at(6, patch)
        assert run(settings, out) == 130
    with monkeypatch.context() as patch:
        stopped_at(4, patch)  # the three that are left, and one more that there is not
        patch.setattr(module, "sample", None)
        assert run(settings, out, "--resume") == 0
    assert told(out) == told(whole)
    assert not (out / "unfinished").exists()


def test_an_estimate_killed_at_random_moments_loses_and_repeats_nothing(whole, tmp_path):
    out, output, moments, lost = tmp_path / "out", tmp_path / "output", random.Random(0), 0

    def measured() -> int:
        return len(list((out / "unfinished").glob("mini_batch_*.json")))

    for _ in range(KILLS):
        before = measured()
        process = start(output, *ESTIMATE, "--out", out, "--resume")
        goal = min(before + moments.randint(0, 2), 7)
        wait_until(lambda goal=goal, process=process: not process.is_alive() or measured() >= goal, "a mini-batch")
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            lost += 1
        process.join()
        assert measured() >= before
    assert lost == KILLS
    process = start(output, *ESTIMATE, "--out", out, "--resume")
    process.join()
    assert process.exitcode == 0, output.read_text()[-500:]
    assert told(out) == told(whole)


def test_parts_of_another_estimate_are_refused_and_stay(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at(2, patch)
        assert run("--out", out) == 130
    kept = sorted(path.name for path in (out / "unfinished").iterdir())
    for words, message in (
        ([], "is an estimate that was stopped; add --resume, or name another --out"),
        (["--resume", "--update", "sgd:0.5"], "is of an estimate with another updates; name another --out"),
        (["--resume", "train.seed=4"], "is of an estimate with another config; name another --out"),
    ):
        assert run("--out", out, *words) == 2
        assert message in capsys.readouterr().err
        assert sorted(path.name for path in (out / "unfinished").iterdir()) == kept
    (out / "unfinished" / "mini_batch_000000.json").write_text("{")
    assert run("--out", out, "--resume") == 2
    assert "mini_batch_000000.json" in capsys.readouterr().err


def test_an_estimate_that_can_never_be_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*_):
        raise SteerError("advantages: 0 at every token")

    monkeypatch.setattr(module, "attribute", fails)
    assert run("--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()

"""An estimate that was stopped at any moment goes on, and ends as the one that was not."""

import gzip
import json
import os
import random
import signal

import pandas as pd
import pytest
import torch
from processes import start, wait_until
from small import SMALL

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.estimation import estimate as module
from steer_core.estimation.unfinished import Sample, Unfinished
from steer_core.ladder.attribution import Attribution
from steer_core.rollout.rollout import Rollout

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
    (out / "unfinished" / "settings.json").unlink()
    assert run("--out", out, "--resume") == 2
    assert "delete the folder, and begin the estimate again" in capsys.readouterr().err
    assert sorted(path.name for path in (out / "unfinished").iterdir()) == [n for n in kept if n != "settings.json"]


def drawn(text: str) -> Sample:
    ids = [torch.ones(2, 3, dtype=torch.long) for _ in range(3)]
    return Sample(Rollout(*ids, ids[0].bool(), [text, text], ["stop", "stop"]), torch.eye(2), 5)


def measured(number: float) -> dict[str, Attribution]:
    return {"sgd:0.001": Attribution(pd.DataFrame({"paper": [number]}), {"change": number}, number)}


def parts(out, text: str, number: float) -> tuple:
    """What an estimate's folder gives of its sample and two mini-batches; where it keeps one not, it is made."""
    unfinished = Unfinished(out)
    sample = unfinished.sample(lambda: drawn(text), torch.device("cpu"))
    batches = [unfinished.mini_batch(first, lambda: measured(number))["sgd:0.001"] for first in (0, 1)]
    assert all(batch.tokens["paper"].tolist() == [batch.totals["change"]] for batch in batches)
    return sample.rollout.texts[0], *(batch.seconds for batch in batches)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("mini_batch_000000.json", ("one", 2.0, 1.0)),
        ("mini_batch_000001_0.parquet", ("one", 1.0, 2.0)),
        ("sample.json", ("two", 2.0, 2.0)),  # what was measured belonged to the sample that is lost
        ("sample.safetensors", ("two", 2.0, 2.0)),
    ],
)
@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"about": {}}', b'{"sha256": [1, []]}', b"\0\0", None])
def test_a_damaged_part_of_an_estimate_is_measured_again_and_nothing_else(tmp_path, name, left, data, capsys):
    (tmp_path / "unfinished").mkdir()
    assert parts(tmp_path, "one", 1.0) == parts(tmp_path, "two", 2.0) == ("one", 1.0, 1.0)
    path = tmp_path / "unfinished" / name
    path.unlink() if data is None else path.write_bytes(data)
    assert parts(tmp_path, "two", 2.0) == left
    told = capsys.readouterr().err
    assert told.count("\n") == told.count("it is measured again") == (not (name.endswith(".json") and data is None))


def test_only_what_an_estimate_kept_itself_goes_when_it_can_never_be(tmp_path):
    for goes_on in (False, True):
        first = Unfinished(tmp_path)
        first.begin({"seed": 1}, resume=True)
        if goes_on:
            first = Unfinished(tmp_path)
            first.begin({"seed": 1}, resume=True)
        first.give_up()
        assert first.folder.exists() is goes_on


def test_an_update_that_is_named_twice_is_refused(tmp_path, capsys):
    assert run("--out", tmp_path / "out", "--update", "sgd:0.001", "sgd:1e-3") == 2
    assert "--update: sgd:0.001 is named twice" in capsys.readouterr().err


def test_an_estimate_that_can_never_be_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(*_):
        raise SteerError("advantages: 0 at every token")

    monkeypatch.setattr(module, "attribute", fails)
    assert run("--out", tmp_path / "out") == 2
    assert not (tmp_path / "out").exists()

"""Real small runs of this package's trainer, made to collapse, to explode, to clip extremely: each is recognised."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dumped import changed
from small import grade_by, small_config, trainer_in

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.diagnose import methods
from steer_core.diagnose.diagnosis import diagnose
from steer_core.diagnose.own_runs import read_any
from steer_core.interventions.base import Intervention
from steer_core.interventions.steer import Steer
from steer_core.runs import dumps
from steer_core.runs.folder import RunFolder

RUN = (
    "rollout.responses=8",
    "evaluation.every=0",
    "train.dump_every=1",
    "train.probe_sequences=0",
    "train.checkpoint_every=100",
)


def run_of(folder, *settings):
    """A finished run whose reward is a coin of the text: groups have a signal, and nothing can be learnt."""
    run = RunFolder(folder, small_config(*RUN, *settings)).start()
    trainer = trainer_in(run)
    grade_by(trainer, lambda text: sum(map(ord, text)) % 2 == 0)
    trainer.fit()
    return folder


@pytest.fixture(scope="module")
def steered(tmp_path_factory):
    """Two rollouts under STEER, of two optimiser steps each."""
    return run_of(tmp_path_factory.mktemp("steered") / "run", "train.rollouts=2", "intervention.name=steer")


@pytest.mark.long
def test_a_bonus_of_the_wrong_sign_is_seen_as_collapse(tmp_path):
    extreme = ("intervention.name=wrong_sign:WrongSign", "intervention.coefficient=20", "train.rollouts=6")
    folder = run_of(tmp_path / "run", *extreme, "optimizer.learning_rate=2e-3")
    seen = diagnose(read_any(folder))
    assert seen.findings["collapse"].status == "found", seen.course.entropy
    assert seen.findings["explosion"].status == "not found"
    assert seen.entropy.right
    assert any("learning rate" in one.what for one in seen.advice if one.because == "collapse")


@pytest.mark.long
def test_a_bonus_far_too_large_is_seen_as_explosion(tmp_path):
    extreme = ("intervention.name=entropy-loss", "intervention.coefficient=1", "train.rollouts=6")
    seen = diagnose(read_any(run_of(tmp_path / "run", *extreme, "optimizer.learning_rate=2e-3")))
    assert seen.findings["explosion"].status == "found", seen.course.entropy
    assert seen.findings["collapse"].status == "not found"
    assert "Set the entropy bonus to 0 first" in next(one.what for one in seen.advice if one.because == "explosion")


def test_a_clip_far_too_tight_is_seen_with_its_sides(tmp_path):
    tight = ("algorithm.clip_low=0.005", "algorithm.clip_high=0.005", "train.rollouts=1")
    folder = run_of(tmp_path / "run", *tight, "optimizer.mini_batch_prompts=1", "optimizer.learning_rate=2e-3")
    seen = diagnose(read_any(folder))
    assert seen.findings["clipping"].status == "found"
    row = RunFolder.open(folder).read()[-1]
    assert seen.clip.high == pytest.approx(row["clip/high"], abs=1e-3)
    assert seen.clip.low == pytest.approx(row["clip/low"], abs=1e-3)


def test_a_dump_holds_what_the_run_logged_and_steers_weights_are_the_runs(steered):
    dump = read_any(steered)
    seen, rows = diagnose(dump), RunFolder.open(steered).read()
    assert dump.steps == [1, 2, 3, 4]
    assert len(dump.responses) == 2 * 4 * 8
    assert seen.entropy.right
    assert dump.course == {row["step"]: row["entropy/policy"] for row in rows}
    for n, row in enumerate(rows):
        own = dump.responses.step.isin([2 * n + 1, 2 * n + 2]).to_numpy()
        inside = own[dump.tokens["row"]]
        assert dump.tokens["old_entropy"][inside].mean() == pytest.approx(row["entropy/policy"], rel=1e-5)
        assert -dump.tokens["old_logprob"][inside].mean() == pytest.approx(row["entropy/sampled_nll"], rel=1e-5)
        assert dump.responses.reward[own].mean() == pytest.approx(row["reward/mean"])
    states = seen.states
    plain = methods._pushes(Intervention(), dump, states)
    factor = methods._pushes(Steer(), dump, states) / plain
    weights = torch.where(plain != 0, factor, 1.0)
    logged = np.mean([row["lambda/mean"] for row in rows])
    assert float(weights.mean()) == pytest.approx(logged, abs=2e-3)


def test_the_wrong_entropy_in_a_real_dump_is_recognised(steered, tmp_path):
    rows = [row for file in dumps.files_of(steered / "dumps") for row in pq_rows(file)]
    wrong = {
        "sampled": changed(rows, "entropy", lambda row: [-x for x in row["logprob"]]),
        "divides twice": changed(rows, "entropy", lambda row: [x / len(row["entropy"]) for x in row["entropy"]]),
        "divided by ln 2": changed(rows, "entropy", lambda row: [x / np.log(2) for x in row["entropy"]]),
    }
    for name, made in wrong.items():
        dumps.write(tmp_path / "wrong.parquet", made)
        seen = diagnose(read_any(tmp_path / "wrong.parquet"))
        assert seen.findings["wrong_entropy"].status == "found"
        assert name in f"{seen.entropy.kind} {seen.entropy.divisor}"
        if seen.entropy.factor is not None:  # what is undone leaves the numbers of the right dump
            right = diagnose(replace(read_any(steered), course={}))
            assert seen.course.entropy == pytest.approx(right.course.entropy, rel=1e-5)


def pq_rows(path):
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_a_run_without_dumps_is_read_from_the_responses_that_it_keeps(steered, tmp_path):
    for path in steered.rglob("*"):
        if path.is_file() and "dumps" not in path.parts:
            copy = tmp_path / "run" / path.relative_to(steered)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    dump = read_any(tmp_path / "run")
    seen = diagnose(dump)
    assert "the responses that a run keeps" in dump.notes[0]
    assert len(dump.responses) == 2 * 4
    assert dump.settings == {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0, "max_tokens": 40}
    assert [seen.findings[key].status for key in ("clipping", "silence")] == ["undecided", "undecided"]


def test_dumps_of_rollouts_that_are_made_again_go(steered, tmp_path):
    run = RunFolder(tmp_path / "run", small_config(*RUN)).start()
    for step in (1, 2, 3):
        run.write_dump(step, pq_rows(dumps.dump_path(steered, 1)))
    dumps.rewind(run.path, 2)
    assert [path.name for path in dumps.files_of(run.path / "dumps")] == ["step_000001.parquet", "step_000002.parquet"]


def test_the_command_tells_writes_and_refuses(steered, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["diagnose", str(steered), "--out", str(tmp_path / "out")])
    assert end.value.code == 0
    assert "It is the Shannon entropy in nats." in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text())["dump"]["responses"] == 64
    assert (tmp_path / "out" / "diagnosis.html").is_file()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"logprob": [-1.0, 0.5], "advantage": 1}\n')
    with pytest.raises(SystemExit) as end:
        main(["diagnose", str(bad)])
    assert end.value.code == 2
    told = f"error: DUMP {bad}, row 1, logprob: 0.5 at token 2 is above 0; write ln p, not -ln p\n"
    assert capsys.readouterr().err == told


def test_a_run_that_kept_nothing_is_told_what_to_set(tmp_path):
    RunFolder(tmp_path / "run", small_config(*RUN)).start()
    with pytest.raises(SteerError, match=r"holds no responses; train with train.logged_responses or train.dump_every"):
        read_any(tmp_path / "run")

"""The run folder: whole checkpoints or none, damaged ones refused, logs rewound, disk trouble told."""

import errno
import fcntl
import hashlib
import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
import yaml
from processes import steer
from safetensors.torch import load_file, save_file
from small import small_config, small_trainer, trainer_in, without_time

from steer_core.common.errors import SteerError
from steer_core.common.files import lock, sha256
from steer_core.runs.folder import RunFolder
from steer_core.runs.logs import last_row
from steer_core.runs.responses import read
from steer_core.runs.rollouts import rollout_path
from steer_core.training.loop import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    trainer = small_trainer(folder, "optimizer.name=adamw")
    trainer.fit()
    return trainer


def copy_of(trainer, tmp_path) -> Trainer:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", trainer.run.path, folder], check=True)
    return trainer_in(RunFolder.open(folder))


def test_resuming_from_a_checkpoint_gives_the_uninterrupted_run_bit_for_bit(finished, tmp_path):
    resumed = copy_of(finished, tmp_path)
    resumed.resume(from_step=2)
    assert resumed.fit()
    assert without_time(resumed.run.read()) == without_time(finished.run.read())
    assert without_time(resumed.run.read("evaluations.jsonl")) == without_time(finished.run.read("evaluations.jsonl"))
    for name, value in finished.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_the_optimisers_moments_are_part_of_the_checkpoint(finished, tmp_path):
    resumed = copy_of(finished, tmp_path)
    resumed.resume()
    states = [trainer.engine.optimizer.state_dict()["state"] for trainer in (resumed, finished)]
    assert states[0].keys() == states[1].keys()
    for index, mine in states[0].items():
        theirs = states[1][index]
        assert mine.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), index
        assert mine["exp_avg_sq"].abs().sum() > 0


def test_sgd_momentum_survives_a_resume(tmp_path):
    overrides = ("optimizer.name=sgd", "optimizer.momentum=0.9", "optimizer.learning_rate=0.1")
    whole = small_trainer(tmp_path / "whole", *overrides)
    whole.fit()
    resumed = copy_of(whole, tmp_path)
    resumed.resume(from_step=2)
    resumed.fit()
    assert without_time(resumed.run.read()) == without_time(whole.run.read())


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "config.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_refused_and_the_previous_one_offered(finished, tmp_path, name, damage):
    resumed = copy_of(finished, tmp_path)
    path = resumed.run.path / "checkpoints" / "step_000004" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    with pytest.raises(SteerError, match=rf"step_000004: {name} .*checksum.*--resume --from-step 2"):
        resumed.resume()
    resumed.resume(from_step=2)
    assert resumed.finished == 2


def test_falling_back_takes_the_last_whole_checkpoint_and_never_begins_anew(finished, tmp_path, capsys):
    resumed = copy_of(finished, tmp_path)
    first, last = resumed.run.checkpoints.saved()
    (last / "optimizer.safetensors").unlink()
    resumed.resume(fall_back=True)
    assert resumed.finished == 2
    assert "warning: checkpoint" in capsys.readouterr().err
    (first / "optimizer.safetensors").unlink()
    again = trainer_in(RunFolder.open(resumed.run.path))
    with pytest.raises(SteerError, match="no earlier checkpoint is left"):
        again.resume(fall_back=True)
    assert again.run.checkpoints.saved() == [first, last]


def test_a_checkpoint_of_another_run_is_refused(finished, tmp_path):
    other = small_trainer(tmp_path / "other", "optimizer.learning_rate=0.5")
    (other.run.path / "checkpoints").mkdir()
    subprocess.run(["cp", "-r", finished.run.path / "checkpoints" / "step_000004", other.run.path / "checkpoints"])
    with pytest.raises(SteerError, match="other settings; no earlier checkpoint is left"):
        other.resume()


def test_a_checkpoint_that_lacks_a_weight_is_refused_and_a_tied_one_may_be_absent(finished, tmp_path):
    resumed = copy_of(finished, tmp_path)
    path = resumed.run.checkpoints.saved()[-1]
    about, weights = json.loads((path / "manifest.json").read_text()), load_file(path / "model.safetensors")
    absent = resumed.model.state_dict().keys() - weights.keys()
    assert absent == {"lm_head.weight"}
    resumed.engine.load(path, about)
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors")
    with pytest.raises(SteerError, match=r"checkpoint .*: its weights are not .*such as model\.norm\.weight"):
        resumed.engine.load(path, about)


def test_a_damaged_manifest_is_refused(finished, tmp_path):
    resumed = copy_of(finished, tmp_path)
    (resumed.run.path / "checkpoints" / "step_000004" / "manifest.json").write_text('{"step": 4')
    with pytest.raises(SteerError, match=r"manifest.json is missing or damaged.*--from-step 2"):
        resumed.resume()


def test_a_checkpoint_half_written_by_a_killed_run_is_ignored_and_replaced(finished, tmp_path):
    resumed = copy_of(finished, tmp_path)
    half = resumed.run.path / "checkpoints" / ".partial_step_000004"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert [path.name for path in resumed.run.checkpoints.saved()] == ["step_000002", "step_000004"]
    resumed.resume(from_step=2)
    resumed.fit()
    assert not half.exists()


def test_only_the_configured_number_of_checkpoints_is_kept(tmp_path):
    trainer = small_trainer(
        tmp_path / "a", "train.checkpoint_every=1", "train.checkpoints_kept=2", "evaluation.every=0"
    )
    trainer.fit()
    assert [path.name for path in trainer.run.checkpoints.saved()] == ["step_000003", "step_000004"]


def test_a_checkpoint_loads_as_a_hugging_face_model(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = finished.run.checkpoints.saved()[-1]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer("1,2=3:", return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids).logits, finished.model(ids).logits)


def test_rewind_drops_what_came_after_the_step_and_a_line_cut_short(tmp_path):
    run = RunFolder(tmp_path / "a", small_config()).start()
    for step in (1, 2, 3):
        run.log(step, {"x": step})
        run.write_rollout(step, [])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "x"')
    assert [row["step"] for row in run.read()] == [1, 2, 3]
    assert last_row(run.path / "metrics.jsonl") == {"step": 3, "x": 3}
    run.rewind(2)
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1, "x": 1}\n{"step": 2, "x": 2}\n'
    assert [path.name for path in sorted((run.path / "rollouts").iterdir())] == [
        "step_000001.parquet",
        "step_000002.parquet",
    ]


def test_sampled_responses_are_kept_with_their_reward_and_entropies(finished):
    rows = read(rollout_path(finished.run.path, 1))
    assert len({row.prompt for row in rows}) == len(rows) == 4
    assert all(len(row.entropy) == len(row.logprob) == len(row.lambda_) >= len(row.response) for row in rows)
    assert {row.reward for row in rows} <= {0.0, 1.0}


def test_a_run_folder_is_not_overwritten(tmp_path):
    RunFolder(tmp_path / "a", small_config()).start()
    with pytest.raises(SteerError, match="holds a run already; use --resume"):
        RunFolder(tmp_path / "a", small_config()).start()


def test_a_run_that_began_before_a_setting_was_known_goes_on_and_one_whose_settings_were_changed_does_not(tmp_path):
    trainer = small_trainer(tmp_path / "run")
    trainer.fit()
    (*_, path) = trainer.run.checkpoints.saved()
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del settings["model"]["attention"]
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["run"] = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    del manifest["manifest_sha256"]  # as older versions wrote it
    (path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    assert RunFolder.open(tmp_path / "run").checkpoints.choose() == path
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({**settings, "rollout": {"prompts": 8}}))
    with pytest.raises(SteerError, match="was written by a run with other settings"):
        RunFolder.open(tmp_path / "run").checkpoints.choose()


def test_a_checkpoint_that_a_rank_does_not_find_is_told(tmp_path):
    trainer = small_trainer(tmp_path / "run")
    trainer.fit()
    (*_, path) = trainer.run.checkpoints.saved()
    (path / "manifest.json").unlink()
    with pytest.raises(SteerError, match=r"manifest.json is missing or damaged on rank 0; give all ranks one file"):
        trainer.run.checkpoints.restore(path, trainer.engine)


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    run = RunFolder(tmp_path / "a", small_config()).start()
    with lock(run.path):
        other = steer("train", "--resume", run.path)
    assert other.returncode == 2
    assert "another process works in it" in other.stderr


def test_a_file_system_without_locks_is_told_with_the_remedy(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with (
        pytest.raises(SteerError, match=r"cannot be locked \(No locks available\).*name a folder .*local disk"),
        lock(tmp_path),
    ):
        pytest.fail("the folder was worked in without a lock")


def test_a_folder_that_cannot_be_made_is_told_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerError, match=r"run folder .*cannot be written \(Not a directory: .*run\); make room"):
        RunFolder(tmp_path / "file" / "run", small_config()).start()


def test_an_error_that_is_not_of_writing_is_told_as_it_is(tmp_path):
    def gone(*_):
        raise OSError("the sandbox is gone")

    trainer = small_trainer(tmp_path / "run")
    trainer.task.grader = SimpleNamespace(name="gone", grade=gone)
    with pytest.raises(OSError, match=r"^the sandbox is gone$"):
        trainer.fit()


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_the_finished_checkpoints(tmp_path):
    """The limit on file size makes writing a checkpoint's optimiser state fail as a full disk does."""
    folder = tmp_path / "run"
    whole = small_trainer(folder)
    whole.fit()
    last, names = folder / "checkpoints" / "step_000004", ("model.safetensors", "optimizer.safetensors")
    saved = {name: sha256(last / name) for name in names}
    subprocess.run(["rm", "-r", last], check=True)
    limit = (folder / "checkpoints" / "step_000002" / "optimizer.safetensors").stat().st_size // 2
    out = steer("train", "--resume", folder, "--no-report", largest_file=limit)
    assert out.returncode == 2
    assert out.stderr.count("\n") == 1
    assert out.stderr.startswith(f"error: run folder {folder}: cannot be written (")
    assert "--resume" in out.stderr
    assert [path.name for path in RunFolder.open(folder).checkpoints.saved()] == ["step_000002"]
    again = steer("train", "--resume", folder, "--no-report")
    assert again.returncode == 0, again.stderr
    assert {name: sha256(last / name) for name in names} == saved
    assert [row["step"] for row in RunFolder.open(folder).read()] == [1, 2, 3, 4]

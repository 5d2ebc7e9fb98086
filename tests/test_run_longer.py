"""A run goes on beyond the length that was planned for it, and from any folder, as if it had always been so."""

import json
import shutil

import pytest
from small import SMALL, small_trainer, without_time

from steer_core.cli import train
from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.policy.model import EMBEDDED
from steer_core.runs.folder import RunFolder

SETTINGS = (*SMALL, "optimizer.name=adamw", "model.path=model", "evaluation.every=2", "train.checkpoint_every=2")
SHORT, LONG = 3, 6
"""The short plan ends out of turn: no longer run is evaluated or saved after its last rollout."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a model and two runs of it, started there by its relative path: a short one, and a long one."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(EMBEDDED, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for rollouts in (SHORT, LONG):
            small_trainer(folder / str(rollouts), *SETTINGS, f"train.rollouts={rollouts}").fit()
    return folder


@pytest.fixture
def short(runs, tmp_path):
    shutil.copytree(runs / str(SHORT), tmp_path / "run")
    return tmp_path / "run"


def resume(folder, *words) -> int:
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(folder), "--no-report", *words])
    return end.value.code


def kept_in(folder) -> dict[str, object]:
    """What the files of a folder hold, but for copies of the logs, which hold readings of the clock."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.*")) if path.suffix != ".gz"}
    held = {name: path.read_bytes() for name, path in files.items() if path.name != "manifest.json"}
    for name, path in files.items():
        if path.name == "manifest.json":
            held[name] = manifest = json.loads(path.read_text())
            manifest["sha256"] = {file: sha for file, sha in manifest["sha256"].items() if not file.endswith(".gz")}
            manifest.pop("manifest_sha256", None)  # which covers them
    return held


@pytest.mark.parametrize("version", ["this", "older"])
def test_a_finished_run_goes_on_as_one_that_was_planned_for_more(runs, short, tmp_path, monkeypatch, version):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "_stop_on_signals", lambda trainer: None)
    run, long = RunFolder.open(short), RunFolder.open(runs / str(LONG))
    assert [row["step"] for row in run.read("evaluations.jsonl")] == [2, 3]
    if version == "older":  # its checkpoints are bound to the planned length
        for path in run.checkpoints.saved():
            manifest = json.loads((path / "manifest.json").read_text())
            manifest["run"] = run.checkpoints._fingerprints()[1]
            del manifest["manifest_sha256"]  # as older versions wrote it
            (path / "manifest.json").write_text(json.dumps(manifest))
    assert resume(short, f"train.rollouts={LONG}") == 0
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        assert without_time(run.read(log)) == without_time(long.read(log))
    assert (short / "config.yaml").read_text() == (long.path / "config.yaml").read_text()
    for part in ("checkpoints", "rollouts"):
        mine, theirs = (kept_in(folder / part) for folder in (short, long.path))
        assert mine == theirs
        assert mine


def test_a_length_that_is_reached_already_and_other_settings_are_refused_and_change_nothing(short, capsys):
    before = (short / "config.yaml").read_text()
    for words, message in (
        (["train.rollouts=2"], r"train.rollouts: 2 is not more than the 3 that "),
        (["train.rollouts=0"], r"train.rollouts: 0 is not allowed; "),
        (["train.rollouts=4", "train.seed=1"], r"but for train.rollouts; drop the configuration, train.seed=1"),
    ):
        assert resume(short, *words) == 2
        assert message in capsys.readouterr().err
    assert (short / "config.yaml").read_text() == before
    assert resume(short) == 0
    assert "came to its end already" in capsys.readouterr().out


def test_a_length_between_a_checkpoint_and_the_plan_may_be_given_with_the_checkpoint(short):
    run = RunFolder.open(short)
    run.plan(2)
    with pytest.raises(SteerError, match=r"train.rollouts: 2 is not more than the 2 "):
        run.keep_plan(2)
    run.keep_plan(1)
    assert RunFolder.open(short).config.train.rollouts == 2


def test_relative_paths_are_kept_absolute_beside_their_written_form(runs, short, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.parquet").touch()
    config = load_config(None, ["task.name=maths", "task.file=mine.parquet"])
    maths = RunFolder(tmp_path / "maths", config).start()
    monkeypatch.chdir("/")
    opened = [RunFolder.open(folder) for folder in (short, maths.path)]
    assert [run.written.model.path for run in opened] == ["model", "embedded"]
    assert [run.config.model.path for run in opened] == [str(runs / "model"), "embedded"]
    assert (opened[1].written.task.file, opened[1].config.task.file) == ("mine.parquet", str(tmp_path / "mine.parquet"))
    assert opened[1].located(config).task.file == str(tmp_path / "mine.parquet")
    other = load_config(None, ["task.name=maths", "task.file=other.parquet"])
    assert opened[1].located(other) == other
    (tmp_path / "mine.parquet").unlink()
    assert RunFolder.open(maths.path).config.task.file == "mine.parquet"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_model_folder_with_another_file_beside_its_weights_is_told_before_the_run_goes_on(
    runs, short, name, monkeypatch, capsys
):
    file = runs / "model" / name
    before = file.read_bytes()
    monkeypatch.chdir(runs)
    file.write_bytes(before + b"\n")
    try:
        assert resume(short, f"train.rollouts={LONG}") == 2
    finally:
        file.write_bytes(before)
    assert f"{name} of model.path" in capsys.readouterr().err

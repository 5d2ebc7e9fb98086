"""Lost logs, strangers' run folders and misplaced ones: what is known is written again, or one line says what to do."""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from small import grade_by, small_config, small_trainer, trainer_in

from steer_core.cli.main import main
from steer_core.common.environment import read_environment
from steer_core.common.errors import SteerError
from steer_core.common.places import EMBEDDED, PLANS
from steer_core.compare.comparison import comparison_of
from steer_core.compare.plan import load_plan
from steer_core.compare.runner import start_comparison
from steer_core.evaluation.problem_sets import start_evaluation
from steer_core.policy.model import load_policy
from steer_core.rollout.local import check_room
from steer_core.runs.folder import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    trainer = small_trainer(tmp_path_factory.mktemp("finished") / "run")
    trainer.fit()
    return trainer


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(finished.run.path, tmp_path / "copy")
    return tmp_path / "copy"


def error_of(capsys, *words) -> str:
    """The one line that a command prints which is refused."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.count("\n") == 1
    return told


LOSSES = {
    "deleted": lambda path: path.unlink(),
    "emptied": lambda path: path.write_text(""),
    "halved": lambda path: path.write_text(
        "".join(path.read_text().splitlines(True)[: 1 + (path.name == "metrics.jsonl")])
    ),
    "zeros": lambda path: path.write_bytes(b"\0" * 900),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_a_lost_log_is_written_again_from_the_checkpoint_and_said(folder, capsys, name, loss):
    whole = (folder / name).read_text()
    LOSSES[loss](folder / name)
    RunFolder.open(folder).rewind(4)
    assert (folder / name).read_text() == whole
    assert f"warning: {folder / name} is " in capsys.readouterr().err


def test_a_finished_run_that_is_resumed_gets_its_log_back(folder, capsys):
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["train", "--resume", str(folder)])
    assert ended.value.code == 0
    assert [row["step"] for row in RunFolder.open(folder).read()] == [1, 2, 3, 4]
    assert comparison_of([folder]).complete


def test_a_run_whose_log_lacks_rollouts_is_not_complete(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(True)
    (folder / "metrics.jsonl").write_text("".join([lines[0], lines[3]]))
    assert not comparison_of([folder]).complete


def test_a_checkpoint_of_an_older_version_keeps_no_log_and_a_lost_one_is_refused_with_a_remedy_that_works(folder):
    for path in folder.glob("checkpoints/*/*.gz"):
        path.unlink()
    LOSSES["halved"](folder / "metrics.jsonl")
    run, before = RunFolder.open(folder), sorted(folder.rglob("*"))
    with pytest.raises(
        SteerError, match=r"metrics\.jsonl: lacks rollout 3, .* keeps no copy; .* --resume --from-step 2"
    ):
        run.rewind(4)
    assert sorted(folder.rglob("*")) == before
    run.rewind(2)
    assert [row["step"] for row in run.read()] == [1, 2]


def test_a_lost_environment_is_told_with_a_remedy_that_works(folder):
    path, checkpoints = folder / "environment.json", RunFolder.open(folder).checkpoints
    path.unlink()
    assert read_environment(path) == {}
    with pytest.raises(SteerError, match="No such file or directory; put it back from a copy, or, where") as caught:
        checkpoints.choose()
    path.write_text(str(caught.value).partition(", write ")[2].removesuffix(" into it"))
    assert checkpoints.choose().name == "step_000004"


@pytest.mark.parametrize(
    ("about", "message"),
    [("[]", "holds '\\[\\]', no object"), ('{"date": 3}', "command holds nothing"), ("\0", "not JSON")],
)
def test_an_environment_of_another_shape_is_told_and_a_report_is_made_without_it(folder, about, message):
    (folder / "environment.json").write_text(about)
    with pytest.raises(SteerError, match=rf"environment .*: {message}.*move it away"):
        comparison_of([folder])
    (folder / "environment.json").unlink()
    assert comparison_of([folder]).environment == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("3", "line 5: holds '3', no object"),
        ("{", "line 5: not JSON"),
        ('{"step": "x"}', "line 5: step is 'x'"),
        ('{"step": 2}', "line 5: step 2 stands after step 4"),
        ('{"step": 5, "loss": []}', r"line 5: loss holds '\[\]'"),
    ],
)
def test_a_line_that_is_no_row_of_a_log_is_told_with_file_and_line(folder, line, message):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(
        SteerError, match=rf"log .*metrics\.jsonl, {message}.*; put it back from a copy, mend that line"
    ):
        comparison_of([folder])


def test_reading_a_strangers_run_imports_nothing_of_it_even_where_python_would_find_it(folder, monkeypatch, capsys):
    (folder / "evilmod.py").write_text("raise RuntimeError('evilmod ran')\n")
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("  name: none\n", "  name: evilmod:X\n  strength: 3\n"))
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **named: Path(path).write_bytes(b"<svg/>"))
    monkeypatch.chdir(folder)
    with pytest.raises(SteerError, match=r"intervention\.name: evilmod:X is not found .* PYTHONPATH=FOLDER steer"):
        RunFolder.open(".").config.with_method()
    monkeypatch.syspath_prepend(".")
    for words in (["report", "."], ["show", "."], ["plan", "config.yaml"]):
        with suppress(SystemExit):
            main(words)
    assert (folder / "report.html").is_file()
    assert "evilmod" not in sys.modules
    with pytest.raises(RuntimeError, match="evilmod ran"):
        trainer_in(RunFolder.open("."))


def test_a_comparison_is_not_put_into_a_runs_folder_nor_a_run_into_a_comparisons(folder, tmp_path):
    plan = load_plan(PLANS / "quick.yaml")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for resume in (False, True):
        with pytest.raises(SteerError, match=r"--out: .*copy holds a run; name another folder"):
            start_comparison(plan, folder, resume)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    start_comparison(plan, tmp_path / "comparison", resume=False)
    with pytest.raises(SteerError, match=r"--out: .*comparison holds a comparison; name another folder"):
        RunFolder(tmp_path / "comparison", small_config()).start()
    assert not (tmp_path / "comparison" / "config.yaml").exists()


KINDS = {"config.yaml": "a run", "plan.yaml": "a comparison", "evaluation.json": "an evaluation"}


@pytest.mark.parametrize("mark", KINDS)
def test_no_command_writes_into_a_folder_that_holds_results_of_another_kind(folder, tmp_path, mark, capsys):
    out, told = tmp_path / "taken", f"error: --out: {tmp_path / 'taken'} holds {KINDS[mark]}; name another folder\n"
    out.mkdir()
    (out / mark).write_text("theirs")
    responses = folder / "rollouts" / "step_000004.parquet"
    words = {
        "config.yaml": ["report", folder, "--out", out],
        "plan.yaml": ["grade", responses, "--out", out],
        "evaluation.json": ["report", folder, "--out", out],
    }
    assert error_of(capsys, *words[mark]) == told
    for own, start in {
        "config.yaml": lambda: RunFolder(out, small_config()).start(),
        "plan.yaml": lambda: start_comparison(load_plan(PLANS / "quick.yaml"), out, resume=True),
        "evaluation.json": lambda: start_evaluation(out, {}, {}, resume=True),
    }.items():
        if own != mark:
            with pytest.raises(SteerError, match=f"holds {KINDS[mark]}; name another folder"):
                start()
    assert [path.name for path in out.iterdir()] == [mark]


def test_what_is_in_the_place_of_a_checkpoint_is_set_aside_and_no_rollout_is_lost(folder, capsys):
    """A file, and a link to nothing, where the next ones go; and a checkpoint that is a link, which is let go."""
    checkpoints = folder / "checkpoints"
    shutil.move(checkpoints / "step_000002", folder / "elsewhere")
    (checkpoints / "step_000002").symlink_to(folder / "elsewhere")
    (checkpoints / "step_000005").write_text("a file")
    (checkpoints / "step_000006").symlink_to("nowhere")
    (checkpoints / ".partial_x").write_text("a file")
    run = RunFolder.open(folder)
    run.rewind(4)
    run.checkpoints.config = small_config("train.checkpoints_kept=1", "train.best_kept=0")
    engine = SimpleNamespace(weights=lambda: iter(()), save=lambda path: {"engine": "local"})
    policy = SimpleNamespace(model=SimpleNamespace(save_pretrained=save_nothing),
                             tokenizer=SimpleNamespace(save_pretrained=save_nothing))  # fmt: skip
    for step in (5, 6):
        run.checkpoints.save(step, policy, engine, {})
        assert f"step_{step:06d} is no checkpoint; it is set aside as step_{step:06d}.stray" in capsys.readouterr().err
    assert [path.name for path in run.checkpoints.saved()] == ["step_000006"]
    assert (checkpoints / "step_000005.stray").read_text() == "a file"
    assert (folder / "elsewhere" / "manifest.json").is_file()


def save_nothing(folder, **_) -> None:
    (Path(folder) / "config.json").write_text("{}")


def test_what_is_in_the_way_of_a_run_is_named(folder):
    shutil.rmtree(folder / "rollouts")
    (folder / "rollouts").write_text("a file")
    with pytest.raises(
        SteerError, match=r"cannot be written \(File exists: .*/rollouts\).* move away what is in its way"
    ):
        RunFolder.open(folder).write_rollout(5, [])


def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_anew(folder, capsys):
    shutil.rmtree(folder / "checkpoints")
    assert RunFolder.open(folder).checkpoints.choose() is None
    RunFolder.open(folder).rewind(0)
    assert f"warning: {folder} has no checkpoint; rollouts 1 to 4 are made again" in capsys.readouterr().err


def test_a_model_folder_that_is_gone_is_told_with_where_it_was_and_a_link_there_helps(folder, tmp_path, capsys):
    about, config = read_environment(folder / "environment.json"), (folder / "config.yaml").read_text()
    gone = tmp_path / "gone"
    (folder / "environment.json").write_text(json.dumps(about | {"paths": {"model.path": str(gone)}}))
    (folder / "config.yaml").write_text(config.replace("  path: embedded", "  path: models/gone"))
    told = error_of(capsys, "train", "--resume", folder)
    assert told.startswith(f"error: model.path: {gone}, which the run began from, is gone; put the folder back there")
    gone.symlink_to(EMBEDDED)
    run = RunFolder.open(folder)
    run.check_model()
    assert run.config.model.path == str(gone)
    run.checkpoints.check_base()


@pytest.mark.parametrize(
    ("name", "message"),
    [("x" * 300, "is too long"), ("a/" * 2000, "is too long"), ("", "is empty"),
     (os.fsdecode(b"r\xff"), "is not UTF-8"), ("a\0b", "null character")],
)  # fmt: skip
def test_a_path_that_no_file_system_or_page_holds_is_refused_in_one_line(capsys, tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for words in (["train", "--out", name], ["compare", "--out", name], ["report", name], ["train", name]):
        if words != ["train", ""]:
            assert message in error_of(capsys, *words), words
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_fills_the_model_is_told_with_no_negative_room():
    policy = load_policy("embedded")
    with pytest.raises(
        SteerError, match=rf"longest prompt has {policy.positions} tokens .* there is no room"
    ) as caught:
        check_room(policy, policy.positions, 8, "rollout.max_new_tokens")
    assert "-" not in str(caught.value).partition("there is no room")[2].replace("task.prompt_tokens", "")


@pytest.mark.parametrize("rollout", [1, 2])
def test_a_diverged_run_is_told_as_one_and_broken_weights_as_such(tmp_path, rollout):
    trainer = small_trainer(tmp_path / "run", "train.probe_sequences=0", "evaluation.every=0")
    grade_by(trainer, lambda response: len(response) % 2 == 0)

    def spoil():
        with torch.no_grad():
            trainer.model.model.norm.weight.fill_(torch.nan)

    if rollout == 1:
        spoil()
    told = (
        "check its weights"
        if rollout == 1
        else r"rollout 1: training has made .*learning_rate 0\.001\); lower the rate"
    )
    with pytest.raises(SteerError, match=told):
        trainer.fit(lambda n, metrics: spoil())


def test_numbers_of_responses_that_no_memory_holds_are_refused_before_anything_is_asked_for():
    for override in ("rollout.responses=1000000000", "evaluation.samples=1000000000"):
        with pytest.raises(SteerError, match=r"1000000000 for each of 4 problems .* no memory holds .*; lower it"):
            small_config(override)
    for override in ("train.threads=100000", "task.train_problems=1000000000", "evaluation.problems=1000000000"):
        with pytest.raises(SteerError, match=r"is not allowed; input should be less than or equal to"):
            small_config(override)
    for override in ("train.seed=99999999999999999999", "rollout.temperature=1e-300", "optimizer.learning_rate=1e300"):
        with pytest.raises(SteerError, match=r"is not allowed; give"):
            small_config(override)

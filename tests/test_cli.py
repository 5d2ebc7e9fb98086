"""The `steer` command: exit codes, one clear line for bad input, and a whole run by subprocess."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import start, steer, wait_until
from safetensors.torch import load_file, save_file
from small import SMALL
from transformers import AutoTokenizer

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.policy.model import EMBEDDED
from steer_core.policy.tokenizer import character_tokenizer

ENVIRONMENT = {**os.environ, "CI": "1"}


def error_of(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as exit:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


@pytest.fixture
def model_copy(tmp_path):
    folder = tmp_path / "model"
    subprocess.run(["cp", "-r", EMBEDDED, folder], check=True)
    return folder


def test_train_evaluate_and_report_by_subprocess(tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "steer_core", "train", "steer", *SMALL, "--out", str(run)]
    trained = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert trained.returncode == 0, trained.stderr
    assert "rollout 4/4" in trained.stdout
    evaluated = steer("evaluate", run, "evaluation.samples=8", "--out", tmp_path / "evaluation.json")
    assert evaluated.returncode == 0, evaluated.stderr
    row = json.loads((tmp_path / "evaluation.json").read_text())
    assert row["samples"] == 8
    assert len(row["correct"]) == 4
    assert f"{row['pass@1']:.3f}" in evaluated.stdout
    reported = steer("report", run)
    assert reported.returncode == 0, reported.stderr
    assert (run / "report.html").stat().st_size > 10_000


def test_interrupt_leaves_a_resumable_run(tmp_path):
    run = tmp_path / "run"
    arguments = ["train", *SMALL, "train.rollouts=15", "train.checkpoint_every=15", "--no-report", "--out", run]
    output = tmp_path / "output"
    output.touch()
    process = start(output, *arguments)
    wait_until(lambda: "rollout 2/" in output.read_text() or not process.is_alive(), "two rollouts")
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)  # as a launcher does on top of the terminal's Ctrl-C
    process.join()
    assert process.exitcode == 130, output.read_text()
    assert f"steer train --resume {run}" in output.read_text()
    steps = [int(path.name[5:]) for path in (run / "checkpoints").iterdir()]
    assert 2 <= steps[0] < 15
    resumed = steer("train", "--resume", run, "--no-report")
    assert resumed.returncode == 0, resumed.stderr
    assert f"rollouts {steps[0] + 1} to 15" in resumed.stdout


def test_unknown_key_names_the_nearest_known_one(capsys, tmp_path):
    error = error_of(capsys, "train", "optimizer.learning_rte=1", "--out", tmp_path / "run")
    assert "optimizer.learning_rte: unknown key; did you mean 'learning_rate'?" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("intervention.lambda_min=0.5", "intervention.lambda_min: no method is named that takes it"),
        ("intervention={name: steer, lambda_min: 1.5}", "intervention.lambda_min: 1.5 is above lambda_max (1.0)"),
        ("train.rollouts=many", "train.rollouts: 'many' is not allowed"),
        ("rollout.prompts=0", "rollout.prompts: 0 is not allowed"),
        ("model.path=/no/such/folder", "model.path: /no/such/folder holds no config.json"),
        ("rollout.max_new_tokens=200", "rollout.max_new_tokens: 200 is more than the"),
        ("task.largest_number=2", "task: found"),
    ],
)
def test_bad_settings_are_told_with_field_value_and_remedy(capsys, tmp_path, override, message):
    assert message in error_of(capsys, "train", override, "--out", tmp_path / "run")


def test_a_missing_configuration_is_told(capsys):
    assert "configuration no.yaml: No such file" in error_of(capsys, "train", "no.yaml")


def test_a_foreign_model_folder_is_refused(capsys, tmp_path, model_copy):
    tensors = load_file(model_copy / "model.safetensors")
    tensors = {name.replace("mlp", "feed_forward"): tensor for name, tensor in tensors.items()}
    save_file(tensors, model_copy / "model.safetensors", metadata={"format": "pt"})
    error = error_of(capsys, "train", f"model.path={model_copy}", "--out", tmp_path / "run")
    assert "holds weights that do not fit its config.json" in error


def test_a_truncated_model_file_is_refused(capsys, tmp_path, model_copy):
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    error = error_of(capsys, "train", f"model.path={model_copy}", "--out", tmp_path / "run")
    assert "does not load as a causal language model" in error


def test_a_tokenizer_that_cannot_write_the_task_is_refused(capsys, tmp_path, model_copy):
    character_tokenizer("abcdefghij0123456").save_pretrained(model_copy)
    error = error_of(capsys, "train", f"model.path={model_copy}", "--out", tmp_path / "run")
    assert "the tokenizer turns the prompt" in error


def test_a_tokenizer_larger_than_the_model_is_refused(capsys, tmp_path, model_copy):
    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(model_copy)
    error = error_of(capsys, "evaluate", model_copy)
    assert "the tokenizer has 22 tokens and the model embeds 20" in error


def test_resume_takes_no_new_settings(capsys, tmp_path):
    assert "drop the configuration" in error_of(capsys, "train", "grpo", "--resume", tmp_path)


def test_resuming_a_folder_without_a_run_is_told(capsys, tmp_path):
    assert "holds no config.yaml" in error_of(capsys, "train", "--resume", tmp_path)


def test_reporting_a_folder_without_a_run_is_told(capsys, tmp_path):
    assert "holds no config.yaml" in error_of(capsys, "report", tmp_path)


@pytest.mark.long
def test_compare_runs_every_arm_and_seed_stops_on_interrupt_and_resumes(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "baseline: grpo\nseeds: [0, 1]\narms:\n  grpo: {label: GRPO}\n"
        "  steer: {label: STEER, overrides: [intervention.name=steer, intervention.lambda_min=0.3]}\n"
    )
    out = tmp_path / "compare"
    arguments = ["compare", plan, *SMALL, "train.rollouts=6", "--out", out, "--jobs", "2"]
    process = start(tmp_path / "output", *arguments)
    wait_until(lambda: list(out.glob("runs/*/*/metrics.jsonl")) or not process.is_alive(), "the first rollout")
    os.kill(process.pid, signal.SIGINT)
    process.join()
    output = (tmp_path / "output").read_text()
    assert process.exitcode == 130, output
    assert "steer compare --resume" in output
    assert (out / "report.html").exists()
    resumed = steer(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    finals = sorted(str(path.relative_to(out)) for path in out.glob("runs/*/*/checkpoints/step_000006"))
    expected = [f"runs/{arm}/seed_{seed}/checkpoints/step_000006" for arm in ("grpo", "steer") for seed in (0, 1)]
    assert finals == expected
    alone = steer("train", *SMALL, "train.rollouts=6", "train.seed=1", "--no-report", "--out", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    assert _weights(tmp_path / "alone") == _weights(out / "runs/grpo/seed_1")
    refused = steer(*arguments)
    assert refused.returncode == 2
    assert "holds a comparison already; add --resume" in refused.stderr


def test_a_failed_run_is_named_with_its_reason(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "baseline: good\nseeds: [0]\narms:\n  good: {label: good}\n"
        "  bad: {label: bad, overrides: [rollout.max_new_tokens=120]}\n"
    )
    failed = steer("compare", plan, *SMALL, "train.rollouts=2", "--out", tmp_path / "compare")
    assert failed.returncode == 2
    assert "1 of 3 processes failed (bad, seed 0: error: rollout.max_new_tokens: 120 is more than the" in failed.stderr
    assert (tmp_path / "compare" / "report.html").exists()


def test_a_comparison_with_another_plan_is_not_continued(capsys, tmp_path):
    from steer_core.compare.plan import load_plan
    from steer_core.compare.runner import start_comparison

    plan = Path(__file__).parents[1] / "steer_core" / "plans" / "compare.yaml"
    start_comparison(load_plan(plan, SMALL), tmp_path / "out", resume=False)
    error = error_of(capsys, "compare", plan, *SMALL, "train.rollouts=9", "--out", tmp_path / "out", "--resume")
    assert "holds a comparison with another plan" in error


ESTIMATE = (*SMALL, "model.dtype=float64", "rollout.max_new_tokens=24", "rollout.prompts=2")


def test_estimate_prints_a_table_an_update_and_writes_its_folder(tmp_path):
    out = tmp_path / "estimate"
    done = steer("estimate", "embedded", *ESTIMATE, "--with-signal", "--out", out)
    assert done.returncode == 0, done.stderr
    for update in ("sgd:0.001", "adamw:0.0001"):
        assert f"embedded, {update}, " in done.stdout
    assert done.stdout.count("first order") == 2
    assert done.stdout.count("output layer") == 6
    assert f"written: {out / 'estimate.json'}" in done.stdout
    record = json.loads((out / "estimate.json").read_text())
    assert list(record["updates"]) == ["sgd:0.001", "adamw:0.0001"]
    tables = ["tokens_adamw_0.0001.csv.gz", "tokens_sgd_0.001.csv.gz"]
    assert sorted(path.name for path in out.iterdir()) == ["estimate.json", "estimate.png", *tables]


def test_estimate_of_one_prompt_has_no_interval_and_comes_to_its_end(capsys, tmp_path):
    one = ("rollout.prompts=1", "optimizer.mini_batch_prompts=1")
    words = ["estimate", "embedded", *ESTIMATE, *one, "--with-signal", "--update", "sgd:0.01", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 0
    assert capsys.readouterr().out.count("[-, -]") > 20
    assert json.loads((tmp_path / "estimate.json").read_text())["sample"]["prompts"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["embedded", "--update", "sgd:0"], "update 'sgd:0': the step size 0.0 is not above 0"),
        (["embedded", "--update", "sgd:0.1", "rmsprop:1"], "update 'rmsprop:1': the optimiser 'rmsprop' is neither"),
        (["models/none"], "model.path: models/none holds no config.json"),
        (["embedded", "rollout.promts=2"], "rollout.promts: unknown key; did you mean 'prompts'?"),
        (["embedded", *ESTIMATE, "--with-signal", "--update", "sgd:1e300"], "update sgd:1e+300: its step leads to NaN"),
        (
            ["embedded", *ESTIMATE, "--with-signal", "--update", "sgd:1e-30"],
            "update sgd:1e-30: its step moves no weight",
        ),
    ],
)
def test_estimate_tells_what_is_wrong_in_one_line(capsys, tmp_path, words, message):
    assert message in error_of(capsys, "estimate", *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_help_lists_estimate_and_its_own_help_every_option(capsys):
    for words, told in (
        (["--help"], ["estimate", "Measure how well every estimate tells"]),
        (["estimate", "--help"], ["--update", "sgd:0.001 adamw:1e-4", "--with-signal", "--config", "--out"]),
    ):
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in told)


def _weights(run: Path) -> bytes:
    return (run / "checkpoints" / "step_000006" / "model.safetensors").read_bytes()


def test_estimate_takes_settings_behind_its_updates_as_the_help_shows(tmp_path, monkeypatch):
    import steer_core.estimation.estimate as estimate

    seen = {}

    def note(model, config, updates, *rest):
        seen.update(config=config, updates=[str(update) for update in updates])
        raise SteerError("seen")

    monkeypatch.setattr(estimate, "estimate", note)
    with pytest.raises(SystemExit):
        main(
            [
                "estimate",
                "embedded",
                "--out",
                str(tmp_path),
                "--update",
                "sgd:0.01",
                "adamw:1e-4",
                "model.dtype=float64",
            ]
        )
    assert seen["updates"] == ["sgd:0.01", "adamw:0.0001"]
    assert seen["config"].model.dtype == "float64"


def test_estimate_refuses_an_unwritable_folder_before_it_measures(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="2"):
        main(["estimate", "embedded", "--out", str(tmp_path / "file" / "out")])
    assert "--out" in capsys.readouterr().err

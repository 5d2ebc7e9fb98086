"""A reward of one's own: what it is asked with, what it may return, what becomes of it where it fails."""

import json
from types import SimpleNamespace

import pytest
from small import SMALL, small_config, small_trainer, trainer_in, without_time

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.config.config import load_config
from steer_core.config.tasks import OwnConfig
from steer_core.evaluation.sample_and_grade import references
from steer_core.policy.tokenizer import character_tokenizer
from steer_core.problems import Own, Problem, make_task
from steer_core.problems.countdown import CHARACTERS
from steer_core.rewards.own import OwnReward
from steer_core.runs.folder import RunFolder
from steer_core.training.metrics import part_metrics

TOKENIZER = character_tokenizer(CHARACTERS)
PROBLEM = Problem("1+2=", "1+2=", "3", row={"answer": "3", "level": 2})


@pytest.fixture
def sums(tmp_path):
    """A file of sums that the embedded model's tokenizer can write."""
    lines = [json.dumps({"question": f"{i}+{i + 1}=", "answer": str(2 * i + 1), "level": i}) for i in range(100)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    return tmp_path / "sums.jsonl"


def verdict(function, response="3", problem=PROBLEM, **settings):
    """What a function makes of a response to a problem."""
    grader = OwnReward(f"outside_reward:{function}", **settings)
    return grader.grade(references(grader, [problem]), [response])[0]


def own(sums, function, *others):
    """Overrides of a small run that the function rewards."""
    task = ("task.name=own", f"task.file={sums}", f"task.reward=outside_reward:{function}", "task.train_problems=32")
    return (*task, "rollout.max_new_tokens=6", "evaluation.max_new_tokens=6", *others)


def test_a_number_is_the_reward_and_right_from_a_threshold_on():
    found = verdict("graded", "12345")
    assert (found.status, found.reward, found.score, found.parts) == ("wrong", 0.5, 0.5, {})
    assert verdict("graded", "12345", right_from=0.5).correct
    assert not verdict("graded", "12345", right_from=0.51).correct


def test_parts_add_up_by_their_weights_and_stay_apart():
    found = verdict("parts", "3 or so", weights={"short": 0.5, "right": 2})
    assert found.parts == {"right": 1.0, "short": -7.0, "asked": 4.0}
    assert found.reward == 2 * 1 - 0.5 * 7 + 4


def test_the_function_gets_prompt_response_and_the_whole_row():
    detail = verdict("sees", "yes").detail
    assert detail == "task.reward outside_reward:sees: ValueError: 1+2=|yes|{'answer': '3', 'level': 2}"


@pytest.mark.parametrize(
    ("function", "status", "detail"),
    [
        ("text", "crashed", "TypeError: returned '1.0', which is no number"),
        ("nothing", "crashed", "TypeError: returned None, which is no number"),
        ("empty", "crashed", "ValueError: returned an empty dict; return at least one part"),
        ("nan", "crashed", "ValueError: returned nan, which is no finite number"),
        ("infinite_part", "crashed", "ValueError: part 'b': returned inf, which is no finite number"),
        ("two_arguments", "crashed", "TypeError: two_arguments() takes 2 positional arguments but 3 were given"),
        ("dies", "crashed", "exit 3"),
        ("hangs", "timed out", "no answer within the limit of processor time"),
    ],
)
def test_what_is_no_reward_has_no_verdict_and_one_line_that_names_the_function(function, status, detail):
    found = verdict(function, seconds=1)
    assert (found.status, found.score) == (status, 0.0)
    assert found.detail == f"task.reward outside_reward:{function}: {detail}"


def test_a_response_that_breaks_the_function_gains_nothing_by_it():
    grader, other = OwnReward("outside_reward:minus_length"), Problem("2+2=", "2+2=", "4", row={"answer": "4"})
    rows = [PROBLEM, PROBLEM, PROBLEM, other, other]
    found = grader.grade(references(grader, rows), ["1", "123", "broken", "broken", "22"])
    assert [one.score for one in found] == [-1.0, -3.0, -3.0, -2.0, -2.0]
    assert [one.status == "crashed" for one in found] == [False, False, True, True, False]
    assert [one.score for one in grader.grade(references(grader, [other]), ["broken"])] == [0.0]


def test_a_weight_of_a_part_that_is_not_returned_is_told():
    told = "task.reward_weights.lenght: outside_reward:parts returns right, short, asked"
    assert verdict("parts", weights={"lenght": 1}).detail == told
    told = "task.reward_weights.a: outside_reward:graded returns none, only a number"
    assert verdict("graded", weights={"a": 1}).detail == told
    assert "sum to -inf" in verdict("parts", "3" * 99, weights={"short": 1e307}).detail


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no_such_module:f", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("outside_reward:missing", "AttributeError: module 'outside_reward' has no attribute 'missing'"),
        ("outside_reward:NO_FUNCTION", "TypeError: outside_reward:NO_FUNCTION is no function"),
    ],
)
def test_a_function_that_is_not_found_ends_the_run_before_a_folder_is_made(name, why, sums, tmp_path, capsys):
    settings = [s for s in own(sums, "graded") if not s.startswith("task.reward")]
    with pytest.raises(SystemExit):
        main(["train", *SMALL, *settings, f"task.reward={name}", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert f"task.reward: {name} is not imported (" in error
    assert why in error
    assert "PYTHONPATH=FOLDER" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_configuration_of_a_run_is_read_without_importing_its_reward(sums, tmp_path):
    settings = [s for s in own(sums, "graded") if not s.startswith("task.reward")]
    run = RunFolder(tmp_path / "run", small_config(*settings, "task.reward=no_such_module:f")).start()
    assert RunFolder.open(run.path).config.task.reward == "no_such_module:f"


@pytest.mark.parametrize("command", ["evaluate", "estimate"])
def test_a_run_of_somebody_else_calls_no_code_that_the_command_line_does_not_name(command, sums, tmp_path, capsys):
    run = small_trainer(tmp_path / "run", *own(sums, "parts", "train.rollouts=1"))
    run.fit()
    with pytest.raises(SystemExit):
        main([command, str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert "add task.reward=outside_reward:parts" in capsys.readouterr().err
    if command == "evaluate":
        settings = ["task.reward=outside_reward:parts", "evaluation.problems=2", "evaluation.samples=2"]
        with pytest.raises(SystemExit) as ended:
            main([command, str(run.run.path), *settings, "evaluation.pass_at=[1]", "--out", str(tmp_path / "out.json")])
        assert ended.value.code == 0
        assert json.loads((tmp_path / "out.json").read_text())["pass@1"] >= 0


def test_a_run_learns_from_the_reward_and_logs_its_parts_and_resumes_bit_for_bit(sums, tmp_path):
    overrides = own(sums, "parts", "task.reward_weights.short=0.01", "train.rollouts=3")
    whole = small_trainer(tmp_path / "whole", *overrides)
    whole.fit()
    rows = without_time(whole.run.read())
    assert {"reward/part/right", "reward/part/short", "reward/part/asked"} <= rows[0].keys()
    weighted = rows[0]["reward/part/right"] + 0.01 * rows[0]["reward/part/short"] + rows[0]["reward/part/asked"]
    assert rows[0]["reward/mean"] == pytest.approx(weighted, rel=1e-6)
    assert rows[0]["reward/groups_without_signal"] < 1
    cut = small_trainer(tmp_path / "cut", *overrides)
    cut.stop_requested = True
    cut.fit()
    again = trainer_in(RunFolder.open(tmp_path / "cut"))
    again.resume()
    again.fit()
    assert without_time(again.run.read()) == rows


def test_evaluations_of_maths_and_countdown_go_by_their_own_grader(sums):
    maths = load_config(None, ["task.name=maths", f"task.file={sums}", "task.reward=outside_reward:graded"]).task
    task = make_task(maths, TOKENIZER)
    assert (task.grader.name, task.rollout_grader(0).name) == ("strict", "own")
    countdown = make_task(load_config(None, ["task.reward=outside_reward:graded"]).task, TOKENIZER)
    assert (countdown.grader.name, countdown.rollout_grader(0).name) == ("countdown", "own")
    assert make_task(load_config(None).task, TOKENIZER).rollout_grader(0).name == "countdown"


def test_responses_without_a_verdict_are_told_and_the_run_goes_on(sums, tmp_path):
    trainer = small_trainer(tmp_path, *own(sums, "nan_where_even", "train.rollouts=1", "evaluation.every=0"))
    trainer.fit()
    (note,) = trainer.run.read("notes.jsonl")
    told = "were not judged, their reward is the lowest of their problem, and at most 0 "
    told += "(crashed: task.reward outside_reward:nan_where_even: ValueError: "
    assert told in note["note"]


def test_a_run_ends_in_one_line_where_no_response_gets_a_reward(sums, tmp_path):
    overrides = own(sums, "hangs", "task.reward_seconds=1", "rollout.prompts=2", "rollout.responses=2")
    trainer = small_trainer(tmp_path, *overrides, "optimizer.mini_batch_prompts=1")
    with pytest.raises(SteerError, match=r"rollout 1: the own reward failed on every response \(timed out: task"):
        trainer.fit()


def test_means_of_parts_are_over_the_responses_that_have_them():
    assert part_metrics([{"a": 1.0}, {"a": 0.0, "b": 4.0}, {}]) == {"reward/part/a": 0.5, "reward/part/b": 4.0}
    assert part_metrics([{}, {}]) == {}


def test_an_own_task_has_no_grader_but_the_function(sums):
    task = Own(OwnConfig(file=str(sums), reward="outside_reward:graded"), TOKENIZER)
    assert task.grader is task.rollout_grader(0)
    assert task.problems("train", 1)[0].row["level"] >= 0
    assert references(SimpleNamespace(), [PROBLEM]) == ["3"]

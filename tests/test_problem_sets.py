"""Evaluation on problem sets: what it keeps, that a kill loses nothing, and what its tables say."""

import json
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import start, wait_until

from steer_core.cli.main import main
from steer_core.common.errors import SteerError
from steer_core.common.settings import build
from steer_core.config.config import BenchmarksConfig
from steer_core.config.sections import BenchmarkConfig
from steer_core.evaluation import problem_sets, tables
from steer_core.evaluation.grading import graded
from steer_core.evaluation.problem_sets import parts_of
from steer_core.problems import Countdown, Problem
from steer_core.problems.sets import ProblemSet
from steer_core.rewards import graders_of
from steer_core.rollout.rollout import Rollout
from steer_core.stats.pass_at_k import average, pass_at_k

SETTINGS = ("benchmark.problems=6", "benchmark.samples=4", "benchmark.batch_sequences=8", "benchmark.threads=1")


def evaluate(folder, *words, model="embedded"):
    """`steer evaluate` on Countdown; returns its exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", model, "--benchmarks", "countdown", *SETTINGS, "--out", str(folder), *words])
    return stopped.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished evaluation of the embedded model."""
    folder = tmp_path_factory.mktemp("evaluation") / "embedded"
    assert evaluate(folder) == 0
    return folder


def untimed(folder):
    """The responses of an evaluation without their clock readings."""
    frame = tables.read_responses(folder)
    return frame[[column for column in frame.columns if not column.startswith("time/")]]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64))
def test_parts_hold_every_sample_of_every_problem_once_and_in_order(count, samples, most):
    problems = [Problem(str(i), "", "") for i in range(count)]
    parts = list(parts_of(ProblemSet("x", "countdown", samples, problems, "", ""), most))
    rows = [(problem.id, part.first + s) for part in parts for problem in part.problems for s in range(part.samples)]
    assert rows == [(str(i), s) for i in range(count) for s in range(samples)]
    assert max(part.responses for part in parts) <= max(most, 1)
    assert [part.index for part in parts] == list(range(len(parts)))


def test_every_response_is_kept_with_its_prompt_tokens_seed_and_verdict(finished):
    frame = tables.read_responses(finished)
    assert len(frame) == 6 * 4
    assert list(frame["sample"]) == [0, 1, 2, 3] * 6
    task = Countdown()
    problems = {problem.prompt: problem for problem in task.problems("test", 6)}
    assert list(frame.prompt.unique()) == list(problems)
    for row in frame.itertuples():
        (verdict,) = task.grade([problems[row.prompt]], [row.response])
        assert row[frame.columns.get_loc("countdown/status") + 1] == verdict.status
        assert row.tokens == len(row.token_ids)
        assert row.finish_reason in ("stop", "length")
    assert frame.groupby("seed").size().tolist() == [8, 8, 8]
    assert not (finished / "parts").exists()


def test_the_summary_counts_what_the_rows_say(finished, capsys):
    frame, told = tables.read_responses(finished), json.loads((finished / "summary.json").read_text())
    found = told["benchmarks"]["countdown"]
    counts = (frame["countdown/status"] == "right").groupby(frame.problem, sort=False).sum()
    graded = found["graders"]["countdown"]
    assert (found["problems"], found["samples"]) == (6, 4)
    assert graded["avg"]["mean"] == pytest.approx(average(counts, 4).mean)
    assert graded["avg"]["error"] == pytest.approx(average(counts, 4).error)
    for k in (1, 2, 4):
        assert graded["pass"][str(k)]["mean"] == pytest.approx(pass_at_k(counts, 4, k).mean())
    assert sum(graded["status"].values()) == 24
    assert found["truncated"] == pytest.approx((frame.finish_reason == "length").mean())
    assert found["tokens"] == pytest.approx(frame.tokens.mean())
    assert told["about"]["max_new_tokens"]["countdown"] == 128 - max(len(p) for p in frame.prompt)
    assert told["environment"]["command"].startswith("steer")
    assert "| countdown | 6 x 4 | countdown |" in (finished / "table.md").read_text()


def test_the_same_settings_give_the_same_responses_and_another_seed_others(finished, tmp_path):
    assert evaluate(tmp_path / "again") == 0
    pd.testing.assert_frame_equal(untimed(tmp_path / "again"), untimed(finished))
    assert evaluate(tmp_path / "other", "benchmark.seed=1") == 0
    assert list(untimed(tmp_path / "other").response) != list(untimed(finished).response)


def test_a_finished_evaluation_resumed_samples_nothing_and_tells_its_table(finished, capsys, monkeypatch):
    monkeypatch.setattr(problem_sets, "sampler_of", lambda *_: pytest.fail("sampled anew"))
    assert evaluate(finished, "--resume") == 0
    assert "countdown" in capsys.readouterr().out


@pytest.mark.long
def test_twenty_kills_at_random_moments_lose_and_repeat_nothing(tmp_path):
    words = ("evaluate", "embedded", "--benchmarks", "countdown", "benchmark.problems=150", "benchmark.samples=8",
             "benchmark.batch_sequences=8", "benchmark.threads=1", "--out")  # fmt: skip
    output, moments, codes = tmp_path / "output", random.Random(0), []
    whole = start(output, *words, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0, output.read_text()
    timed = tables.read_responses(tmp_path / "whole").drop_duplicates("seed")
    unit = float((timed["time/generated_seconds"] + timed["time/graded_seconds"]).mean())  # of a batch, on this machine
    parts = tmp_path / "killed" / "parts" / "countdown"

    def finished_parts():
        return len(list(parts.glob("[0-9]*.parquet"))) if parts.exists() else 0

    for attempt in range(20):
        before = finished_parts()
        process = start(output, *words, tmp_path / "killed", "--resume")
        if attempt:  # the first falls anywhere, start-up included; the others from the next batches on
            more = before + moments.randint(0, 2)
            wait_until(lambda more=more, p=process: finished_parts() > more or not p.is_alive(), "a batch")
        time.sleep(moments.uniform(0, 1.5 * unit))
        process.kill()
        process.join()
        codes.append(process.exitcode)
    assert codes == [-signal.SIGKILL] * 20, output.read_text()
    assert 0 < finished_parts() < 150
    last = start(output, *words, tmp_path / "killed", "--resume")
    last.join()
    assert last.exitcode == 0, output.read_text()
    pd.testing.assert_frame_equal(untimed(tmp_path / "killed"), untimed(tmp_path / "whole"))
    assert len(untimed(tmp_path / "killed")) == 1200


@pytest.mark.parametrize("moment", ["written", "renamed", "gathered"])
def test_a_kill_while_a_file_is_written_leaves_it_whole_or_absent(finished, tmp_path, monkeypatch, moment):
    real = problem_sets.write_table
    calls = []

    def stop_at(table, path):
        calls.append(path)
        last = path.name == tables.RESPONSES
        if moment == "written" and len(calls) == 2:  # a torn file lies beside the place of the second batch
            path.with_name(f".partial_{path.name}").write_bytes(b"PAR1 torn")
            raise KeyboardInterrupt
        if moment == "gathered" and last:
            raise KeyboardInterrupt
        real(table, path)
        if moment == "renamed" and (len(calls) == 2 or last):
            raise KeyboardInterrupt

    monkeypatch.setattr(problem_sets, "write_table", stop_at)
    assert evaluate(tmp_path / "stopped") == 130
    monkeypatch.setattr(problem_sets, "write_table", real)
    assert evaluate(tmp_path / "stopped", "--resume") == 0
    pd.testing.assert_frame_equal(untimed(tmp_path / "stopped"), untimed(finished))
    assert not (tmp_path / "stopped" / "parts").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "holds an evaluation already; add --resume"),
        (["--resume", "benchmark.temperature=0.5"], "other settings; give the settings it began with"),
        (["--resume", "benchmark.samples=2"], "other settings, benchmarks; give"),
    ],
)
def test_a_folder_takes_its_own_evaluation_alone(finished, words, message, capsys):
    assert evaluate(finished, *words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--benchmarks", "aime42"], "--benchmarks: 'aime42' is unknown; did you mean 'aime"),
        (["--benchmarks", "countdown", "countdown"], "--benchmarks: countdown is named twice"),
        (
            ["--benchmarks", "countdown", "benchmark.samplse=3"],
            "benchmark.samplse: unknown key; did you mean 'samples'",
        ),
        (
            ["--benchmarks", "countdown", "benchmark.samples=1000000000"],
            "benchmark.samples: 1000000000 of each of the 150 problems of countdown are more responses than",
        ),
        (["--benchmarks", "countdown", "benchmark.problems=0"], "benchmark.problems: 0 is not allowed"),
        (["--benchmarks", "countdown", "--config", "grpo"], "--config: belongs to a task's held-out problems"),
        (["--benchmarks", "countdown", "--published", "Qwen2.5-Math-8B"], "did you mean 'Qwen2.5-Math-7B'"),
        (["--resume"], "--resume: belongs to --benchmarks"),
        (["--published", "x"], "--published: belongs to --benchmarks"),
    ],
)
def test_bad_input_is_told_in_one_line(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "embedded", *words, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_and_the_evaluation_goes_on_from_there(finished, tmp_path, monkeypatch, capsys):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    assert evaluate(tmp_path / "full") == 2
    assert "No space left on device); make room, then --resume" in capsys.readouterr().err
    monkeypatch.setattr(os, "fsync", real)
    assert evaluate(tmp_path / "full", "--resume") == 0
    pd.testing.assert_frame_equal(untimed(tmp_path / "full"), untimed(finished))


@dataclass
class Scripted:
    """An engine that says what it was told to say."""

    texts: list[str]

    def generate(self, prompts, responses, sampling, seed, places=None):
        count = len(prompts) * responses
        ids = torch.arange(count * 3).reshape(count, 3)
        mask = torch.ones(count, 3, dtype=torch.bool)
        return Rollout(ids, mask, ids, mask, self.texts[:count], ["stop"] * (count - 1) + ["length"])


def test_mathematics_is_judged_by_the_strict_grader_and_the_release_beside_it():
    texts = [r"so \boxed{4}", "Answer: 4", r"\boxed{5}", "nothing to see"]
    part = next(parts_of(ProblemSet("made", "maths", 4, [Problem("made/1", "2+2?", "4")], "", ""), 8))
    frame = graded(problem_sets.sample(part, Scripted(texts), BenchmarkConfig()), graders_of("maths")).to_pandas()
    assert list(frame["strict/status"]) == ["right", "right", "wrong", "unanswered"]
    assert frame["release/status"][0] == "right"
    assert tables.graders_in(frame) == ["strict", "release"]
    assert frame["strict/answer"][0] == frame["strict/answer"][1]
    assert pd.isna(frame["strict/answer"][3])
    found = tables.summarise(frame)["made"]["graders"]["strict"]
    assert found["maj"]["mean"] == 1.0  # two votes for 4, one for 5, one silent
    assert found["status"]["unanswered"] == 1


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_code_is_run_and_judged_by_its_tests():
    tests = json.dumps({"inputs": ["2 3\n"], "outputs": ["5\n"]})
    right, wrong = (f"```python\na, b = map(int, input().split())\nprint(a {sign} b)\n```" for sign in "+-")
    part = next(parts_of(ProblemSet("made", "code", 3, [Problem("made/1", "add", tests)], "", ""), 8))
    frame = graded(
        problem_sets.sample(part, Scripted([right, wrong, "no idea"]), BenchmarkConfig()), graders_of("code")
    )
    assert frame["code/status"].to_pylist() == ["right", "wrong", "unanswered"]
    assert frame["code/detail"].to_pylist()[1] == "test 1 of 1: wrong answer"


def test_without_bubblewrap_code_is_judged_only_where_the_weaker_limits_are_asked_for(monkeypatch):
    from steer_core.rewards import sandbox

    sandbox.require_sandbox.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    with pytest.raises(SteerError, match=r"bubblewrap .* is not installed; `apt install bubblewrap`"):
        graders_of("code")
    assert graders_of("code", BenchmarkConfig(sandbox="limits").sandbox)[0].mode == "limits"
    sandbox.require_sandbox.cache_clear()


@pytest.mark.parametrize(("kind", "reference"), [("maths", "4"), ("countdown", "2,2=4:")])
def test_an_empty_response_is_unanswered_by_every_grader(kind, reference):
    for grader in graders_of(kind):
        verdicts = grader.grade([reference] * 2, ["", " \n"])
        assert [(verdict.status, verdict.answer) for verdict in verdicts] == [("unanswered", None)] * 2
        with pytest.raises(ValueError, match=r"shorter|1 ref"):
            grader.grade([reference], [])


def responses(statuses_by_problem, prompt="p", benchmark_name="aime24"):
    """A frame of graded responses, from lists of statuses by problem."""
    rows = [
        {"benchmark": benchmark_name, "problem": problem, "sample": i, "reference": "7",
         "prompt": f"{prompt} {problem}", "tokens": 10, "finish_reason": "stop",
         "strict/status": status, "strict/answer": None, "strict/detail": ""}
        for problem, statuses in statuses_by_problem.items()
        for i, status in enumerate(statuses)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def written(folder, frame):
    folder.mkdir(parents=True)
    frame.to_parquet(folder / tables.RESPONSES)
    return folder


R, W = "right", "wrong"


def test_published_scores_stand_beside_the_result_for_the_model_that_is_named():
    summary = tables.summarise(responses({"a": [R, W], "b": [W, W]}))
    lines = tables.published_lines(summary, "mine", tables.published_scores("Qwen2.5-Math-7B"))
    assert lines[0] == ["model", "method", "source", "aime24"]
    assert lines[1] == ["mine", "graded by strict", "this evaluation", "25.0 ± 25.0"]
    assert ["Qwen2.5-Math-7B", "STEER", "paper, T3", "36.2"] in lines
    assert {line[0] for line in lines[2:]} == {"Qwen2.5-Math-7B"}
    alike = tables.summarise(responses({"a": [W, W], "b": [W, W]}))
    assert tables.published_lines(alike, "mine", tables.published_scores())[1][3] == "0.0"  # no error to be had
    everything = tables.published_lines(summary, "mine", tables.published_scores())
    assert len(everything) > len(lines)
    assert tables.published_lines({"countdown": {}}, "mine", tables.published_scores()) == []


def test_two_evaluations_are_paired_by_problem_whatever_the_order(tmp_path):
    first = written(tmp_path / "a", responses({"x": [R, R], "y": [R, W], "z": [R, R]}))
    second = written(tmp_path / "b", responses({"z": [R, W], "x": [W, W], "y": [W, W]}))
    one = tables.paired_evaluations(first, second)["aime24"]
    assert one["means"] == pytest.approx([5 / 6, 1 / 6])
    assert one["decision"].difference.mean == pytest.approx(np.mean([1, 0.5, 0.5]))
    assert one["same_prompts"]
    line = tables.paired_lines({"aime24": one})[0]
    assert line[:3] == ["aime24", "strict", "3 x 2"]
    other = written(tmp_path / "c", responses({"x": [W, W], "y": [W, W], "z": [R, W]}, prompt="another style"))
    assert tables.paired_lines(tables.paired_evaluations(first, other))[0][-1] == "NO"


def test_pairs_that_cannot_be_compared_say_why(tmp_path, capsys):
    first = written(tmp_path / "a", responses({"x": [R, R], "y": [R, W]}))
    cases = {
        "was given other problems of aime24": responses({"x": [R, R], "q": [R, W]}),
        "shares no benchmark": responses({"x": [R, R], "y": [R, W]}, benchmark_name="amc23"),
        "has 1 to 2 responses a problem": responses({"x": [R, R], "y": [R]}),
        "judges aime24 by other answers than": responses({"x": [R, R], "y": [R, W]}).assign(reference="other"),
    }
    for i, (message, frame) in enumerate(cases.items()):
        with pytest.raises(SteerError, match=message):
            tables.paired_evaluations(first, written(tmp_path / f"b{i}", frame))
    with pytest.raises(SteerError, match="--grader: 'strikt' did not judge aime24 in both; did you mean 'strict'"):
        tables.paired_evaluations(first, first, "strikt")
    with pytest.raises(SteerError, match=r"holds no responses.parquet; give the folder of a finished"):
        tables.read_responses(tmp_path / "nowhere")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / tables.RESPONSES).write_bytes(b"PAR1 torn")
    with pytest.raises(SteerError, match="is not read"):
        tables.read_responses(tmp_path / "torn")
    with pytest.raises(SteerError, match="holds no response; evaluate again"):
        tables.read_responses(written(tmp_path / "empty", cases["shares no benchmark"].iloc[:0]))
    with pytest.raises(SteerError, match="lacks the columns finish_reason"):
        tables.read_responses(written(tmp_path / "old", cases["shares no benchmark"].drop(columns="finish_reason")))


@pytest.mark.parametrize("text", ["", "5", "[1]", "{}", "\0", '{"about": 1, "environment": {}}'])
def test_a_damaged_record_of_an_evaluation_is_told_in_one_line(tmp_path, text):
    (tmp_path / tables.RECORD).write_text(text)
    with pytest.raises(SteerError, match=r"^evaluation \S+evaluation.json: .*; evaluate again into another folder$"):
        tables.read_record(tmp_path)


def test_an_undecided_pair_says_what_would_decide_it(finished, tmp_path, capsys):
    assert evaluate(tmp_path / "other", "benchmark.seed=1") == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["paired", str(finished), str(tmp_path / "other")])
    assert stopped.value.code == 0
    assert "countdown" in capsys.readouterr().out
    plan = tables.paired_evaluations(finished, tmp_path / "other")["countdown"]["decision"]
    assert ("would take" in tables.verdict(plan)) == (
        plan.difference.verdict == "undecided" and plan.difference.mean != 0
    )


def test_settings_are_checked_as_those_of_a_run_are():
    assert build(BenchmarksConfig, {}).benchmark.top_p == 0.7
    with pytest.raises(SteerError, match=r"benchmark\.engine"):
        build(BenchmarksConfig, {"benchmark": {"engine": "sglang"}})

"""The files of a run's sampled responses: some hundred rollouts share one, and no kill loses or repeats any."""

import contextlib
import functools
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sampled import some_responses

from steer_core.common.errors import SteerError
from steer_core.runs import responses, rollouts
from steer_core.runs.rollouts import add, read, rewind, rollout_path, steps_in
from steer_core.show import show


class Killed(BaseException):
    """Ends a process as a kill does."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(rollouts, "PART", 3)


@functools.cache
def rows_of(step: int) -> list:
    """Responses that tell their rollout, as they are read: their numbers are in float32."""
    with tempfile.TemporaryDirectory() as folder:
        responses.write(Path(folder) / "x", some_responses()[: step % 4])
        return responses.read(Path(folder) / "x")


def sampled(run, *steps):
    run.mkdir(exist_ok=True)
    for step in steps:
        add(run, step, rows_of(step))
    return run


def names(run) -> list[str]:
    return sorted(path.name for path in (run / "rollouts").iterdir())


def assert_holds(run, last: int) -> None:
    assert steps_in(run) == list(range(1, last + 1))
    for step in range(1, last + 1):
        assert read(run, step) == rows_of(step), step


def test_the_rollouts_of_a_part_share_a_file_and_each_reads_as_it_was(tmp_path):
    run = sampled(tmp_path / "run", *range(1, 9))
    assert names(run) == [
        "step_000007.parquet", "step_000008.parquet", "steps_000001-000003.parquet", "steps_000004-000006.parquet"
    ]  # fmt: skip
    assert_holds(run, 8)
    part = pq.read_table(run / "rollouts" / "steps_000001-000003.parquet")
    assert part.column_names == ["step", *responses.COLUMNS]
    assert part["step"].to_pylist() == [step for step in (1, 2, 3) for _ in rows_of(step)]


def test_a_folder_of_one_file_a_rollout_still_reads(tmp_path):
    (tmp_path / "rollouts").mkdir()
    for step in range(1, 8):
        responses.write(rollout_path(tmp_path, step), rows_of(step))
    assert_holds(tmp_path, 7)
    (tmp_path / "config.yaml").write_text("train: {}\n")
    assert show(tmp_path, [7], tmp_path / "page.html")


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 6, 8])
def test_going_back_within_a_part_keeps_what_came_before_and_the_same_files_come_again(tmp_path, step):
    run = sampled(tmp_path / "run", *range(1, 9))
    whole = names(run)
    (run / "rollouts" / ".partial_x").write_text("half")
    rewind(run, step)
    assert_holds(run, step)
    sampled(run, *range(step + 1, 9))
    assert names(run) == whole
    assert_holds(run, 8)


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("operation", ["unlink", "replace"])
def test_a_kill_while_files_become_one_or_come_apart_loses_and_repeats_nothing(tmp_path, monkeypatch, operation, call):
    run, calls, method = sampled(tmp_path / "run", 1, 2), [], getattr(type(tmp_path), operation)

    def killing(path, *args, **named):
        calls.append(path)
        if len(calls) >= call:
            raise Killed
        return method(path, *args, **named)

    for action in (lambda: add(run, 3, rows_of(3)), lambda: rewind(run, 2)):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(type(tmp_path), operation, killing)
            with contextlib.suppress(Killed):
                action()
        found = steps_in(run)
        assert found[:2] == [1, 2]
        assert all(read(run, step) == rows_of(step) for step in found)
    rewind(run, 2)
    assert_holds(run, 2)
    assert names(run) == ["step_000001.parquet", "step_000002.parquet"]


def test_a_damaged_file_stays_out_of_a_part_and_a_damaged_part_is_set_aside(tmp_path, capsys):
    run = sampled(tmp_path / "run", 1, 2)
    rollout_path(run, 2).write_bytes(b"PAR1")
    sampled(run, 3)
    assert "warning: responses" in capsys.readouterr().err
    assert read(run, 3) == rows_of(3)
    sampled(run, *range(4, 7))
    part = run / "rollouts" / "steps_000004-000006.parquet"
    part.write_bytes(b"PAR1")
    with pytest.raises(SteerError, match=r"steps_000004-000006\.parquet: damaged or no Parquet"):
        read(run, 5)
    rewind(run, 5)
    assert "set aside as steps_000004-000006.parquet.damaged" in capsys.readouterr().err
    assert steps_in(run) == [1, 2, 3]

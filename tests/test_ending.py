"""How commands and scripts end: output that is lost ends no work, and what goes wrong is one line and a status."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import start
from small import SMALL

from steer_core.cli.ending import end
from steer_core.common.errors import INTERRUPTED, SteerError
from steer_core.runs.folder import RunFolder

pytestmark = pytest.mark.slow
ROLLOUTS = 3


def train(out: Path) -> list:
    return ["train", *SMALL, f"train.rollouts={ROLLOUTS}", "--no-report", "--out", out]


def whole(out: Path) -> bool:
    return len(RunFolder.open(out).read()) == ROLLOUTS and bool(RunFolder.open(out).checkpoints.saved())


def test_a_run_whose_terminal_is_closed_goes_on_to_its_end(tmp_path):
    master, slave = pty.openpty()
    process = start(Path(os.ttyname(slave)), *train(tmp_path / "run"))
    os.read(master, 1)  # it has printed something
    os.close(master)
    os.close(slave)
    os.kill(process.pid, signal.SIGHUP)
    process.join()
    assert process.exitcode == 0
    assert whole(tmp_path / "run")


def test_a_run_whose_reader_has_gone_goes_on_to_its_end(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = start(pipe, *train(tmp_path / "run"))
    with pipe.open() as reader:
        assert any("rollouts 1 to 3" in reader.readline() for _ in range(3))  # how it samples and scores comes first
    process.join()
    assert process.exitcode == 0
    assert whole(tmp_path / "run")


def test_output_that_a_full_device_refuses_is_told_at_the_end(tmp_path):
    process = start(Path("/dev/full"), *train(tmp_path / "run"))
    process.join()
    assert process.exitcode == 2
    assert whole(tmp_path / "run")


def test_a_command_whose_streams_are_all_closed_prints_into_none_of_its_files(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "steer_core", *map(str, train(out))]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], check=True)
    assert whole(out)
    assert not [file for file in out.rglob("*") if file.is_file() and b"rollout 1/3" in file.read_bytes()]


def status_of(work) -> int:
    with pytest.raises(SystemExit) as ended:
        end(work)
    return ended.value.code


def raises(error: BaseException):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "status", "told"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (raises(SteerError("train.seed: x is no number")), 2, "error: train.seed: x is no number\n"),
        (raises(KeyboardInterrupt()), INTERRUPTED, "stopped\n"),
        (raises(OSError(28, "No space left on device", "out/page.md")), 2, "error: out/page.md: No space left"),
    ],
)
def test_work_ends_with_its_status_and_at_most_one_line(work, status, told, capsys):
    assert status_of(work) == status
    printed = capsys.readouterr().err
    assert printed.startswith(told)
    assert printed.count("\n") == bool(told)


def test_a_fault_of_the_program_itself_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        end(lambda: 1 // 0)
    with pytest.raises(OSError, match="no file in it"):
        end(raises(OSError("no file in it")))

"""Commands that are forked from a process with their imports: how they end, and that none is left behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import wait_until

from steer_core.common.errors import SteerError
from steer_core.compare import launcher as module
from steer_core.compare.launcher import Launcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands are forked on Linux")


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    with Launcher(tmp_path_factory.mktemp("launched")) as launcher:
        yield launcher


def ended(process) -> int:
    wait_until(lambda: process.poll() is not None, "its end")
    return process.returncode


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_ends_with_its_own_status_and_writes_to_its_log(launcher, tmp_path):
    well, badly = launcher.start(["train", "--help"], tmp_path / "a"), launcher.start(["trains"], tmp_path / "b")
    assert (ended(well), ended(badly)) == (0, 2)
    assert "usage: steer train" in (tmp_path / "a").read_text()
    assert "invalid choice: 'trains'" in (tmp_path / "b").read_text()
    assert well.poll() == 0
    well.send_signal(signal.SIGKILL)  # to nobody
    again = launcher.start(["report", "--help"], tmp_path / "a")
    assert ended(again) == 0
    assert (tmp_path / "a").read_text().count("usage: steer") == 2


def test_it_runs_where_it_was_asked_for(launcher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ended(launcher.start(["report", "none"], Path("log"))) == 2
    assert "run folder none: holds no config.yaml" in Path("log").read_text()


def test_a_signal_ends_one_and_not_the_next(launcher, tmp_path):
    first, second = (launcher.start(["train", "--help"], tmp_path / name) for name in "ab")
    os.kill(first.pid, signal.SIGSTOP)
    first.send_signal(signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0, (tmp_path / "b").read_text()


def test_all_end_with_the_process_that_forks_and_that_is_told(tmp_path):
    launcher = Launcher(tmp_path)
    process = launcher.start(["train", "--help"], tmp_path / "log")
    wait_until(lambda: os.getsid(process.pid) == process.pid, "a session of its own")  # tied to the other by then
    os.kill(process.pid, signal.SIGSTOP)
    assert alive(process.pid)
    launcher._server.kill()
    wait_until(lambda: not alive(process.pid), "its end", seconds=30)
    with pytest.raises(SteerError, match="the process that starts the runs has ended"):
        process.poll()
    launcher.close()


def test_a_log_that_cannot_be_written_is_told_by_its_name(launcher, tmp_path):
    with pytest.raises(OSError, match="none/log"):
        launcher.start(["doctor"], tmp_path / "none" / "log")


def test_elsewhere_commands_are_started_afresh(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_FORKS", False)
    with Launcher(tmp_path) as launcher:
        process = launcher.start(["train", "--help"], tmp_path / "log")
        assert isinstance(process, subprocess.Popen)
        assert ended(process) == 0
    assert "usage: steer train" in (tmp_path / "log").read_text()

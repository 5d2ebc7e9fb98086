"""The lock that DeepSpeed's ops are compiled under: taken over from the dead, never waited for without a word."""

import os
import subprocess

import pytest
from torch.utils import cpp_extension

from steer_core.common.errors import SteerError
from steer_core.engines import build_lock
from steer_core.engines.build_lock import OwnedBaton, owner_of


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(build_lock, "LONGEST_WAIT", 0.0)
    return tmp_path / "lock"


def test_a_free_lock_is_held_by_one_process_until_it_lets_go(path):
    first, second = OwnedBaton(str(path)), OwnedBaton(str(path))
    assert owner_of(path) == ""
    assert first.try_acquire()
    assert owner_of(path) == f"process {os.getpid()}"
    with pytest.raises(SteerError, match=f"process {os.getpid()}, which holds"):
        second.try_acquire()
    first.release()
    assert second.try_acquire()
    second.release()
    assert not path.exists()


@pytest.mark.parametrize("written", ["", f"{build_lock._HOST} 4194999"])
def test_a_lock_whose_owner_is_gone_is_taken_over(path, capsys, written):
    path.write_text(written)
    baton = OwnedBaton(str(path))
    assert baton.try_acquire()
    assert "its owner ended while it compiled; taken over" in capsys.readouterr().err
    assert path.read_text() == f"{build_lock._HOST} {os.getpid()}"
    baton.release()


def test_a_compiler_that_outlives_its_parent_is_waited_for_by_name_and_the_wait_ends_with_the_remedy(path, capsys):
    path.touch()
    with subprocess.Popen(["sleep", "60"], cwd=path.parent) as compiler:
        named = f"process {compiler.pid}"
        with pytest.raises(SteerError, match=rf"waited 0 minutes for {named}, .* set TORCH_EXTENSIONS_DIR to another"):
            OwnedBaton(str(path)).try_acquire()
        assert f"waiting for {named}, which compiles an op of DeepSpeed" in capsys.readouterr().err
        compiler.kill()
    baton = OwnedBaton(str(path))
    assert baton.try_acquire()
    baton.release()


def test_a_process_of_another_machine_counts_as_alive(path):
    path.write_text("elsewhere 12")
    with pytest.raises(SteerError, match="process 12 of elsewhere, which holds"):
        OwnedBaton(str(path)).try_acquire()
    assert path.exists()


def test_deepspeed_compiles_under_this_lock(monkeypatch):
    pytest.importorskip("deepspeed", reason="needs the extra deepspeed")
    from steer_core.engines import zero

    monkeypatch.setattr(cpp_extension, "FileBaton", None)
    zero._deepspeed("cpu")
    assert cpp_extension.FileBaton is OwnedBaton

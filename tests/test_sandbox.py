"""The sandbox's walls and messages; its limits are in test_sandbox_limits.py, the programs in hostile_walls.py."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile_walls import ESCAPES
from processes import wait_until
from sandboxes import SHORT, both_modes, needs_bubblewrap, printed, run, sandboxed

from steer_core.common.errors import SteerError
from steer_core.rewards import sandbox as module
from steer_core.rewards.sandbox import Sandbox, require_sandbox
from steer_core.rewards.syscalls import syscall_filter

# What a program sees, and does not


@pytest.fixture
def canaries(monkeypatch):
    """What a program must not reach, each with a secret: files, a variable, a port, an abstract name."""
    secret, mark = os.urandom(12).hex(), f"canary-{os.urandom(4).hex()}"
    paths = {
        "PROJECT": Path(__file__).parent / f".{mark}",
        "HOME": Path.home() / f".{mark}",
        "TEMPORARY": Path("/tmp") / mark,
    }
    monkeypatch.setenv("STEER_CANARY", secret)
    with contextlib.ExitStack() as stack:
        for path in paths.values():
            path.write_text(secret)
            stack.callback(path.unlink, missing_ok=True)
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract = {kind: stack.enter_context(socket.socket(socket.AF_UNIX, kind)) for kind in (1, 2)}
        for server in abstract.values():
            server.bind(f"\0{mark}-{server.type}")
        abstract[socket.SOCK_STREAM].listen()
        for server in (tcp, abstract[socket.SOCK_STREAM]):
            stack.callback(server.shutdown, socket.SHUT_RDWR)  # wakes the thread that waits
            threading.Thread(target=answer_with, args=(server, secret), daemon=True).start()
        named = {"PORT": tcp.getsockname()[1], "ABSTRACT": f"{mark}-1", "DATAGRAM": f"{mark}-2", "PID": os.getpid()}
        yield secret, paths, abstract[socket.SOCK_DGRAM], {**paths, **named}


def answer_with(server, secret):
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            connection.sendall(secret.encode())
            connection.close()


@needs_bubblewrap
@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_finds_or_changes_what_lies_outside(name, canaries):
    secret, paths, datagrams, fillings = canaries
    program = ESCAPES[name]
    for field, value in fillings.items():
        program = program.replace(f"@{field}@", str(value))
    outcome = run(program)
    assert secret not in outcome.output.decode(errors="replace") + outcome.detail
    assert str(os.getpid()) not in outcome.output.decode(errors="replace").split()
    assert [path.read_text() for path in paths.values()] == [secret] * 3
    datagrams.setblocking(False)
    with pytest.raises(BlockingIOError):
        datagrams.recv(99)


def test_the_canaries_are_found_where_nothing_hides_them(canaries):
    """The escapes do find what they look for when they run as ordinary scripts."""
    secret, _, _, fillings = canaries
    for name in ("reads the home's file", "reads the environment", "connects by TCP", "connects to an abstract name"):
        program = ESCAPES[name]
        for field, value in fillings.items():
            program = program.replace(f"@{field}@", str(value))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert secret in done.stdout, name


@needs_bubblewrap
def test_a_sandbox_has_its_own_network_users_processes_ipc_mounts_host_name_and_session():
    with Sandbox("import time\ntime.sleep(60)", SHORT) as sandbox:
        runner = threading.Thread(target=sandbox.run, args=("",))
        runner.start()
        wait_until(lambda: len(sandboxed()) >= 3, "a program runs")
        inside = [process for process in sandboxed() if is_python(process)]
        for process in inside:
            for kind in ("net", "user", "pid", "ipc", "mnt", "uts"):
                assert os.readlink(f"/proc/{process}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
            assert os.getsid(process) != os.getsid(0)
        runner.join()
    assert inside


def is_python(process: int) -> bool:
    return "bwrap" not in Path(f"/proc/{process}/comm").read_text()


@needs_bubblewrap
def test_only_the_libraries_the_interpreter_and_an_empty_tmp_are_visible():
    listing = """
        import os, sys
        shown = {"/usr", "/lib", "/lib32", "/lib64", sys.base_prefix}
        for folder, folders, files in os.walk("/"):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in shown]
            for name in files:
                print(os.path.join(folder, name))
        print(sorted(set(os.listdir("/")) - {"usr", "lib", "lib32", "lib64", sys.base_prefix.split("/")[1]}))
    """
    *files, root = printed(listing).splitlines()
    assert sorted(files) == ["/dev/null", "/dev/urandom", "/dev/zero", "/inside.py"]
    assert root == "['dev', 'inside.py', 'tmp']"


@needs_bubblewrap
def test_what_is_installed_beside_the_standard_library_is_hidden():
    program = "import os, sysconfig, sys\nprint(os.listdir(sysconfig.get_path('purelib')), sys.path)"
    listed = printed(program)
    assert listed.startswith("[] ")
    assert "site-packages" not in listed


@needs_bubblewrap
def test_only_tmp_can_be_written():
    program = """
        import os
        written = []
        for folder, folders, files in os.walk("/"):
            for act in (lambda: os.mkdir(folder + "/x"), lambda: open(folder + "/y", "w").close()):
                try:
                    act()
                    written.append(folder)
                except OSError:
                    pass
            if len(written) > 20:
                break
        print(sorted(set(written)))
    """
    assert printed(program).strip() in ("['/tmp']", "['/tmp', '/tmp/x']")


@needs_bubblewrap
def test_the_environment_holds_nothing_of_ours(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/secret")
    names = printed("import os\nprint(*sorted(os.environ))").split()
    assert names == ["HOME", "LANG", "MALLOC_ARENA_MAX", "PATH", "PWD", "PYTHONHASHSEED"]


@both_modes
def test_a_program_holds_its_own_files_alone(mode):
    """Stdin, stdout, stderr and the result: nothing of the supervisor's, nor of this process."""
    program = """
        import os
        for number in range(256):
            try:
                print(number, os.fstat(number).st_nlink)
            except OSError:
                pass
    """
    assert run(program, mode=mode).output.decode().split() == ["0", "0", "1", "0", "2", "0", "3", "0"]


@needs_bubblewrap
def test_a_program_is_nobody_with_no_capabilities_and_gains_none():
    with Sandbox("import time\ntime.sleep(60)", SHORT) as sandbox:
        runner = threading.Thread(target=sandbox.run, args=("",))
        runner.start()
        wait_until(lambda: len(sandboxed()) >= 3, "a program runs")
        status = [Path(f"/proc/{process}/status").read_text() for process in sandboxed() if is_python(process)]
        runner.join()
    assert all("CapEff:\t0000000000000000" in text and "NoNewPrivs:\t1" in text for text in status)
    assert printed("import os\nprint(os.getuid(), os.getgid(), os.getpid())").split()[:2] == ["65534", "65534"]


# Messages


def test_missing_bubblewrap_says_how_to_install_it_and_what_is_weaker(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    require_sandbox.cache_clear()
    with pytest.raises(SteerError, match=r"apt install.*dnf install.*conda install.*mode 'limits'"):
        require_sandbox()
    require_sandbox("limits")


@pytest.mark.parametrize(
    "said", ["bwrap: No permissions to create new namespace", "bwrap: setting up uid map: Permission denied"]
)
def test_a_kernel_that_refuses_namespaces_is_named_with_the_remedy(said, tmp_path, monkeypatch):
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    require_sandbox.cache_clear()
    with pytest.raises(SteerError, match=rf"{said}.*user namespaces.*Docker.*mode 'limits'"):
        require_sandbox()
    require_sandbox.cache_clear()


def test_an_unknown_mode_and_an_unknown_machine_are_refused():
    with pytest.raises(SteerError, match="mode 'bublewrap'; did you mean 'bubblewrap'"):
        Sandbox("", mode="bublewrap")
    with pytest.raises(SteerError, match=r"riscv64.*x86_64 or aarch64"):
        syscall_filter("riscv64")


def test_another_system_is_refused(monkeypatch):
    require_sandbox.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SteerError, match="Linux"):
        require_sandbox()


def test_what_a_program_says_of_its_end_is_one_printable_line():
    outcome = run("raise ValueError('\\x1b[2J a\\tb ' * 99)", mode="limits")
    assert outcome.detail.isprintable()
    assert len(outcome.detail) <= 200


def test_the_supervisor_imports_nothing_of_the_package():
    assert "steer_core" not in Path(module.INSIDE).read_text()
    assert json.dumps(module.ENVIRONMENT).count("steer") == 0

"""The sandbox's limits, what a run leaves to the next, and how everything in it comes to an end."""

import errno
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from hostile_limits import MEMORY
from processes import wait_until
from sandboxes import SHORT, both_modes, needs_bubblewrap, printed, resident, run, sandboxed

from steer_core.common.errors import SteerError
from steer_core.rewards import sandbox as module
from steer_core.rewards.sandbox import Limits, Sandbox, Stopped
from steer_core.rewards.syscalls import CLOCKS, CLONE, MACHINES, REFUSED, UNREADABLE, syscall_filter

# Limits


@both_modes
@pytest.mark.parametrize(
    ("program", "end", "detail"),
    [
        ("while True: pass", "timed out", "CPU time"),
        ("import time; time.sleep(60)", "timed out", "more than 4 seconds"),
        ("x = bytearray(300 << 20)", "memory", "MemoryError"),
        ("while True: print('x' * 99)", "output", "1048576 bytes"),
        ("import sys\nwhile True: print('x' * 99, file=sys.stderr)", "output", "1048576 bytes"),
        ("import time, threading\nfor _ in range(30): threading.Thread(target=time.sleep, args=(9,)).start()",
         "killed", "more than 16 threads"),
        ("with open('x', 'wb') as f:\n    while True: f.write(b'1' * 65536)", "failed", "File too large"),
        ("import os\nwhile True: os.pipe()", "failed", "Too many open files"),
        ("import os; os.fork()", "failed", "Operation not permitted"),
        ("import socket; socket.socket()", "failed", "Operation not permitted"),
        ("import ctypes; ctypes.string_at(0)", "killed", "signal 11"),
        ("1 / 0", "failed", "ZeroDivisionError: division by zero"),
        ("import os; os._exit(3)", "failed", "exit 3"),
        ("def f(", "failed", "SyntaxError"),
    ],
)  # fmt: skip
def test_each_limit_ends_a_program_and_says_so(mode, program, end, detail):
    outcome = run(program, mode=mode, limits=Limits(**{**vars(SHORT), "wall": 4.0}))
    assert (outcome.end, outcome.output) == (end, b"")
    assert detail in outcome.detail or "more than 4 seconds" in outcome.detail  # a crowded machine gives no CPU time


@needs_bubblewrap
@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("for i in range(99): open(str(i), 'wb').write(b'1' * 100_000)", "No space left"),
        ("import os\nfor i in range(10**7): os.close(os.open(str(i), os.O_CREAT))", "too many files"),
        ("open('/dev/shm/x', 'wb')", "No such file"),
    ],
)
def test_tmp_is_limited_and_there_is_no_other_place_to_fill(program, said):
    assert said in run(program).detail


@needs_bubblewrap
@pytest.mark.parametrize("name", ["blocks until refused, then on", "many processes, a block each",
                                  "many threads, a block each", "fills /tmp and goes on"])  # fmt: skip
def test_the_whole_sandbox_stays_within_its_memory(name):
    peak = 0
    with Sandbox(MEMORY[name], SHORT) as sandbox:
        runner = threading.Thread(target=sandbox.run, args=("",))
        runner.start()
        while runner.is_alive():
            peak = max(peak, resident(sandboxed()))
            time.sleep(0.01)
    assert 10 << 20 < peak < SHORT.memory + SHORT.disk + 3 * SHORT.output + (48 << 20)


@needs_bubblewrap
def test_limits_cannot_be_raised_and_hold_for_the_process():
    program = """
        import resource
        for name in ("AS", "CPU", "FSIZE", "NOFILE", "CORE"):
            print(*resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
    """
    assert "not allowed to raise" in run(program).detail
    limits = run(program.rsplit("resource.set", 1)[0]).output.decode().split()
    assert limits == [str(n) for n in (SHORT.memory, SHORT.memory, 1, 2, SHORT.output, SHORT.output, 64, 64, 0, 0)]


@both_modes
def test_refused_calls_are_refused_to_every_program(mode):
    column = MACHINES[os.uname().machine][0]
    numbers = {name: pair[column] for name, pair in REFUSED.items() if pair[column] is not None}
    program = f"""
        import ctypes
        call = ctypes.CDLL(None, use_errno=True).syscall
        for number in {[*numbers.values(), CLONE[column], UNREADABLE["clone3"][column]]}:
            print(call(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
    """
    lines = run(program, mode=mode).output.decode().splitlines()
    assert lines == [f"-1 {errno.EPERM}"] * (len(numbers) + 1) + [f"-1 {errno.ENOSYS}"]


@both_modes
@pytest.mark.parametrize(
    "call",
    ["os.memfd_create('x')", "os.kill(os.getpid(), 0)", "os.setsid()", "os.setpgid(0, 0)", "os.pidfd_open(1)",
     "os.fork()", "os.posix_spawn('/usr/bin/true', ['true'], {})", "check(libc.shmget(0, 4096, 0o1600))",
     "check(libc.semget(0, 1, 0o1600))", "check(libc.msgget(0, 0o1600))", "check(libc.unshare(0x10000000))",
     "check(libc.ptrace(16, 1, 0, 0))", "check(libc.vmsplice(1, 0, 0, 0))", "check(libc.prctl(22, 0, 0, 0, 0))",
     "check(libc.process_vm_readv(1, 0, 0, 0, 0, 0))", "check(libc.connect(0, 0, 0))", "socket.socket()",
     "os.nice(1)", "os.setpriority(os.PRIO_PROCESS, os.getppid(), 9)", "os.setpriority(os.PRIO_USER, 0, 9)",
     "os.sched_setaffinity(os.getppid(), {0})", "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
     "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)", "fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
     "fcntl.fcntl(0, 10, 9)", "fcntl.ioctl(0, 0x8901, b'1234')", "fcntl.fcntl(0, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
     "os.open('.', os.O_TMPFILE | os.O_RDWR)", "os.utime('.')", "os.chmod('.', 0o777)", "os.chmod('/dev/null', 0o666)",
     "time.clock_gettime(~os.getppid() << 3 | 2)",
     "os.utime('/dev/null')", "os.setxattr('.', 'user.x', b'1')", "check(libc.syncfs(0))", "os.chroot('.')",
     "socket.sethostname(socket.gethostname())", "check(libc.mount(b'x', b'.', b'no such system', 0, 0))"],
)  # fmt: skip
def test_no_process_no_memory_beside_the_address_space_and_nobody_else_can_be_reached(mode, call):
    program = f"""
        import ctypes, fcntl, os, resource, socket, time
        libc = ctypes.CDLL(None, use_errno=True)
        def check(value):
            if value < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        {call}
    """
    outcome = run(program, mode=mode)
    assert (outcome.end, outcome.detail[:42]) == ("failed", "PermissionError: [Errno 1] Operation not p")


@pytest.mark.parametrize("machine", MACHINES)
def test_the_filter_lets_threads_through_and_processes_not(machine):
    column, audit = MACHINES[machine]
    run_filter = interpreter_of(syscall_filter(machine))
    assert run_filter(CLONE[column], audit, 0x3D0F00) == "allow"
    assert run_filter(CLONE[column], audit, signal.SIGCHLD) == errno.EPERM
    assert run_filter(UNREADABLE["clone3"][column], audit, 0x3D0F00) == errno.ENOSYS
    assert {run_filter(pair[column], audit) for pair in REFUSED.values() if pair[column]} == {errno.EPERM}
    assert run_filter(0, audit) == run_filter(63, audit) == "allow"
    fcntl, prlimit, openat = (72, 302, 257) if machine == "x86_64" else (25, 261, 56)
    assert [run_filter(fcntl, audit, value, 1) for value in (2, 8, 15)] == ["allow", errno.EPERM, errno.EPERM]
    assert [run_filter(prlimit, audit, process) for process in (0, 1)] == ["allow", errno.EPERM]
    assert [run_filter(openat, audit, flags, 2) for flags in (0o102, 0o20200002)] == ["allow", errno.EPERM]
    for clock in (pair[column] for pair in CLOCKS):
        assert [run_filter(clock, audit, which) for which in (1, (~1 << 3 | 2) & 0xFFFFFFFF)] == ["allow", errno.EPERM]
    assert run_filter(0x40000000 + 57, audit) == errno.EPERM
    assert run_filter(0, 0x40000003) == "kill"


def interpreter_of(steps: bytes):
    """The kernel's reading of a filter, for a call's number, machine and first argument."""
    steps = list(struct.iter_unpack("HBBI", steps))

    def read(number, machine, argument=0, place=0):
        fields, at, word = {0: number, 4: machine, 16 + 8 * place: argument}, 0, 0
        while True:
            code, yes, no, value = steps[at]
            if code == 0x20:
                word = fields[value]
            elif code == 0x06:
                return {0x7FFF0000: "allow", 0x80000000: "kill"}.get(value, value & 0xFFFF)
            else:
                at += yes if {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code] else no
            at += 1

    return read


@pytest.mark.parametrize("changes", [{"cpu": 0}, {"cpu": 1.5}, {"wall": -1.0}, {"memory": 1 << 20}, {"threads": 0}])
def test_limits_that_make_no_sense_are_refused_by_name(changes):
    with pytest.raises(SteerError, match=rf"limits\.{next(iter(changes))}: .* must be"):
        Limits(**changes)


# Runs


@both_modes
def test_every_run_is_a_new_process_with_its_own_input(mode):
    program = """
        import builtins, os, sys
        print(input(), getattr(builtins, "before", "fresh"), os.listdir("."), sys.argv, os.fstat(0).st_size)
        builtins.before = "stale"
        open("left behind", "w")
    """
    with Sandbox(textwrap.dedent(program), SHORT, mode) as sandbox:
        lines = [sandbox.run(f"{number}\n").output.decode() for number in range(3)]
    assert lines == [f"{number} fresh [] ['program.py'] 2\n" for number in range(3)]


@both_modes
@pytest.mark.parametrize(
    "trace",
    ["open('x', 'w').close(); os.remove('x')", "os.mkdir('x'); os.rmdir('x')", "os.symlink('x', 'y'); os.remove('y')",
     "import threading; threading.Thread(target=print).start()"],
)  # fmt: skip
def test_what_a_run_leaves_no_later_one_can_read(mode, trace):
    """A file that is gone is told by its folder's times, a thread by the next process number: both are new then."""
    program = f"import os\nif input():\n    {trace}\nprint(os.stat('.').st_ctime_ns, os.getpid())"
    with Sandbox(program, SHORT, mode) as sandbox:
        assert sandbox.run("act\n").end == "done"
        ended = time.time_ns()
        time.sleep(0.02)  # the times of files are coarse
        changed, number = map(int, sandbox.run("\n").output.split())
    assert changed > ended or "thread" in trace
    assert number == 2 or mode == "limits"  # the first of its sandbox


def test_without_walls_no_signal_reaches_a_process_outside_by_way_of_a_file_s_owner():
    with subprocess.Popen(["sleep", "60"]) as outside:
        program = f"""
            import fcntl, os
            inlet, outlet = os.pipe()
            for command, value in ((fcntl.F_SETOWN, {outside.pid}), (10, 9), (fcntl.F_SETFL, os.O_ASYNC)):
                try:
                    fcntl.fcntl(inlet, command, value)
                except PermissionError:
                    print("refused")
            os.write(outlet, b"x")
        """
        assert run(program, mode="limits").output == b"refused\nrefused\n"
        time.sleep(0.05)
        assert outside.poll() is None
        outside.kill()


@both_modes
def test_large_inputs_and_outputs_pass_whole(mode):
    text = "".join(f"{number}\n" for number in range(700_000))
    outcome = run("import sys\nsys.stdout.write(sys.stdin.read())", text, mode, Limits())
    assert outcome.output.decode() == text


@both_modes
def test_a_program_ends_as_under_an_interpreter_of_its_own(mode):
    program = """
        import atexit, sys, threading, time
        sys.stdin = open(0)
        atexit.register(print, "at exit", input())
        def late():
            time.sleep(0.1)
            print("a thread", __name__, len(sys.modules["__main__"].__name__))
        threading.Thread(target=late).start()
        print("é", end="; ")
    """
    assert run(program, "x", mode).output.decode() == "é; a thread __main__ 8\nat exit x\n"


@needs_bubblewrap
def test_deep_recursion_and_a_cached_one_have_the_stack_they_need():
    program = """
        import functools, sys, threading
        def plain(n): return n and plain(n - 1) + 1
        @functools.lru_cache(None)
        def cached(n): return n and cached(n - 1) + 1
        print(plain(40_000), cached(20_000))
        threading.stack_size(64 << 20)
        thread = threading.Thread(target=lambda: print(plain(40_000)))
        thread.start()
    """
    assert printed(program) == "40000 20000\n40000\n"


@needs_bubblewrap
def test_a_caller_that_ignores_and_blocks_signals_gets_the_same_outcomes():
    script = """
import signal
from steer_core.rewards.sandbox import Limits, Sandbox
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
for program in ("print(1)", "while True: pass"):
    with Sandbox(program, Limits(cpu=1, wall=60)) as sandbox:
        print(sandbox.run("").end, end=";")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done;timed out;"


@needs_bubblewrap
def test_a_set_has_the_same_order_in_every_run():
    program = "print(list({str(number) for number in range(99)}))"
    assert printed(program) == printed(program)


def test_a_program_that_is_too_long_is_refused_and_one_that_is_no_text_fails():
    for program in ("x" * 2_000_000, ["x" * 1_000_000] * 2):
        with pytest.raises(ValueError, match="2000000 characters, more than 1048576"):
            Sandbox(program)
    assert "surrogates" in run("'\ud800'", mode="limits").detail


# Ends


@both_modes
def test_nothing_is_left_once_a_sandbox_is_closed(mode):
    sandbox = Sandbox("import time\nprint(1)", SHORT, mode)
    assert sandbox.run("").end == "done"
    assert sandboxed()
    sandbox.close()
    wait_until(lambda: not sandboxed(), "nothing is left", seconds=5)


@both_modes
def test_a_stopped_run_ends_at_once_and_leaves_nothing(mode):
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    began = time.monotonic()
    with Sandbox("import time\ntime.sleep(60)", Limits(wall=60), mode, stop) as sandbox, pytest.raises(Stopped):
        sandbox.run("")
    assert time.monotonic() - began < 10
    wait_until(lambda: not sandboxed(), "nothing is left", seconds=5)


@both_modes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_parent_is_killed_the_sandbox_dies(mode, number, tmp_path):
    script = f"""
from steer_core.rewards.sandbox import Limits, Sandbox
Sandbox("import time\\ntime.sleep(60)", Limits(wall=60), {mode!r}).run("")
"""
    parent = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)})
    mark = f"steer-sandbox-of-{parent.pid}"
    wait_until(lambda: len(sandboxed(mark)) >= (3 if mode == "bubblewrap" else 2), "a program runs")
    parent.send_signal(number)
    parent.wait()
    wait_until(lambda: not sandboxed(mark), "the sandbox is gone", seconds=10)
    assert sandboxed(mark) == []


GOOD = b'{"status": "done", "detail": "", "seconds": 0.1, "clean": true, "size": 1}\nx'


@pytest.mark.parametrize(
    "said",
    [
        GOOD + b"y",
        GOOD + GOOD,
        GOOD[:-1],
        GOOD[:30],
        b"",
        b"\n",
        b"null\n",
        b"[" * 4000 + b"\n",
        b"x" * 9000,
        GOOD.replace(b"done", b"passed"),
        GOOD.replace(b'"size": 1', b'"size": -1'),
        GOOD.replace(b'"size": 1', b'"size": 1.0'),
        GOOD.replace(b'"size": 1', b'"size": true'),
        GOOD.replace(b'"size": 1', b'"size": 99999999999'),
        GOOD.replace(b"true", b"1"),
        GOOD.replace(b'"detail": ""', b'"more": ""'),
        GOOD.replace(b'"detail": "", ', b""),
        GOOD.replace(b'"detail": "",', b'"detail": "", "more": 1,'),
    ],
)
def test_an_answer_that_is_not_exactly_one_is_no_answer(said, tmp_path, monkeypatch):
    """Were the supervisor itself subverted, nothing malformed would count."""
    fake = tmp_path / "inside.py"
    fake.write_text(f"""
import json, os, sys
def take():
    sys.stdin.buffer.read(json.loads(sys.stdin.buffer.readline())["size"])
take()
os.write(1, {GOOD.replace(b"done", b"ready").replace(b"size" + b'": 1', b"size" + b'": 0')[:-1]!r})
take()
os.write(1, {said!r})
""")
    monkeypatch.setattr(module, "INSIDE", fake)
    outcome = run("print('x')", mode="limits")
    assert (outcome.end, outcome.output) == ("killed", b"")


def test_an_answer_may_not_announce_more_than_the_output_limit():
    header = bytearray(GOOD.replace(b'"size": 1', b'"size": 9'))
    assert module._answer(bytearray(header), most=9)["size"] == 9
    with pytest.raises(module._Broken, match="an answer that is none"):
        module._answer(bytearray(header), most=8)

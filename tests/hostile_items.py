"""What a worker of the pool may meet: one function for every way of not coming back with a result."""

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path


def double(item):
    return 2 * item


def nap(seconds):
    time.sleep(seconds)
    return seconds


def burn(seconds):
    """Use so much processor time, and say which process did."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return os.getpid()


def pid(_):
    return os.getpid()


def heavy_modules(_):
    """What of the heavy packages this process has, once a grader has judged in it."""
    from steer_core.rewards import maths, release

    maths.judge(("1", r"\boxed{2x}", False))
    release.judge(("1", r"\boxed{2x}", False))
    return [name for name in ("torch", "transformers", "pandas", "numpy", "pyarrow") if name in sys.modules]


def stay(path):
    """Say which process this is, and stay."""
    Path(path).write_text(str(os.getpid()))
    while True:
        time.sleep(1)


def stay_the_first_time(path):
    """Stay where nobody was before; else say which process was."""
    if Path(path).exists():
        return int(Path(path).read_text())
    return stay(path)


def die_the_first_time(path):
    """Die where nobody was before; else stay."""
    if not Path(path).exists():
        Path(path).touch()
        os._exit(1)
    return stay(path)


def leave_a_child(path):
    """Start a process that outlives this one, say which, and stay."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path(path).write_text(str(child.pid))
    time.sleep(1000)


def act(name):
    """Do what the name says; anything else comes back as it is."""
    return ACTS[name]() if name in ACTS else name


def _spin():
    while True:
        pass


def _eat():
    held = []
    while True:
        held.append(" " * 10_000_000)


def _fail():
    raise ValueError("no\n" * 10_000_000)


def _fail_twice():
    class Unwritable(Exception):
        def __str__(self):
            raise RuntimeError

    raise Unwritable


def _babble():
    print("a line of a library's own", flush=True)
    os.write(1, b"another\n")
    return "said"


def _garble():
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"cos\nsystem\n(S'true'\ntR.\n")
        except OSError:  # no pipe of ours
            continue
    return "said"


ACTS = {
    "spin": _spin,
    "sleep": lambda: time.sleep(1000),
    "exit": lambda: os._exit(3),
    "quit": lambda: sys.exit(4),
    "segfault": lambda: ctypes.string_at(0),
    "kill": lambda: os.kill(os.getpid(), 9),
    "stop": lambda: os.kill(os.getpid(), 19),
    "eat": _eat,
    "one large": lambda: len(bytearray(1 << 40)),
    "fail": _fail,
    "fail twice": _fail_twice,
    "recurse": lambda: act("recurse"),
    "no json": object,
    "babble": _babble,
    "garble": _garble,
    "pid": os.getpid,
}

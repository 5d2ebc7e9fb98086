"""What runs inside a sandbox: a supervisor that runs one program once a test, each time in a new process.

Started by `sandbox.py` as a bare script: it imports nothing of this package, and never knows a right answer. Both
directions of its channel (stdin, stdout) carry messages of one line of JSON, whose `size` tells how many bytes follow:

    in    {"limits": {...}, "filter": hex, "inodes": most or null, "size": n}, then the texts that may be the program
    in    {"function": name or null, "wall": seconds, "size": n}, then stdin, or the arguments as a JSON array
    out   {"status": ..., "detail": ..., "seconds": ..., "clean": ..., "size": n}, then stdout, or the result as JSON

The program's stdin, stdout, stderr and result are files in memory, so that the kernel's limit on the size of a file
bounds each and nothing has to be pumped. As process 1 of its namespace the supervisor cannot be stopped from inside.
"""

import ast
import atexit
import bisect
import builtins
import collections
import contextlib
import copy
import ctypes
import datetime
import functools
import gc
import heapq
import io
import itertools
import json
import math
import operator
import os
import random
import re
import resource
import signal
import statistics
import string
import struct
import sys
import threading
import time
import types
import typing

TICK = 0.05
"""Seconds between two looks at a running program."""
RESULT = 3
"""The descriptor a function's result is written to."""
STACK = 256 << 20
DEPTH = 50_000
"""Python's recursion limit at the start: what LiveCodeBench's harness sets."""
STARRED = (
    string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools, operator,
    io, sys, json, typing,
)  # fmt: skip
"""Modules that a solution finds imported, whole and by their names; where names clash, the later module's."""
STREAMS = ("stdin", "stdout", "stderr")
DOING = (ast.Call, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
"""What a program has somewhere, and a sample of input or output has not."""
SET_DEATH_SIGNAL, SET_SECCOMP, SET_NO_NEW_PRIVILEGES = 1, 22, 38
FILTER = 2
CAPABILITIES, OPEN_FILES = 0x20080522, 1 << 1
"""The version of the kernel's records of capabilities, and CAP_DAC_OVERRIDE."""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Answer requests until the channel closes; in the process of a test, run the program and return."""
    channel, replies = sys.stdin.buffer, sys.stdout.buffer
    setup = json.loads(channel.readline())
    texts = json.loads(channel.read(setup["size"]))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # an ignored one, inherited, would hide how a process ended
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    names = prelude()
    gc.freeze()
    untouched = Untouched(setup["inodes"] is not None)
    reply(replies, b"", status="ready", detail="", seconds=0.0, clean=True)
    for line in channel:
        request = json.loads(line)
        payload = channel.read(request["size"])
        files = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr", "result")]
        if request["function"] is None:
            fill(files[0], payload)
        supervisor, process = os.getpid(), os.fork()
        if process == 0:
            confine(files, setup, supervisor)
            return run(texts, names, request["function"], payload)
        status, detail, seconds = watch(process, files, setup, request["wall"])
        wanted = files[1] if request["function"] is None else files[RESULT]
        output = os.pread(wanted, setup["limits"]["output"], 0) if status == "done" else b""
        for file in files:
            os.close(file)
        reply(replies, output, status=status, detail=detail, seconds=seconds, clean=untouched(process))


def run(texts: list, names: dict, function: str | None, payload: bytes) -> None:
    """Run the program; for a function, call it and write its result, and leave whatever else still runs."""
    source = chosen(texts, function).encode()
    module = types.ModuleType("__main__" if function is None else "program")
    vars(module).update(names, **{name: getattr(sys, name) for name in STREAMS})
    sys.modules[module.__name__] = module
    program = compile(source, "program.py", "exec", dont_inherit=True)
    if function is not None:
        exec(program, vars(module))
        owner = getattr(module, "Solution", None)
        target = getattr(owner(), function) if hasattr(owner, function) else vars(module).get(function)
        if target is None:
            raise NameError(f"the program defines no function {function!r}")
        fill(RESULT, json.dumps(target(*json.loads(payload))).encode())
    else:  # as the interpreter ends, but for taking itself apart
        with contextlib.suppress(SystemExit):  # whatever its code: LiveCodeBench's harness goes by what was put out
            exec(program, vars(module))
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


def chosen(texts: list, function: str | None) -> str:
    """The last text that is a program, where one is wanted of those that define the function; if none is, the last."""
    found = None
    for text in reversed(texts if len(texts) > 1 else []):
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if function in {getattr(node, "name", getattr(node, "id", None)) for node in nodes if defines(node)}:
            return text
        if found is None and any(isinstance(node, DOING) for node in nodes):
            found = text
            if function is None:
                break
    return texts[-1] if found is None else found


def defines(node: ast.AST) -> bool:
    """Whether a part of a program gives a name to a function or a value."""
    return isinstance(node, ast.FunctionDef) or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def confine(files: list[int], setup: dict, supervisor: int) -> None:
    """Make this new process the program's: its files and limits alone, and no way to make another process."""
    limits = setup["limits"]
    prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != supervisor:  # which ended before it could take this process along
        os._exit(1)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(RESULT + 1, os.sysconf("SC_OPEN_MAX"))
    for name, mode, number in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        errors = "backslashreplace" if name == "stderr" else "surrogateescape"
        stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    limit(resource.RLIMIT_STACK, STACK, resource.RLIM_INFINITY)
    limit(resource.RLIMIT_AS, limits["memory"])
    limit(resource.RLIMIT_FSIZE, limits["output"])
    limit(resource.RLIMIT_CPU, limits["cpu"], limits["cpu"] + 1)  # a signal, and a second later death
    for kind, most in (("NOFILE", 64), ("SIGPENDING", 64), ("CORE", 0), ("MSGQUEUE", 0)):
        limit(getattr(resource, f"RLIMIT_{kind}"), most)
    sys.argv = ["program.py"]
    sys.setrecursionlimit(DEPTH)
    drop_capabilities()
    seal(bytes.fromhex(setup["filter"]))


def limit(kind: int, soft: int, hard: int | None = None) -> None:
    """Set a limit and the most that it may be raised to (itself), or leave what lower was inherited."""
    inherited = resource.getrlimit(kind)[1]
    pair = (soft, soft if hard is None else hard)
    if inherited != resource.RLIM_INFINITY:
        pair = tuple(inherited if value == resource.RLIM_INFINITY else min(value, inherited) for value in pair)
    resource.setrlimit(kind, pair)


def drop_capabilities() -> None:
    """Leave root, which has them in `limits` mode, no privilege but to open files: no mount, host name or restart."""
    header, held = struct.pack("Ii", CAPABILITIES, 0), ctypes.create_string_buffer(24)
    libc.capget(header, held)
    kept = struct.pack("6I", *(word & OPEN_FILES for word in struct.unpack("6I", held.raw)[:3]), 0, 0, 0)
    if libc.capset(header, kept):
        raise OSError(ctypes.get_errno(), "capset failed")


def seal(steps: bytes) -> None:
    """Let the kernel refuse this process and its threads, for good, what the filter refuses."""

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    prctl(SET_NO_NEW_PRIVILEGES, 1)
    prctl(SET_SECCOMP, FILTER, ctypes.byref(Program(len(steps) // 8, steps)))


def prctl(option: int, value: int, pointer: object = None) -> None:
    """The system call of this name; raises OSError where the kernel refuses."""
    nothing = ctypes.c_ulong(0)
    if libc.prctl(option, ctypes.c_ulong(value), pointer or nothing, nothing, nothing):
        raise OSError(ctypes.get_errno(), f"prctl {option} failed")


def watch(process: int, files: list[int], setup: dict, wall: float) -> tuple[str, str, float]:
    """Wait for a test's process, and end it when its time is up: status, detail, seconds of CPU time."""
    end, why = time.monotonic() + wall, None
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, TICK)
        done, code, usage = os.wait4(process, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            why = ("timed out", f"more than {wall:.3g} seconds")
        elif setup["inodes"] and inodes() > setup["inodes"]:
            why = ("killed", "too many files")
        if why:
            os.kill(process, signal.SIGKILL)
            _, _, usage = os.wait4(process, 0)
            break
    seconds = usage.ru_utime + usage.ru_stime
    return (*(why or judge(code, seconds, files, setup["limits"])), seconds)


def judge(code: int, seconds: float, files: list[int], limits: dict) -> tuple[str, str]:
    """How a process ended: status and detail, from its wait status, its CPU time, and what it wrote."""
    last = last_line(files[2])
    if os.WIFSIGNALED(code):
        number = os.WTERMSIG(code)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and seconds > limits["cpu"] / 2):  # two clocks differ
            return "timed out", f"more than {limits['cpu']} seconds of CPU time"
        return "killed", f"signal {number}"
    if any(os.fstat(file).st_size >= limits["output"] for file in files[1:]):
        return "output", f"more than {limits['output']} bytes"
    if os.WEXITSTATUS(code):
        return ("memory" if last.startswith("MemoryError") else "failed"), last or f"exit {os.WEXITSTATUS(code)}"
    return "done", ""


def last_line(file: int) -> str:
    """The last line of a file, of its last 4,096 bytes at most."""
    start = max(0, os.fstat(file).st_size - 4096)
    lines = os.pread(file, 4096, start).decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def inodes() -> int:
    """How many files there are in the sandbox's file system for them."""
    counts = os.statvfs(".")
    return counts.f_files - counts.f_ffree


class Untouched:
    """Whether a test left the sandbox as it found it, so that another test of the program can tell nothing of it.

    What a process does to its folder stays in the folder's times, of which it cannot set that of the last change; and
    a thread that it made took a process number. What else of a process can be seen once it is gone it was refused.
    """

    def __init__(self, own_numbers: bool) -> None:
        """own_numbers: whether only this sandbox gives out process numbers here."""
        self.own_numbers = own_numbers
        os.listdir(".")  # it sets the time of the last reading, which readings after it leave
        self.folder = self.times()

    def __call__(self, process: int) -> bool:
        """Whether the test of this process was the last to take a process number, and its folder is as it was."""
        try:
            return self.times() == self.folder and not (self.own_numbers and next_number() != process + 1)
        except OSError:
            return False

    @staticmethod
    def times() -> tuple[int, ...]:
        """When the working folder was read, changed, and changed in any way."""
        status = os.stat(".")
        return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns


def next_number() -> int:
    """The next process number, which it uses up."""
    process = os.fork()
    if process == 0:
        os._exit(0)
    os.waitpid(process, 0)
    return process


def fill(file: int, content: bytes) -> None:
    """Write a file's whole content and go back to its start."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
    os.lseek(file, 0, os.SEEK_SET)


def reply(channel, content: bytes, **fields) -> None:
    """Send one message."""
    channel.write(json.dumps({**fields, "size": len(content)}).encode() + b"\n" + content)
    channel.flush()


def prelude() -> dict:
    """Names that a solution finds imported, after LiveCodeBench's harness; none of them hides a builtin."""
    builtins.exit = builtins.quit = sys.exit  # what `site` does, which was not imported
    names = {}
    for module in STARRED:
        public = getattr(module, "__all__", None) or [name for name in dir(module) if not name.startswith("_")]
        names.update({name: getattr(module, name) for name in public})
    names.update({module.__name__: module for module in (*STARRED, sys, json)})
    return {name: value for name, value in names.items() if not hasattr(builtins, name)}


if __name__ == "__main__":
    main()

"""The system calls a sandboxed program is refused, as the filter (classic BPF) that the Linux kernel takes.

Refusing new processes makes the rest simple: one process holds all the memory a program has, so a limit on its
address space is a limit on the total, and when that process ends nothing is left. Refused too is every other way to
hold memory that such a limit does not count, what reaches for other processes, networks and namespaces, and what would
leave a trace behind or slow others: a process' rank among others, a file's mode and times, writing all disks.
"""

from __future__ import annotations

import errno
import platform
import struct

from steer_core.common.errors import SteerError

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""By machine: the column of the tables below, and the kernel's name for it (AUDIT_ARCH)."""

REFUSED = {
    # processes; setsid and setpgid would leave the group that is killed at the end
    "fork": (57, None),
    "vfork": (58, None),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "unshare": (272, 97),
    "setns": (308, 268),
    # memory outside the address space
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "vmsplice": (278, 75),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # other processes
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "prctl": (157, 167),
    "kcmp": (312, 272),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # their rank, which the tests of a program would inherit from the supervisor
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    # what a file says of itself; the devices of a sandbox are the machine's own
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    # every write of the machine, which others then wait for
    "sync": (162, 81),
    "syncfs": (306, 267),
    # the network, and the kernel's log
    "socket": (41, 198),
    "connect": (42, 203),
    "syslog": (103, 116),
}
CLONE = (56, 220)
UNREADABLE = {"clone3": (435, 435), "openat2": (437, 437)}
"""Calls whose flags lie where no filter can read them: with ENOSYS the C library turns to others."""
CLONE_THREAD = 0x10000
TEMPORARY_FILE = 0o20000000
"""O_TMPFILE: a file in no folder, of which the folder's times tell nothing; Python makes one with a name instead."""
NUMBERED_CLOCK = 1 << 31
"""Set in a clock's name that is made of a process' number: the supervisor's tells what the tests before used."""
CLOCKS = ((228, 113), (229, 114), (230, 115), (222, 107))
"""clock_gettime, clock_getres, clock_nanosleep, timer_create: each tells how far a clock is."""
OWNERS = (8, 10, 15, 1024, 1026)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY: the kernel signals a file's owner, whoever that is."""
DEVICE_OWNERS = (0x8901, 0x8902)
"""FIOSETOWN, SIOCSPGRP: the same by ioctl."""
X32 = 0x40000000
"""Bit that marks calls by a second set of numbers on x86_64."""

Step = tuple[int, int, int, int]
"""An instruction: code, steps to skip where its test holds and where it does not, value."""
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16
"""Where the kernel puts them for a filter to read: byte offsets in struct seccomp_data."""
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
REFUSE = ERROR | errno.EPERM


def syscall_filter(machine: str | None = None) -> bytes:
    """The filter for a machine (this one), 8 bytes an instruction: threads may be made, processes not.

    A refused call fails with EPERM. Raises SteerError for a machine whose numbers are not in the tables.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise SteerError(f"sandbox: no list of system calls for {machine!r}; run code on {' or '.join(MACHINES)}")
    column, audit = MACHINES[machine]
    steps = [
        (LOAD, 0, 0, MACHINE),
        (EQUAL, 1, 0, audit),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
        *_if(AT_LEAST, X32, REFUSE),
    ]
    for numbers in UNREADABLE.values():
        steps += _if(EQUAL, numbers[column], ERROR | errno.ENOSYS)
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            steps += _if(EQUAL, numbers[column], REFUSE)
    for numbers, argument, checks in _partly_refused():
        if numbers[column] is not None:
            steps += [(EQUAL, 0, len(checks) + 2, numbers[column]), (LOAD, 0, 0, ARGUMENTS + 8 * argument), *checks]
            steps += [(RETURN, 0, 0, ALLOW)]
    steps += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _partly_refused() -> list[tuple[tuple[int | None, int], int, list[Step]]]:
    """Calls that an argument decides on: their numbers, which argument (from 0), and the checks of its lower half."""
    return [
        (CLONE, 0, _unless(ANY_BIT, CLONE_THREAD, REFUSE)),
        ((302, 261), 0, _unless(EQUAL, 0, REFUSE)),  # prlimit64, of another process than itself
        *((numbers, 0, _if(ANY_BIT, NUMBERED_CLOCK, REFUSE)) for numbers in CLOCKS),
        ((2, None), 1, _if(ANY_BIT, TEMPORARY_FILE, REFUSE)),  # open
        ((257, 56), 2, _if(ANY_BIT, TEMPORARY_FILE, REFUSE)),  # openat
        ((72, 25), 1, [step for value in OWNERS for step in _if(EQUAL, value, REFUSE)]),  # fcntl
        ((16, 29), 1, [step for value in DEVICE_OWNERS for step in _if(EQUAL, value, REFUSE)]),  # ioctl
    ]


def _if(test: int, value: int, answer: int) -> list[Step]:
    """Answer at once where the test of the loaded word holds, else go on."""
    return [(test, 0, 1, value), (RETURN, 0, 0, answer)]


def _unless(test: int, value: int, answer: int) -> list[Step]:
    """Answer at once where the test of the loaded word does not hold, else go on."""
    return [(test, 1, 0, value), (RETURN, 0, 0, answer)]

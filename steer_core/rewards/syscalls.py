"""The system calls a sandboxed program is refused, as the filter (classic BPF) that the Linux kernel takes.

Refusing new processes makes the rest simple: one process holds all the memory a program has, so a limit on its
address space is a limit on the total, and when that process ends nothing is left. Refused too is every other way to
hold memory that such a limit does not count, and what reaches for other processes, networks and namespaces.
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
    # the network, and the kernel's log
    "socket": (41, 198),
    "connect": (42, 203),
    "syslog": (103, 116),
}
CLONE, CLONE3 = (56, 220), (435, 435)
CLONE_THREAD = 0x10000
X32 = 0x40000000
"""Bit that marks calls by a second set of numbers on x86_64."""

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, MACHINE, FIRST_ARGUMENT = 0, 4, 16
"""Where the kernel puts them for a filter to read: byte offsets in struct seccomp_data."""
ALLOW, KILL, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
REFUSE = ERROR | errno.EPERM


def syscall_filter(machine: str | None = None) -> bytes:
    """The filter for a machine (this one), 8 bytes an instruction: threads may be made, processes not.

    A refused call fails with EPERM. clone3 passes its flags where no filter can read them and fails with ENOSYS,
    at which the C library turns to clone. Raises SteerError for a machine whose numbers are not in the tables.
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
        *_if(EQUAL, CLONE3[column], ERROR | errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            steps += _if(EQUAL, numbers[column], REFUSE)
    steps += [
        (EQUAL, 0, 3, CLONE[column]),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 1, 0, CLONE_THREAD),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _if(test: int, value: int, answer: int) -> list[tuple[int, int, int, int]]:
    """Answer at once where the test of the loaded word holds, else go on."""
    return [(test, 0, 1, value), (RETURN, 0, 0, answer)]

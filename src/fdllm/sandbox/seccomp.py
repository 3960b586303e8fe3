"""The kernel filter of a confined program: which system calls it may make. Pure; no privileges.

The filter is an allow-list. What an interpreter, its threads and its event loops need is allowed,
some of it only with harmless arguments; what reaches out of the process (sockets, new processes,
signals to others, other namespaces) ends the program; everything else fails with EPERM, also calls
that kernels yet to come may have. A process under the filter cannot take it off, and its threads
have it too.

See ``seccomp(2)``; the numbers are the kernel's, which never change.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

KILL = 0x80000000
ALLOW = 0x7FFF0000
EPERM = 0x00050000 | 1
ENOSYS = 0x00050000 | 38

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000  # the x32 face of x86-64 has numbers of its own, from here on
# What glibc and musl ask for a thread of this process: all is shared, and no namespace is new.
_THREAD = (0x003D0F00, 0x007D0F00)
_LOCAL, _STREAM, _KIND = 1, 1, 0xF  # AF_UNIX, SOCK_STREAM, and the bits that tell kinds of sockets
_ACCESS_MODE, _CREATE, _TRUNCATE, _TEMPORARY = 0o3, 0o100, 0o1000, 0o20000000

# By name: (x86-64, arm64); -1 where the machine has none.
_HARMLESS = {
    "read": (0, 63),
    "write": (1, 64),
    "stat": (4, -1),
    "close": (3, 57),
    "fstat": (5, 80),
    "lstat": (6, -1),
    "poll": (7, -1),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, -1),
    "pipe": (22, -1),
    "select": (23, -1),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, -1),
    "dup3": (292, 24),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "alarm": (37, -1),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "uname": (63, 160),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "getdents": (78, -1),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "readlink": (89, -1),
    "readlinkat": (267, 78),
    "umask": (95, 166),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "fstatfs": (138, 44),
    "sigaltstack": (131, 132),
    "arch_prctl": (158, -1),
    "time": (201, -1),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "fadvise64": (221, 223),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "newfstatat": (262, 79),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    # Event loops: they wait for files that are open already, and count.
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, -1),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "pipe2": (293, 59),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "statx": (332, 291),
    "rseq": (334, 293),
}
_REMOVING = {"unlink": (87, -1), "unlinkat": (263, 35)}
_FATAL = {
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "sendmsg": (46, 211),
    "bind": (49, 200),
    "listen": (50, 201),
    "io_uring_setup": (425, 425),
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
}
# Harmless with some arguments only.
_OPEN, _OPENAT = (2, -1), (257, 56)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_FCNTL, _IOCTL, _PRLIMIT = (72, 25), (16, 29), (302, 261)
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # duplicate, descriptor and status flags: no owner, signal
# is it a terminal, bytes to read, do not wait, close on exec
_IOCTL_COMMANDS = (0x5401, 0x541B, 0x5421, 0x5450, 0x5451)
_SOCKETPAIR, _SENDTO, _RECVFROM = (53, 199), (44, 206), (45, 207)

Op = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@dataclass(frozen=True)
class Arch:
    """A processor's face to the filter."""

    column: int  # of the tables above
    audit: int  # the kernel's number of the architecture, which every call carries


ARCHS = {"x86_64": Arch(0, 0xC000003E), "aarch64": Arch(1, 0xC00000B7)}
"""By the name that :func:`platform.machine` gives."""


def assemble(arch: Arch, *, writes: bool) -> bytes:
    """The filter, as the array of ``struct sock_filter`` that the kernel reads.

    Args:
        arch: the processor.
        writes: whether files may be opened for writing and removed at all; where they may be is
            not for this filter to say (it sees no paths).
    """
    column = arch.column
    program: list[Op] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, arch.audit),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, KILL),
    ]

    def on(numbers: Iterable[tuple[int, int]], body: list[Op]) -> None:
        for pair in numbers:
            if pair[column] >= 0:
                program.extend([(_EQUAL, 0, len(body), pair[column]), *body])

    on(_HARMLESS.values(), [(_RETURN, 0, 0, ALLOW)])
    on(_FATAL.values(), [(_RETURN, 0, 0, KILL)])
    if writes:
        on(_REMOVING.values(), [(_RETURN, 0, 0, ALLOW)])
    on([_OPEN], _opening(1, writes=writes))
    on([_OPENAT], _opening(2, writes=writes))
    # A thread of this process may be; clone3 hides its flags, and its absence is usual.
    on([_CLONE], _one_of(0, _THREAD, KILL))
    on([_CLONE3], [(_RETURN, 0, 0, ENOSYS)])
    on([_FCNTL], _one_of(1, _FCNTL_COMMANDS))
    on([_IOCTL], _one_of(1, _IOCTL_COMMANDS))
    # An event loop wakes itself through a pair of sockets. Only a local pair of streams: it is made
    # connected, and can be neither connected to nor sent to an address; datagrams could be.
    on([_SOCKETPAIR], _local_pair())
    # Bytes alone, by its own end: neither an address (not behind sendmsg's pointers either, which
    # stays fatal) nor flags, whose rarer ones have let programs into the kernel.
    on([_SENDTO], [*_if_set(4, KILL), *_if_set(3, KILL), (_RETURN, 0, 0, ALLOW)])
    on([_RECVFROM], [*_if_set(3, EPERM), (_RETURN, 0, 0, ALLOW)])
    # Limits may be read (no pointer to new ones: both halves are zero), never set.
    on([_PRLIMIT], [*_if_set(2, EPERM), (_RETURN, 0, 0, ALLOW)])
    program.append((_RETURN, 0, 0, EPERM))
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def _argument(index: int) -> int:
    """Where the low half of an argument stands (both machines are little-endian)."""
    return _ARGUMENTS + 8 * index


def _if_any(index: int, bits: int, action: int) -> list[Op]:
    """Return ``action`` where the argument has one of the bits, else go on."""
    return [(_LOAD, 0, 0, _argument(index)), (_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, action)]


def _if_set(index: int, action: int) -> list[Op]:
    """Return ``action`` where the argument, both halves of it, is not zero, else go on."""
    low = _argument(index)
    # The low half jumps to the return where it has a bit, past the test of the high one.
    return [
        (_LOAD, 0, 0, low),
        (_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, low + 4),
        (_EQUAL, 1, 0, 0),
        (_RETURN, 0, 0, action),
    ]


def _local_pair() -> list[Op]:
    """Allow a pair of local streams, end the program for any other."""
    return [
        (_LOAD, 0, 0, _argument(0)),
        (_EQUAL, 0, 4, _LOCAL),
        (_LOAD, 0, 0, _argument(1)),
        (_AND, 0, 0, _KIND),
        (_EQUAL, 0, 1, _STREAM),
        (_RETURN, 0, 0, ALLOW),
        (_RETURN, 0, 0, KILL),
    ]


def _one_of(index: int, values: Iterable[int], otherwise: int = EPERM) -> list[Op]:
    """Allow where the argument is one of the values."""
    body: list[Op] = [(_LOAD, 0, 0, _argument(index))]
    for value in values:
        body += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, ALLOW)]
    return [*body, (_RETURN, 0, 0, otherwise)]


def _opening(index: int, *, writes: bool) -> list[Op]:
    """Opening a file, by its flags."""
    if not writes:
        changing = _ACCESS_MODE | _CREATE | _TRUNCATE | _TEMPORARY
        return [*_if_any(index, changing, EPERM), (_RETURN, 0, 0, ALLOW)]
    # Opening to read and cutting to nothing needs no right to write on older kernels.
    return [
        (_LOAD, 0, 0, _argument(index)),
        (_AND, 0, 0, _ACCESS_MODE | _TRUNCATE),
        (_EQUAL, 0, 1, _TRUNCATE),
        (_RETURN, 0, 0, EPERM),
        (_RETURN, 0, 0, ALLOW),
    ]

"""The kernel's filter, decided by its own machine, for both processors."""

from __future__ import annotations

import os
import struct

import pytest

from fdllm.sandbox import seccomp


def decide(code: bytes, machine: str, number: int, *arguments: int, audit: int = 0) -> int:
    """What the kernel's filter machine returns for one call."""
    given = list(arguments) + [0] * (6 - len(arguments))
    kind = audit or seccomp.ARCHS[machine].audit
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, kind, 0, *given)
    register, at = 0, 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if operation == 0x20:
            (register,) = struct.unpack_from("<I", data, operand)
        elif operation == 0x54:
            register &= operand
        elif operation == 0x06:
            return int(operand)
        else:
            test = {
                0x15: register == operand,
                0x35: register >= operand,
                0x45: bool(register & operand),
            }
            at += if_true if test[operation] else if_false


CALLS = {  # by machine: read, socket, clone, openat, prlimit64, fcntl
    "x86_64": (0, 41, 56, 257, 302, 72),
    "aarch64": (63, 198, 220, 56, 261, 25),
}


@pytest.mark.parametrize("machine", CALLS)
@pytest.mark.parametrize("writes", [True, False])
def test_the_filter_decides_alike_on_both_machines(machine: str, *, writes: bool) -> None:
    code = seccomp.assemble(seccomp.ARCHS[machine], writes=writes)
    assert len(code) // 8 < 4096  # the kernel takes no more
    read, socket, clone, openat, prlimit, fcntl = CALLS[machine]
    assert decide(code, machine, read) == seccomp.ALLOW
    assert decide(code, machine, socket) == seccomp.KILL
    assert decide(code, machine, read, audit=0x40000003) == seccomp.KILL  # 32-bit calls
    assert decide(code, machine, clone, 17) == seccomp.KILL
    for flags in (0x3D0F00, 0x7D0F00):  # a thread, as glibc and musl ask for it
        assert decide(code, machine, clone, flags) == seccomp.ALLOW
        for bit in set(range(32)) - {22}:  # more or less than that
            assert decide(code, machine, clone, flags ^ 1 << bit) == seccomp.KILL
    assert decide(code, machine, 435) == seccomp.ENOSYS
    assert decide(code, machine, 9999) == seccomp.EPERM
    allowed = seccomp.ALLOW if writes else seccomp.EPERM
    assert decide(code, machine, openat, 0, 0, os.O_RDONLY) == seccomp.ALLOW
    assert decide(code, machine, openat, 0, 0, 0o1 | 0o100 | 0o1000) == allowed
    assert decide(code, machine, openat, 0, 0, 0o1000) == seccomp.EPERM
    assert decide(code, machine, prlimit, 0, 0, 0, 4096) == seccomp.ALLOW
    assert decide(code, machine, prlimit, 0, 0, 4096, 0) == seccomp.EPERM
    assert decide(code, machine, prlimit, 0, 0, 1 << 32, 0) == seccomp.EPERM
    assert decide(code, machine, fcntl, 3, 1030) == seccomp.ALLOW
    assert decide(code, machine, fcntl, 3, 8) == seccomp.EPERM
    assert decide(code, "x86_64", 0x40000000 | 1, audit=seccomp.ARCHS[machine].audit) == (
        seccomp.KILL
    )


# The whole of both lists, by number: what is not here is refused. The argument-less call is asked.
ALLOWED = {
    "x86_64": {
        *range(16), *range(17, 26), 28, 32, 33, *range(35, 40), 60, 63, 72, 74, 77, 78, 79, 89,
        *range(95, 101), 102, 104, 107, 108, 110, 131, 138, 158, 186, 201, 202, 204, 217, 219, 221,
        *range(228, 234), 257, 262, 267, 269, 270, 271, 273, *range(290, 294), 302, 318, 324, 332,
        334, 439, 44, 45, 281,
    },
    "aarch64": {
        17, *range(19, 26), 44, 46, 48, 56, 57, 59, *range(61, 69), 72, 73, 78, 79, 80, 82, 93, 94,
        98, 99, *range(101, 104), 113, 114, 115, 123, 124, 128, 132, 134, 135, 139, 153, 160, 163,
        165, 166, 169, *range(172, 180), 206, 207, 214, 215, 216, 222, 223, 226, 233, 261, 278, 283,
        291, 293, 439,
    },
}  # fmt: skip
FATAL = {
    "x86_64": {
        41, 42, 43, 46, 49, 50, 53, *range(56, 60), 62, 101, 129, 165, 200, 234, 272, 297, 308,
        310, 311, 321, 322, 424, 425, 434,
    },
    "aarch64": {
        40, 97, 117, 129, 130, 131, 138, *range(198, 204), 211, 220, 221, 240, 268, 270, 271,
        280, 281, 424, 425, 434,
    },
}  # fmt: skip
REMOVING = {"x86_64": {87, 263}, "aarch64": {35}}
# What would undo the confinement or change what others see, by name: (x86-64, arm64).
REFUSED = {
    "prctl": (157, 167),
    "seccomp": (317, 277),
    "setrlimit": (160, 164),
    "chmod": (90, 52),  # arm64 has fchmod
    "rename": (82, 38),  # arm64 has renameat
    "mkdir": (83, 34),
    "truncate": (76, 45),
    "chdir": (80, 49),
    "chroot": (161, 51),
    "setuid": (105, 146),
    "capset": (126, 91),
    "memfd_create": (319, 279),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "pidfd_getfd": (438, 438),
    "openat2": (437, 437),
}


@pytest.mark.parametrize("machine", ALLOWED)
@pytest.mark.parametrize("writes", [True, False])
def test_every_call_is_allowed_fatal_or_refused_as_listed(machine: str, *, writes: bool) -> None:
    code = seccomp.assemble(seccomp.ARCHS[machine], writes=writes)
    said = {number: decide(code, machine, number) for number in range(1000)}
    allowed = {number for number, action in said.items() if action == seccomp.ALLOW}
    assert allowed == ALLOWED[machine] | (REMOVING[machine] if writes else set())
    assert {number for number, action in said.items() if action == seccomp.KILL} == FATAL[machine]
    others = set(said) - allowed - FATAL[machine]
    assert {said[number] for number in others - {435}} == {seccomp.EPERM}
    column = list(ALLOWED).index(machine)
    assert {numbers[column] for numbers in REFUSED.values()} <= others


@pytest.mark.parametrize("machine", ALLOWED)
def test_commands_of_files_and_devices_are_allowed_as_listed(machine: str) -> None:
    """The second argument of fcntl and ioctl; nobody may own a file's signals or its terminal."""
    code = seccomp.assemble(seccomp.ARCHS[machine], writes=True)
    fcntl, ioctl = {"x86_64": (72, 16), "aarch64": (25, 29)}[machine]
    asked = {*range(64), *range(1024, 1040), *range(0x5400, 0x5460)}
    for call, commands in (
        (fcntl, {0, 1, 2, 3, 4, 1030}),
        (ioctl, {0x5401, 0x541B, 0x5421, 0x5450, 0x5451}),
    ):
        said = {command: decide(code, machine, call, 9, command) for command in asked}
        assert {c for c, action in said.items() if action == seccomp.ALLOW} == commands
        assert {action for c, action in said.items() if c not in commands} == {seccomp.EPERM}


@pytest.mark.parametrize("machine", ALLOWED)
def test_sockets_are_a_local_pair_of_streams_that_reach_nobody_else(machine: str) -> None:
    code = seccomp.assemble(seccomp.ARCHS[machine], writes=True)
    pair, send, receive = {"x86_64": (53, 44, 45), "aarch64": (199, 206, 207)}[machine]
    made = {
        (family, kind)
        for family in range(64)
        for kind in range(16)
        for flags in (0, 0o4000, 0o2000000)
        if decide(code, machine, pair, family, kind | flags) == seccomp.ALLOW
    }
    assert made == {(1, 1)}  # AF_UNIX, SOCK_STREAM
    assert decide(code, machine, pair, 2, 1) == seccomp.KILL
    assert decide(code, machine, send, 3, 4096, 1) == seccomp.ALLOW
    assert decide(code, machine, receive, 3, 4096, 1) == seccomp.ALLOW
    for word in (1, 0x4000, 1 << 32, 1 << 63):  # flags, and an address
        assert decide(code, machine, send, 3, 4096, 1, word) == seccomp.KILL
        assert decide(code, machine, send, 3, 4096, 1, 0, word) == seccomp.KILL
        assert decide(code, machine, receive, 3, 4096, 1, word) == seccomp.EPERM


@pytest.mark.parametrize(
    ("machine", "call", "at"), [("x86_64", 2, 1), ("x86_64", 257, 2), ("aarch64", 56, 2)]
)
@pytest.mark.parametrize("writes", [True, False])
def test_files_are_opened_as_their_flags_say(
    machine: str, call: int, at: int, *, writes: bool
) -> None:
    """Each flag that changes a file, by itself and with others."""
    code = seccomp.assemble(seccomp.ARCHS[machine], writes=writes)

    def opened(flags: int) -> int:
        return decide(code, machine, call, *([0] * at), flags)

    for harmless in (0, os.O_CLOEXEC, os.O_DIRECTORY, os.O_NOFOLLOW | os.O_NONBLOCK):
        assert opened(harmless) == seccomp.ALLOW
        for changing in (0o1, 0o2, 0o100, 0o1 | 0o1000, 0o20000000 | 0o2):
            expected = seccomp.ALLOW if writes else seccomp.EPERM
            assert opened(harmless | changing) == expected, oct(harmless | changing)
        assert opened(harmless | 0o1000) == seccomp.EPERM  # cutting what is opened to be read

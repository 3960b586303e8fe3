"""The kernel's filter, decided by its own machine, for both processors."""

from __future__ import annotations

import os
import struct

import pytest

from fdllm.evaluate import seccomp


def decide(code: bytes, machine: str, number: int, *arguments: int, audit: int = 0) -> int:
    """What the kernel's filter machine returns for one call."""
    given = list(arguments) + [0] * (6 - len(arguments))
    kind = audit or seccomp.MACHINES[machine].audit
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
    code = seccomp.assemble(seccomp.MACHINES[machine], writes=writes)
    assert len(code) // 8 < 4096  # the kernel takes no more
    read, socket, clone, openat, prlimit, fcntl = CALLS[machine]
    assert decide(code, machine, read) == seccomp.ALLOW
    assert decide(code, machine, socket) == seccomp.KILL
    assert decide(code, machine, read, audit=0x40000003) == seccomp.KILL  # 32-bit calls
    assert decide(code, machine, clone, 17) == seccomp.KILL
    assert decide(code, machine, clone, 0x10000) == seccomp.EPERM
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
    assert decide(code, "x86_64", 0x40000000 | 1, audit=seccomp.MACHINES[machine].audit) == (
        seccomp.KILL
    )

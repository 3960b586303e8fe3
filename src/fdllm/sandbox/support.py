"""What a kernel offers to confine a program, and what a program may use. No torch, no harness.

Consent to run what a model wrote (:data:`fdllm.runs.CodeExecution`) is ``refused`` until it
is given; ``confined`` where programs can neither reach out nor read this account's files;
``readable`` also where the kernel cannot keep them from reading. It travels with a run's request,
and because no answer depends on it, it is no part of a run's identity.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass

from fdllm.runs import CodeExecution
from fdllm.sandbox import seccomp

_LANDLOCK_VERSION = 444  # landlock_create_ruleset, asked for its version


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    # processor time, the interpreter's start included; the limit that decides, because it is nearly
    # the same on a busy machine
    cpu_s: int = 5
    wall_s: float = 60.0  # wall-clock time, for a program that sleeps
    memory_mb: int = 1024  # address space
    file_mb: int = 4  # size of one file
    open_files: int = 32  # files open at once
    scratch_mb: int = 32  # all files of the scratch folder
    scratch_files: int = 256  # their number
    threads: int = 128  # at a time; a program cannot start processes
    # wall-clock time until the program begins; beyond it is no verdict but an error
    start_s: float = 120.0

    def resources(self) -> dict[str, int]:
        """The kernel's limits, by their names in :mod:`resource`."""
        return {
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_AS": self.memory_mb << 20,
            "RLIMIT_FSIZE": self.file_mb << 20,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Isolation:
    """What this kernel offers to confine a process."""

    system: str  # ``Linux``
    machine: str  # the processor's name, as :func:`platform.machine` has it
    landlock: int  # version of Landlock; 0 where there is none

    @classmethod
    def here(cls) -> Isolation:
        """What this machine offers."""
        system = platform.system()
        version = 0
        if system == "Linux":
            found = ctypes.CDLL(None).syscall(_LANDLOCK_VERSION, None, ctypes.c_size_t(0), 1)
            version = max(0, found)
        return cls(system, platform.machine(), version)

    def missing(self, consent: CodeExecution) -> str | None:
        """Why no program may be run here under this consent; None where it may."""
        if self.system != "Linux" or self.machine not in seccomp.ARCHS:
            return (
                f"programs can only be confined on Linux, on {' or '.join(seccomp.ARCHS)}; this "
                f"is {self.system} on {self.machine}; score the task on such a machine"
            )
        if not self.landlock and consent != "readable":
            return (
                "this kernel has no Landlock (Linux 5.13 or later, 'landlock' in "
                "/sys/kernel/security/lsm), so a program could read every file and environment of "
                "this account; score the task on a node that has it, or accept that with "
                "--allow-readable-files (programs still have no network and can write nothing)"
            )
        return None

    def __str__(self) -> str:
        return "seccomp and landlock" if self.landlock else "seccomp, files readable"

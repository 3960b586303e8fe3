"""Untrusted programs, each run in a process that can do no harm. No torch, no harness.

A program that a model wrote may loop, fill memory or disk, start processes, write over files, send
what it reads somewhere, or signal its parent. Each one runs in an interpreter of its own (script
:mod:`fdllm.sandbox.child`), which gives all of that up before it reads the program:

- a seccomp filter: no sockets but a connected pair of its own, no new processes, no signals; an
  allow-list otherwise;
- Landlock: reads the interpreter and the system's libraries, writes a scratch folder, which is gone
  afterwards; nothing else, so neither ``/proc`` of its parent nor a token's file;
- limits on processor time, wall time, memory, threads, open files, file sizes, the scratch
  folder's, and on what it says to its parent;
- an environment without anything of ours, so without a token; its output goes nowhere.

None of it needs privileges or user namespaces, so it works the same in a container. Before the
first program is scored the confinement is tried out, by programs that must be stopped. Where the
kernel lacks a part nothing is run, and the error says which part; only Landlock may be done
without, where that is asked for by name: then programs may write nowhere at all, and still read.

What it cannot do: a program shares an interpreter with the tests that judge it. It cannot pass by
leaving early or by printing, but one that is written against this very module could.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from fdllm.errors import FdllmError
from fdllm.runs import CodeExecution
from fdllm.sandbox import child, seccomp
from fdllm.sandbox.support import Isolation, Limits

_LOOK_S = 0.05
_GRACE_S = 5.0  # from its last word that counts to being gone
_MAX_SAID = 4096  # bytes; what is due are three short lines
_MAX_DETAIL = 80  # characters


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended.

    Attributes:
        passed: it ran to its end, and so did its tests.
        reason: ``passed``, ``failed``, ``exited``, ``out of time``, ``out of scratch space``,
            ``too many threads``, ``flooded`` (its parent's pipe), ``forbidden call`` or ``killed``.
        detail: the error's class or the signal's name; the program's own word, worth no more. At
            most 80 characters, all of them printable ASCII.
    """

    passed: bool
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Sandbox:
    """Runs programs; safe to use from several threads.

    Attributes:
        consent: what the user agreed to.
        limits: what a program may use.
        isolation: what the kernel offers.
        stop: set to end all programs that are running.
    """

    consent: CodeExecution
    limits: Limits = field(default_factory=Limits)
    isolation: Isolation = field(default_factory=Isolation.here)
    stop: Event = field(default_factory=Event)

    def run(self, program: str, tests: str) -> ProgramResult:
        """Run a program, then its tests in the same namespace.

        Raises:
            FdllmError: it cannot be confined, so it was not run.
        """
        if self.consent == "refused":
            raise FdllmError(
                "code that a model wrote is only run with consent; give --allow-code-execution"
            )
        missing = self.isolation.missing(self.consent)
        if missing:
            raise FdllmError(missing)
        with (
            tempfile.TemporaryDirectory(prefix="fdllm-", ignore_cleanup_errors=True) as scratch,
            subprocess.Popen(  # noqa: S603 - our own interpreter and script
                [sys.executable, "-s", "-P", "-B", str(Path(child.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=scratch,
                env=_environment(scratch),
                start_new_session=True,
            ) as process,
        ):
            try:
                return _Watch(self, process, Path(scratch)).verdict(self._job(program, tests))
            finally:
                process.kill()

    def _job(self, program: str, tests: str) -> bytes:
        arch = seccomp.ARCHS[self.isolation.machine]
        job = {
            "parent": os.getpid(),
            "limits": self.limits.resources(),
            "landlock": self.isolation.landlock,
            "filter": seccomp.assemble(arch, writes=bool(self.isolation.landlock)).hex(),
            "program": program,
            "tests": tests,
        }
        return json.dumps(job, allow_nan=False).encode() + b"\n"


class _Watch:
    """One process, from its start to its verdict."""

    def __init__(self, sandbox: Sandbox, process: subprocess.Popen[bytes], scratch: Path) -> None:
        assert process.stdin is not None  # noqa: S101 - both are pipes, see Sandbox.run
        assert process.stdout is not None  # noqa: S101
        self._sandbox, self._limits = sandbox, sandbox.limits
        self._process, self._scratch = process, scratch
        self._source, self._sink = process.stdout.fileno(), process.stdin.fileno()
        self._poll = select.poll()
        self._poll.register(self._source, select.POLLIN)
        self._said = b""  # and not read yet
        self._heard = 0  # bytes, from its start on
        self._ended = ""

    def verdict(self, job: bytes) -> ProgramResult:
        """Send the job, and wait for how it goes."""
        first = self._tell(job) and self._line(self._limits.start_s)
        if first != b"ready":
            said = _cut((first or b"").removeprefix(b"refused "), 4 * _MAX_DETAIL)
            raise FdllmError(
                f"the program was not run, because its process could not be confined: "
                f"{said or self._ended or self._exit()}"
            )
        word, _, detail = (self._line(self._limits.wall_s) or b"").partition(b" ")
        if word == b"failed":
            return ProgramResult(passed=False, reason="failed", detail=_cut(detail))
        nonce = secrets.token_hex(16).encode()
        proof = hashlib.sha256(b"ran " + nonce).hexdigest().encode()
        if (
            word == b"ran"
            and self._tell(nonce + b"\n")
            and self._line(self._limits.wall_s) == proof
        ):
            return ProgramResult(passed=True, reason="passed")
        return self._stopped()

    def _tell(self, text: bytes) -> bool:
        """Write to the process; False where it is gone."""
        try:
            while text:
                text = text[os.write(self._sink, text) :]
        except BrokenPipeError:
            return False
        return True

    def _line(self, timeout_s: float) -> bytes | None:
        """The next line it says; None where it ends first, or is ended."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._said:
            if not self._goes_on(deadline):
                return None
        line, self._said = self._said.split(b"\n", 1)
        return line

    def _goes_on(self, deadline: float) -> bool:
        """Listen for a moment; False where it closed its pipe, or is ended."""
        if self._poll.poll(_LOOK_S * 1000):
            more = os.read(self._source, _MAX_SAID)
            self._said += more
            self._heard += len(more)
            if not more:
                return False
        self._ended = self._overdrawn(deadline)
        if self._ended:
            self._process.kill()
        return not self._ended

    def _overdrawn(self, deadline: float) -> str:
        if self._heard > _MAX_SAID:
            return "flooded"
        if time.monotonic() > deadline:
            return "out of time"
        if self._sandbox.stop.is_set():
            return "interrupted"
        if self._num_threads() > self._limits.threads:
            return "too many threads"
        sizes = []
        with os.scandir(self._scratch) as entries:
            for entry in entries:
                try:
                    sizes.append(entry.stat(follow_symlinks=False).st_size)
                except FileNotFoundError:
                    continue
                if len(sizes) > self._limits.scratch_files:
                    break
        full = sum(sizes) > self._limits.scratch_mb << 20
        return "out of scratch space" if full or len(sizes) > self._limits.scratch_files else ""

    def _num_threads(self) -> int:
        """Threads of the process. A resource limit would count all that this account runs."""
        try:
            return Path(f"/proc/{self._process.pid}/task").stat().st_nlink - 2
        except FileNotFoundError:  # it is gone
            return 0

    def _exit(self) -> str:
        """How the process ended; one that talks or waits where nothing of it counts is ended."""
        deadline = time.monotonic() + _GRACE_S
        while self._goes_on(deadline):
            self._said = b""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return "it goes on without a word"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _stopped(self) -> ProgramResult:
        """It said nothing that counts: why?"""
        how = "" if self._ended else self._exit()
        if self._ended:
            return ProgramResult(passed=False, reason=self._ended)
        otherwise = "killed" if how.startswith("SIG") else "exited"
        reason = {"SIGXCPU": "out of time", "SIGSYS": "forbidden call"}.get(how, otherwise)
        return ProgramResult(passed=False, reason=reason, detail=how)


def _cut(said: bytes, most: int = _MAX_DETAIL) -> str:
    """A process's words, fit for a record: no control characters, not too long."""
    return re.sub(rb"[^ -~]", b"?", said[:most]).decode("ascii")


def _environment(scratch: str) -> dict[str, str]:
    """All that a program finds in its environment."""
    return {
        "HOME": scratch,
        "TMPDIR": scratch,
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "PYTHONHASHSEED": "0",  # a program over a set's order gives the same answer every time
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # else each thread reserves 64 MiB of the addresses it may have
    }

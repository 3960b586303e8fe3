"""Run one untrusted program: the script of a confined process. Standard library only.

:mod:`fdllm.sandbox.confinement` starts it as a file, in an interpreter of its own, with an empty
environment. It gives up what it could do harm with, and only then reads what it shall run. It says
on its pipe ``ready``, then ``ran`` or ``failed <error>``; ``refused <why>`` where it could not be
confined, which is no verdict about the program.

``ran`` alone proves nothing, because a program can write to every open file. The other side answers
it with a nonce, which this process has never seen before, and wants it back hashed.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import hashlib
import json
import os
import random
import resource
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

# linux/prctl.h and linux/seccomp.h
_PDEATHSIG, _NO_NEW_PRIVS, _SECCOMP, _FILTER = 1, 38, 22, 2
# linux/landlock.h; the numbers are the same on every machine
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _BENEATH = 444, 445, 446, 1
_WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_FILE, _TRUNCATE = 1 << 8, 1 << 14
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READABLE = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom")


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scopes", ctypes.c_uint64),
    )


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _limit(limits: dict[str, int]) -> None:
    """Resource limits; never above what this process may have anyway."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        # Past the soft limit of processor time comes a signal that can be caught; not the hard one.
        soft, hard = value, value + (kind == resource.RLIMIT_CPU)
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def _confine_files(libc: ctypes.CDLL, version: int) -> None:
    """Landlock: read the interpreter and the system's libraries, write the scratch folder."""
    rights = _RIGHTS[max(known for known in _RIGHTS if known <= version)]
    network, scopes = (3 if version >= 4 else 0), (3 if version >= 6 else 0)  # noqa: PLR2004
    ruleset = _Ruleset(rights, network, scopes)
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # noqa: PLR2004
    made = libc.syscall(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    handle = _check(made, "landlock_create_ruleset")
    reading = _READ_FILE | _READ_DIR
    beneath = dict.fromkeys((*_READABLE, *sys.path, sys.prefix, sys.base_prefix), reading)
    beneath["/dev/null"] = _READ_FILE | _WRITE_FILE | _TRUNCATE
    beneath["."] = reading | _WRITE_FILE | _REMOVE_FILE | _MAKE_FILE | _TRUNCATE
    for path, allowed in beneath.items():
        if path in ("", "/") or not Path(path).exists():
            continue
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        kept = allowed & rights
        if not Path(path).is_dir():
            kept &= _READ_FILE | _WRITE_FILE | _TRUNCATE
        rule = _Beneath(kept, opened)
        added = libc.syscall(_ADD_RULE, handle, _BENEATH, ctypes.byref(rule), 0)
        _check(added, f"landlock_add_rule {path}")
        os.close(opened)
    _check(libc.syscall(_RESTRICT_SELF, handle, 0), "landlock_restrict_self")
    os.close(handle)


def _confine(job: dict[str, Any]) -> None:
    """Give up everything that the program must not have. Nothing can be taken back.

    Raises:
        OSError: the kernel does not do it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != job["parent"]:
        raise OSError("the process that started this one is gone")
    _limit(job["limits"])
    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    if job["landlock"]:
        _confine_files(libc, job["landlock"])
    code = bytes.fromhex(job["filter"])
    held = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.cast(held, ctypes.c_void_p))
    set_ = libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)
    _check(set_, "prctl(PR_SET_SECCOMP)")


class _Semaphore:
    """What multiprocessing's locks and pools of threads are made of, for threads alone.

    The library's own lies in a folder that all processes share, and there are no processes here.
    """

    SEM_VALUE_MAX = (1 << 31) - 1
    handle, name = 0, None

    def __init__(self, kind: int, value: int, *_: object) -> None:
        import threading  # noqa: PLC0415 - hardly a program asks for it

        inside = threading.Semaphore(value) if kind else threading.RLock()
        self.acquire, self.release = inside.acquire, inside.release
        self.__enter__, self.__exit__ = inside.__enter__, inside.__exit__


def _line(source: int) -> bytes:
    """The next line; the other side sends one at a time, and waits."""
    found = b""
    while not found.endswith(b"\n"):
        more = os.read(source, 65536)
        if not more:
            os._exit(0)
        found += more
    return found.removesuffix(b"\n")


def main() -> NoReturn:
    """Confine this process, run the program, say how it went."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    job = json.loads(_line(source))
    try:
        _confine(job)
    except (OSError, ValueError, KeyError) as error:
        os.write(sink, f"refused {error}\n".encode())
        os._exit(0)
    # Held here: a program may replace what it finds in modules, and then fails by itself.
    read, write, leave, digest = _line, os.write, os._exit, hashlib.sha256
    run, compiled, failure = builtins.exec, builtins.compile, BaseException
    write(sink, b"ready\n")
    random.seed(0)
    locks: Any = SimpleNamespace(SemLock=_Semaphore, sem_unlink=id)
    sys.modules["_multiprocessing"] = locks
    space: dict[str, Any] = {}
    try:
        for text in (job["program"], job["tests"]):
            run(compiled(text, "<program>", "exec", dont_inherit=True), space)
    except failure as error:
        name = type(error).__name__
        with contextlib.suppress(failure):
            write(sink, f"failed {f'{name[:80]!a}'[1:-1]}\n".encode())
        leave(0)
    write(sink, b"ran\n")
    write(sink, digest(b"ran " + read(source)).hexdigest().encode() + b"\n")
    leave(0)


if __name__ == "__main__":
    main()

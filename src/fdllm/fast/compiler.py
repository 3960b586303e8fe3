"""Compiles a C file for the machine it runs on, once, and loads it. No torch."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fdllm.caches import own_cache
from fdllm.errors import FdllmError, first_line
from fdllm.record.atomic import write_bytes

_COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: it would turn off small numbers in the whole process. Loops say themselves what
# may be reordered.
_FLAGS = [
    "-O3",
    "-march=native",
    "-std=c11",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
]
# With threads, which are torch's own where both use the same library; else with one.
_THREADS = ("-fopenmp", "-fopenmp-simd")
_PATIENCE_S = 120
_KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SDKROOT")  # what a compiler may need


class CompilerError(FdllmError):
    """There is no C compiler here, or it does not compile the kernels."""


def load_library(source: Path, flags: Sequence[str]) -> ctypes.PyDLL:
    """The library of a C file, from the user's cache where an earlier process compiled it.

    Its functions keep the interpreter's lock, as calls take microseconds.

    Args:
        source: the file.
        flags: further arguments of the compiler.

    Raises:
        CompilerError: it cannot be compiled or loaded here.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or list(filter(shutil.which, _COMPILERS))[:1]
    if not compiler:
        raise CompilerError("no C compiler (cc, gcc or clang) is on the PATH, and CC is unset")
    command = [*compiler, *_FLAGS, *flags]
    kept = own_cache() / f"{source.stem}-{_key(source, command)}.so"
    with suppress(OSError):  # not compiled yet, or damaged
        return ctypes.PyDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="fdllm-") as scratch:
        made = Path(scratch) / kept.name
        _compile(source, command, made)
        with suppress(FdllmError):  # a cache that cannot be written costs each process its own
            write_bytes(kept, made.read_bytes())
        try:
            return ctypes.PyDLL(str(made))
        except OSError as error:
            raise CompilerError(f"the compiled kernels cannot be loaded: {error}") from None


def _compile(source: Path, command: Sequence[str], to: Path) -> None:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    said = ""
    for threads in _THREADS:
        told = (*command, threads, str(source), "-o", str(to), "-lm")
        try:
            done = subprocess.run(  # noqa: S603 - the user's compiler, no shell
                told,
                env=environment,
                capture_output=True,
                errors="replace",
                timeout=_PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CompilerError(f"'{command[0]}' does not run ({type(error).__name__})") from None
        if not done.returncode:
            return
        said = first_line(done.stderr, "nothing said")
    raise CompilerError(f"'{command[0]}' does not compile {source.name}: {said}")


def _key(source: Path, command: Sequence[str]) -> str:
    """What a library serves: this source, compiler and processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = platform.processor()
    processor = sorted(set(re.findall(r"^(?:flags|Features).*", text, re.MULTILINE))) or [text]
    told = (source.read_text(encoding="utf-8"), *command, platform.machine(), *processor)
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]

"""Compiles a C file for the machine it runs on, once, and loads it. No torch."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fdllm.caches import own_cache
from fdllm.errors import FdllmError, first_line

_COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: it would turn off small numbers in the whole process. Loops say themselves what
# may be reordered.
_FLAGS = ("-O3", "-march=native", "-std=c11", "-fno-math-errno", "-fno-trapping-math")
_SHARED = ("-shared", "-fPIC")
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
    command = (*_compiler(), *_FLAGS, *_SHARED, *flags)
    folder = own_cache()
    name = f"{source.stem}-{_key(source, command)}.so"
    try:
        return ctypes.PyDLL(str(folder / name))
    except OSError:  # not compiled yet, or damaged
        pass
    with tempfile.TemporaryDirectory(prefix="fdllm-") as scratch:
        made = Path(scratch) / name
        _compile(source, command, made)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as copy:
                copy.write(made.read_bytes())
            Path(copy.name).replace(folder / name)
        except OSError:
            pass  # a cache that cannot be written costs each process its own compilation
        try:
            return ctypes.PyDLL(str(made))
        except OSError as error:
            raise CompilerError(f"the compiled kernels cannot be loaded: {error}") from None


def _compiler() -> list[str]:
    """The C compiler: what ``CC`` says, or the first there is."""
    named = os.environ.get("CC")
    if named:
        return shlex.split(named)
    found = next((path for name in _COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        raise CompilerError("no C compiler (cc, gcc or clang) is on the PATH, and CC is unset")
    return [found]


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
                text=True,
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
        processor = "\n".join({x for x in text.splitlines() if x.startswith(("flags", "Features"))})
    except OSError:
        processor = platform.processor()
    told = (source.read_text(encoding="utf-8"), *command, platform.machine(), processor)
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]

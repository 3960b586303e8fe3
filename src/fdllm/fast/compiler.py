"""Compiles the C kernels for the machine they run on, once, and loads them. No torch.

An image has no compiler and runs on many machines: ``python -m fdllm.fast.compiler FOLDER`` writes
libraries for each level of processors. Where ``FOLDER`` is on the loader's path (``ld.so.conf``,
``LD_LIBRARY_PATH``), glibc's (2.33 or later) chooses the highest that the processor has.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fdllm.caches import own_cache
from fdllm.errors import FdllmError, first_line
from fdllm.record.atomic import write_bytes

_SOURCE = Path(__file__).with_name("kernels.c")
_TYPES = {"float32": (), "bfloat16": ("-DBFLOAT16",)}
_COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: it would turn off small numbers in the whole process. Loops say themselves what
# may be reordered, and a product is rounded ahead of a sum on every processor.
_FLAGS = [
    "-O3",
    "-std=c11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
]
# With threads, which are torch's own where both use the same library; else with one.
_THREADS = ("-fopenmp", "-fopenmp-simd")
# Of the x86-64 psABI; the first stands for what every processor of the machine's kind can do.
_LEVELS = {"x86_64": ("", "x86-64-v2", "x86-64-v3", "x86-64-v4")}
_PATIENCE_S = 120
_KEPT = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "SDKROOT")  # what a compiler may need


class CompilerError(FdllmError):
    """There is no C compiler here, or it does not compile the kernels."""


def load_library(dtype: str) -> ctypes.PyDLL:
    """The kernels for a type of weights: built ahead, or from the user's cache, or compiled now.

    Its functions keep the interpreter's lock, as calls take microseconds.

    Args:
        dtype: the type, as torch names it.

    Raises:
        CompilerError: the type has none, or they cannot be compiled or loaded here.
    """
    if dtype not in _TYPES:
        raise CompilerError(f"there are compiled kernels for float32 and bfloat16, not for {dtype}")
    with suppress(OSError):  # nobody has built them ahead
        return ctypes.PyDLL(_built_ahead(dtype))
    command = [*_compiler(), "-march=native", '-DBUILT_FOR=""', *_TYPES[dtype]]
    kept = own_cache() / f"{_SOURCE.stem}-{_key(*command, *_processor())}.so"
    with suppress(OSError):  # not compiled yet, or damaged
        return ctypes.PyDLL(str(kept))
    with tempfile.TemporaryDirectory(prefix="fdllm-") as scratch:
        made = Path(scratch) / kept.name
        _compile(command, made)
        with suppress(FdllmError):  # a cache that cannot be written costs each process its own
            write_bytes(kept, made.read_bytes())
        try:
            return ctypes.PyDLL(str(made))
        except OSError as error:
            raise CompilerError(f"the compiled kernels cannot be loaded: {error}") from None


def build_ahead(into: Path) -> None:
    """Write the kernels of every type for every level of this kind of machine.

    Args:
        into: a folder; a level's libraries go into ``glibc-hwcaps/<level>`` in it.

    Raises:
        CompilerError: they cannot be compiled here.
    """
    machine = platform.machine()
    for level in _LEVELS.get(machine, ("",)):
        folder = into / "glibc-hwcaps" / level if level else into
        folder.mkdir(parents=True, exist_ok=True)
        flags = (f"-march={level}",) if level else ()
        for dtype, more in _TYPES.items():
            command = [*_compiler(), *flags, f'-DBUILT_FOR="{level or machine}"', *more]
            _compile(command, folder / _built_ahead(dtype))


def _built_ahead(dtype: str) -> str:
    """A library's name, by which it is found for the source it was made of and no other."""
    return f"libfdllm-{_SOURCE.stem}-{dtype}-{_key(*_FLAGS)}.so"


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", "")) or list(filter(shutil.which, _COMPILERS))[:1]
    if not named:
        raise CompilerError("no C compiler (cc, gcc or clang) is on the PATH, and CC is unset")
    return [*named, *_FLAGS]


def _compile(command: Sequence[str], to: Path) -> None:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    said = ""
    for threads in _THREADS:
        told = (*command, threads, str(_SOURCE), "-o", str(to), "-lm")
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
    raise CompilerError(f"'{command[0]}' does not compile {_SOURCE.name}: {said}")


def _key(*told: str) -> str:
    """A digest of the source, and of what else a library depends on."""
    text = "\0".join((_SOURCE.read_text(encoding="utf-8"), *told))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _processor() -> list[str]:
    """What tells processors apart that need libraries of their own."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = platform.processor()
    found = sorted(set(re.findall(r"^(?:flags|Features).*", text, re.MULTILINE))) or [text]
    return [platform.machine(), *found]


if __name__ == "__main__":
    build_ahead(Path(sys.argv[1]))

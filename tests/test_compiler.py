"""Compiling the kernels: once, without the token, and what happens where it cannot be done."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import fdllm
from fdllm.errors import UsageError
from fdllm.fast.accelerators import accelerator_on
from fdllm.fast.compiler import CompilerError
from fdllm.fast.kernels import Kernels, load_kernels
from models import DECODING, random_model, random_prompt

CPU = torch.device("cpu")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and nothing loaded; the folder that libraries go to."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    load_kernels.cache_clear()
    yield tmp_path / "cache" / "fdllm"
    load_kernels.cache_clear()


def script(path: Path, lines: Sequence[str]) -> str:
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_compiled_once(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    counting = script(tmp_path / "counting", [f"env >>{log}", f"echo call >>{log}", 'exec cc "$@"'])
    monkeypatch.setenv("CC", f"{counting} -DANYTHING")
    for _ in range(2):
        load_kernels(torch.float32)
        load_kernels.cache_clear()  # as another process
    told = log.read_text(encoding="utf-8")
    assert told.splitlines().count("call") == 1
    assert "hf_secret" not in told
    [library] = fresh.iterdir()
    # What is damaged is compiled again.
    damaged = tmp_path / "other" / "fdllm" / library.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"no library")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    load_kernels(torch.float32)
    assert log.read_text(encoding="utf-8").splitlines().count("call") == 2
    assert damaged.read_bytes() == library.read_bytes()


def test_a_cache_that_cannot_be_written(fresh: Path) -> None:
    fresh.parent.write_text("a file, no folder", encoding="utf-8")
    tokens, _ = load_kernels(torch.float32).choose(torch.eye(4), 0)
    assert tokens == [1, 1, 2, 3]


# The loader's own choice among them, as where there is no compiler.
CHOSEN = """
import ctypes
from fdllm.fast.compiler import load_library
level = ctypes.c_char.in_dll(load_library("float32"), "built_for")
print(ctypes.string_at(ctypes.addressof(level)).decode(), end="")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the loader of Linux chooses")
def test_built_ahead(fresh: Path, tmp_path: Path) -> None:
    built, machine = tmp_path / "built", platform.machine()
    subprocess.run([sys.executable, "-m", "fdllm.fast.compiler", str(built)], check=True)
    told = {**os.environ, "LD_LIBRARY_PATH": str(built), "CC": "/nowhere/cc"}
    choose = [sys.executable, "-c", CHOSEN]
    level = subprocess.run(choose, check=True, env=told, stdout=subprocess.PIPE, text=True).stdout
    assert not fresh.exists()

    paths = {path.parent.name: path for path in built.rglob("*float32*")}
    paths[machine] = paths.pop("built")
    assert len(paths) == (4 if machine == "x86_64" else 1)
    # The plainest, the one chosen and one for this very processor are the same to the bit.
    ahead = [Kernels(ctypes.PyDLL(str(paths[one])), torch.float32) for one in (machine, level)]
    assert [one.name for one in ahead] == [f"C kernels for {one}" for one in (machine, level)]
    here = load_kernels(torch.float32)
    assert here.name == "C kernels"
    assert told_by(ahead[0]) == told_by(ahead[1]) == told_by(here)


def told_by(kernels: Kernels) -> list[object]:
    """Numbers that go through every sum."""
    model, torch_seed = random_model(3), torch.Generator().manual_seed(1)
    model.accelerators = lambda *_: kernels
    model.compile()
    prompts = [random_prompt(n, n) for n in (7, 33)]
    pairs = [(prompt, random_prompt(1, 9)) for prompt in prompts]
    scored = fdllm.score(model, pairs, "denoise", DECODING, fdllm.NoReuse())
    chosen = kernels.choose(torch.randn(40, 1003, generator=torch_seed) * 4, 2)
    return [*(one.loglikelihood for one in scored), *chosen]


NO_COMPILER = {
    "none": (None, "no C compiler (cc, gcc or clang) is on the PATH"),
    "no file": ("/nowhere/cc", "'/nowhere/cc' does not run (FileNotFoundError)"),
    "fails": (["echo 'disk quota exceeded' >&2; exit 3"], "does not compile kernels.c: disk quota"),
    "no library": (["echo text >$(echo \"$*\" | sed 's/.*-o //; s/ .*//')"], "cannot be loaded"),
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("named", "said"), NO_COMPILER.values(), ids=NO_COMPILER)
def test_without_a_compiler(
    named: str | list[str] | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if named is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        path = named if isinstance(named, str) else script(tmp_path / "broken", named)
        monkeypatch.setenv("CC", path)
    with pytest.raises(CompilerError, match=re.escape(said)):
        load_kernels(torch.float32)
    # Nobody asked: torch's kernels serve, and the record says so.
    assert accelerator_on(CPU, torch.float32).name == "no"
    model = random_model(3)
    assert fdllm.generate(model, [random_prompt(1, 7)], DECODING, fdllm.NoReuse())[0].tokens
    # Somebody did.
    with pytest.raises(UsageError, match="--compile: .*; install gcc or clang"):
        model.compile(asked=True)

"""Compiling the kernels: once, without the token, and what happens where it cannot be done."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import fdllm
from fdllm.errors import UsageError
from fdllm.fast.accelerators import accelerator_on
from fdllm.fast.compiler import CompilerError
from fdllm.fast.kernels import load_kernels
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

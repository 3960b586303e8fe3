"""A checkpoint damaged anywhere loads, or is refused in one line, and ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fdllm
from fdllm.checkpoint.folder import INDEX, WEIGHTS
from fdllm.checkpoint.special_tokens import load_tokenizer
from fdllm.checkpoint.tensors import hub_shapes
from fdllm.errors import FdllmError
from helpers import ROOT
from models import SPEC, hub_config, save_shards


def write(path: Path, data: object) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint in a shard, with a tokenizer that says little."""
    write(tmp_path / "config.json", hub_config(SPEC))
    save_shards(tmp_path, weights(), ["part.safetensors"])
    write(tmp_path / "tokenizer_config.json", {"eos_token": {"content": "e"}})
    write(tmp_path / "tokenizer.json", {"model": {"vocab": {"e": 3}}})
    return tmp_path


def weights() -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape) for name, shape in hub_shapes(SPEC).items()}


ANYTHING_ELSE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "is a pipe, not a file|is no file"),
    "a folder": (Path.mkdir, "is a folder, not a file|is no file"),
    "a link to nothing": (lambda p: p.symlink_to("gone"), "a link that leads nowhere"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "is a device, not a file|is no file"),
    "nothing in it": (lambda p: p.write_bytes(b""), "is no JSON|cut short or is damaged"),
    "zeros": (lambda p: p.write_bytes(b"\0" * 99), "is no JSON|cut short or is damaged"),
    "depth": (lambda p: p.write_bytes(b'{"a":' * 10**5), "is no JSON|cut short or is damaged"),
    "no UTF-8": (lambda p: p.write_bytes(b'{"\xe9": 1}'), "is no UTF-8|cut short or is damaged"),
}


def load_whole(folder: Path) -> None:
    fdllm.load_model(folder, device="cpu")
    load_tokenizer(folder, "m")


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        INDEX,
        WEIGHTS,
    ],
)
@pytest.mark.parametrize("kind", ANYTHING_ELSE)
def test_whatever_stands_in_a_files_place_is_one_line_at_once(
    folder: Path, name: str, kind: str
) -> None:
    make, message = ANYTHING_ELSE[kind]
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(FdllmError, match=rf"{name}.*({message})") as told:
        load_whole(folder)
    assert str(told.value).isprintable()


def test_a_name_in_an_index_or_a_header_is_told_in_part(folder: Path) -> None:
    name = "x" * 10**6
    save_file(weights() | {name: torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(FdllmError, match="has unexpected tensors: x{120};") as told:
        fdllm.load_model(folder, device="cpu")
    (folder / WEIGHTS).unlink()
    assert len(str(told.value)) < 999
    for wrong in (name, "part\x1b[2J", "", "\ud800", None):
        write(folder / INDEX, {"weight_map": {"a": wrong}})
        with pytest.raises(FdllmError, match="must name a file of the folder") as told:
            fdllm.load_model(folder, device="cpu")
        assert str(told.value).isprintable()


def test_what_the_tokenizers_library_raises_is_one_line(folder: Path) -> None:
    write(folder / "tokenizer.json", {"model": {"vocab": {"e": 3}}, "version": 7})
    with pytest.raises(FdllmError, match=r"tokenizer in .* cannot be read \(.*fetch") as told:
        load_tokenizer(folder, "m")
    assert str(told.value).isprintable()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_in_one_line() -> None:
    """A sample; more is had by hand, see the script."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/damaged.py"), "16", "0"],
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("loaded <- nothing\n"), done.stderr
    assert done.returncode == 0, done.stdout

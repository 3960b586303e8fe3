"""``fdllm`` as a person types it, with a model that answers at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdllm.cli import main
from fdllm.runs import ModelChoice
from stubs import StubMachine, make_root, take_at_once


class Command:
    """``fdllm`` in a checkout of its own, with a model that answers at once."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.machine = StubMachine()
        self.loads = 0
        self.out = self.err = ""
        self._capsys = capsys

    def __call__(self, *arguments: str) -> int:
        """Run one command on the stub; afterwards ``out`` and ``err`` hold what it printed."""
        model = ["--model", str(self.root / "model")]
        plain = arguments[0] == "new" or "--model" in arguments
        return self.raw(*arguments, *([] if plain else model))

    def raw(self, *arguments: str) -> int:
        """Run one command as it stands."""
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def cells(self, *arguments: str) -> dict[str, Any]:
        """State by config."""
        assert self("status", "--json", *arguments) == 0
        return {cell["config"]: cell["state"] for cell in json.loads(self.out)["cells"]}

    def load(self, _: ModelChoice, __: int | None) -> StubMachine:
        """Stands in for loading a checkpoint."""
        self.loads += 1
        return self.machine


def make_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """A checkout in ``folder``, and the command that works there."""
    command = Command(make_root(folder / "root"), capsys)
    work_in(command.root, monkeypatch, command.load)
    return command


def work_in(root: Path, patch: pytest.MonkeyPatch, load: Callable[..., StubMachine]) -> None:
    """Let commands work in this checkout, with models that ``load`` gives, and studies at once."""
    patch.setenv("FDLLM_ROOT", str(root))
    patch.delenv("FDLLM_MODEL", raising=False)
    patch.setattr("fdllm.cli.sweep.load_model", load)
    patch.setattr("fdllm.cli.studies.take", take_at_once)


def make_swept(root: Path) -> Path:
    """A checkout whose grid is done on one task; beside it ``kept``, a copy."""
    make_root(root)
    with pytest.MonkeyPatch.context() as patch:
        work_in(root, patch, lambda *_: StubMachine())
        model = ("--model", str(root / "model"))
        assert main(["sweep", "--task", "tiny_arithmetic", *model]) == 0
    shutil.copytree(root, root.with_name("kept"))
    return root


def summary_of(root: Path, config: str, task: str = "tiny_arithmetic") -> Path:
    """A config's summary."""
    (path,) = root.glob(f"results/00_baseline/{task}@*/{config}/summary.json")
    return path

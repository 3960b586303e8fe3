"""The notebook of the docs runs as it stands, on a small release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from command import Command
from helpers import ROOT


def test_the_notebook_opens_a_release(
    finished: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = ("--task", "tiny_arithmetic", "--config", "k1_first", "k2_middle")
    assert finished("export", *chosen, "--out", str(tmp_path / "release")) == 0, finished.err
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FDLLM_ROOT")
    book = json.loads((ROOT / "docs" / "release.ipynb").read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    names: dict[str, Any] = {}
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # figures of somebody's machine would grow old
            exec("".join(cell["source"]), names)  # noqa: S102 - what is tested
    assert list(names["flips"].columns) == ["lost", "won"]
    assert set(names["flips"].index) == {"k1_first", "k2_middle"}
    assert names["cells"].set_index("config").value.to_dict() == names["by_config"].mean().to_dict()

"""What several tests need and no fixture can give: it is called while tests are collected."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SURE = ROOT / "tests/embedded_sure"
REQUIRE_SHARED = "FDLLM_REQUIRE_SHARED"


def shared_folder() -> Path:
    """The reference outputs and data-set rows, in a folder ``shared`` beside the clone.

    They are too large for the repository. Without them the tests that compare against them are
    skipped, or fail where ``FDLLM_REQUIRE_SHARED=1`` says that they must run.
    """
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        reason = "needs the folder 'shared' (reference outputs, data-set rows) beside the clone"
        if os.environ.get(REQUIRE_SHARED) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_SHARED}=1 forbids skipping")
        pytest.skip(reason)
    return folder


def a_shell_reads(script: Path) -> None:
    """``bash`` parses it, and shellcheck has nothing to say, where there is one."""
    subprocess.run(["bash", "-n", str(script)], check=True)
    if shutil.which("shellcheck") is None:
        assert "FDLLM_REQUIRE_CLUSTER" not in os.environ, "shellcheck is not installed"
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def move_hub(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Another ``HF_HOME`` in this process too, where the Hub's client has read it already."""
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))

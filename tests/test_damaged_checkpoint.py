"""A checkpoint damaged anywhere loads, or is refused in one line, and ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers import ROOT


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

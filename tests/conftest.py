"""Fixtures of all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from helpers import shared_folder

# Models of the tests are far too small for a second thread; children of the tests inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# A sweep of a test is computed here unless it says otherwise, whether or not there is an sbatch.
os.environ["FDLLM_EXECUTOR"] = "local"
# In the background of a script a process ignores SIGINT, and so would all that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs; see :func:`helpers.shared_folder`."""
    return shared_folder()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test never holds the user's own token: whatever it writes or prints may be shown."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

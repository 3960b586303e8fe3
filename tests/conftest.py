"""Fixtures of all tests."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from command import Command, make_command, make_swept, work_in
from fake_slurm import FakeSlurm
from helpers import SURE, shared_folder
from hub.rows import all_repositories
from hub.server import Hub
from stubs import make_root

if TYPE_CHECKING:
    from fdllm import Model

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


@pytest.fixture(scope="module")
def hub(shared: Path) -> Iterator[Hub]:
    """A loopback Hub with every repository that the tests know."""
    with Hub(all_repositories(shared)) as running:
        yield running


@pytest.fixture(scope="session")
def sure_model() -> Model:
    """What the embedded model's training began from: of easy chains, and sure of itself.

    In float32 on a CPU.
    """
    from fdllm.core.checkpoint import load_model  # noqa: PLC0415 - most tests need no torch

    return load_model(SURE, device="cpu", dtype="float32")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout: the baseline, and a model of which there is only an identity."""
    return make_root(tmp_path / "root")


@pytest.fixture
def fdllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """``fdllm`` in an empty checkout, with a model that answers at once."""
    return make_command(tmp_path, monkeypatch, capsys)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A cluster that only keeps a queue."""
    fake = FakeSlurm.make(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The grid that :func:`finished` hands out, computed once."""
    return make_swept(tmp_path_factory.mktemp("swept") / "root")


@pytest.fixture
def finished(fdllm: Command, swept: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``fdllm`` where the whole grid of tiny_arithmetic is done, to be tampered with.

    Always at the same place, because records name their model by its folder.
    """
    shutil.rmtree(swept, ignore_errors=True)
    shutil.copytree(swept.with_name("kept"), swept)
    fdllm.root = swept
    work_in(swept, monkeypatch, fdllm.load)
    return fdllm


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that somebody holds is given up at once."""
    monkeypatch.setattr("fdllm.record.lock._PATIENCE_S", 0.05)


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test never holds the user's own token: whatever it writes or prints may be shown."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

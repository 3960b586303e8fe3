"""What an array task does with the signals that SLURM sends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from command import Command
from fake_slurm import FakeSlurm
from fdllm.cluster.render import ENDED_EARLY
from fdllm.cluster.submission import read_submission
from fdllm.errors import FdllmError, MissingError
from stubs import NUM_DOCS, StubMachine, signal_at

FLAGS = ("--task", "tiny_arithmetic", "--config", "k1_first")


@pytest.fixture
def fdllm(fdllm: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("PATH", FakeSlurm.make(tmp_path / "bin").path)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    assert fdllm("sweep", *FLAGS, "--executor", "slurm", "--no-doctor") == 0
    return fdllm


def job(fdllm: Command) -> int:
    (folder,) = fdllm.root.glob("logs/*/*/submissions/*")
    return fdllm.raw("job", str(read_submission(folder).map), "0")


def folder_of(fdllm: Command) -> Path:
    (folder,) = fdllm.root.glob("results/*/*/k1_first")
    return folder


def test_warned_it_keeps_what_it_has_and_goes_on_in_its_next_life(fdllm: Command) -> None:
    fdllm.machine = signal_at(2, signal.SIGUSR1)
    assert job(fdllm) == ENDED_EARLY
    assert not (folder_of(fdllm) / "summary.json").exists()
    assert not (folder_of(fdllm) / "failed.json").exists()
    kept = (folder_of(fdllm) / "journal.jsonl").read_text().count('"key"')
    assert 2 <= kept < NUM_DOCS
    fdllm.machine = StubMachine()
    assert job(fdllm) == 0
    assert f"{NUM_DOCS - kept} computed" in fdllm.err
    assert (folder_of(fdllm) / "summary.json").exists()


def test_a_file_of_the_job_script_warns_it_too(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    (map_,) = fdllm.root.rglob("map.json")

    def warn(now: int) -> None:
        for life in (2, 3) if now == 2 else (2,):  # another life's is no business of this one
            path = map_.parent / "ended" / f"0.warned-{life}"
            path.parent.mkdir(exist_ok=True)
            path.touch()

    fdllm.machine = StubMachine(before=warn)
    assert job(fdllm) == ENDED_EARLY
    assert 2 <= (folder_of(fdllm) / "journal.jsonl").read_text().count('"key"') < NUM_DOCS


def test_warned_before_anything_is_done_it_is_not_requeued_for_ever(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> StubMachine:
        os.kill(os.getpid(), signal.SIGUSR1)
        return fdllm.machine

    monkeypatch.setattr("fdllm.cli.sweep.load_model", slow)
    assert job(fdllm) == 1
    assert "give it more time" in fdllm.err
    assert "give it more time" in (folder_of(fdllm) / "failed.json").read_text()


def test_cancelled_it_says_so_and_names_its_log(fdllm: Command) -> None:
    fdllm.machine = signal_at(3, signal.SIGTERM)
    assert job(fdllm) == 143
    failed = json.loads((folder_of(fdllm) / "failed.json").read_text())
    assert "cancelled" in failed["reason"]
    assert failed["log"].endswith("/k1_first/slurm_101_0.log")
    assert (folder_of(fdllm) / "journal.jsonl").read_text().count('"key"') == 3


def test_a_model_that_cannot_be_loaded_is_the_cells_reason(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> StubMachine:

        raise FdllmError("no such weights")

    monkeypatch.setattr("fdllm.cli.sweep.load_model", broken)
    assert job(fdllm) == 1
    assert json.loads((folder_of(fdllm) / "failed.json").read_text())["reason"] == "no such weights"


def test_what_is_missing_is_missed_once(fdllm: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task of a submission needs the same model and data."""
    loads: list[int] = []

    def load(*_: Any) -> StubMachine:
        loads.append(1)
        raise MissingError("no such model here")

    monkeypatch.setattr("fdllm.cli.sweep.load_model", load)
    assert job(fdllm) == 1
    (folder,) = fdllm.root.glob("logs/*/*/submissions/*")
    for one in read_submission(folder).assignments:
        assert fdllm.raw("job", str(folder / "map.json"), str(one.index)) == 1
        assert "not tried: no such model here (job 101_0 on " in fdllm.err
    assert len(loads) == 1
    failed = json.loads((folder_of(fdllm) / "failed.json").read_text())
    assert failed["reason"].startswith("not tried: no such model here")
    read_submission(folder).missing.unlink()
    monkeypatch.setattr("fdllm.cli.sweep.load_model", lambda *_: StubMachine(answer=absent))
    assert job(fdllm) == 1
    assert read_submission(folder).missing.read_text().startswith("no such data here (job 101_0 on")


def absent(*_: Any) -> str:
    raise MissingError("no such data here")

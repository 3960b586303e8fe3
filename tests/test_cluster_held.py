"""A run that another process holds: its job does not end well, and what a dead one left is told."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from command import Command
from fake_slurm import FakeSlurm
from fdllm.cluster.left_behind import left_behind
from fdllm.cluster.submission import Submission, read_submission
from fdllm.record.atomic import write_json
from fdllm.record.lock import locked
from stubs import paths_of

ONE = ("--task", "tiny_arithmetic", "--config", "k1_first")
SLURM = ("--executor", "slurm", "--no-doctor", "--timing", "0")


@pytest.fixture
def submission(fdllm: Command, slurm: FakeSlurm) -> Submission:
    assert fdllm("sweep", *ONE, *SLURM) == 0
    assert slurm.queue() == ["101_0"]
    (folder,) = fdllm.root.glob("logs/*/*/submissions/*")
    return read_submission(folder)


def test_a_job_that_finds_its_run_held_does_not_end_well(
    fdllm: Command, slurm: FakeSlurm, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fdllm.record.lock._PATIENCE_S", 0.05)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "101")
    with locked(paths_of(fdllm.root, submission.assignments[0].run)):
        assert fdllm.raw("job", str(submission.map), "0") == 76
    assert f"held by process {os.getpid()}" in fdllm.err
    assert "delete" not in fdllm.err
    submission.ended(0).parent.mkdir()
    submission.ended(0).write_text("101_0 0 76 2026-01-01T00:00:00Z\n")
    slurm.empty()
    assert set(fdllm.cells(*ONE).values()) == {"failed"}
    assert "another process held its folder" in json.loads(fdllm.out)["cells"][0]["reason"]


@pytest.mark.parametrize(
    ("job", "days", "said"),
    [
        ("101", 0, ""),
        ("102", 0, "the queue no longer lists that job"),
        (None, 0, ""),
        (None, 8, "that is 8 days"),
        ("101", 8, ""),
    ],
)
def test_a_lock_that_a_dead_node_may_have_left_is_told_with_what_to_delete(
    job: str | None,
    days: int,
    said: str,
    fdllm: Command,
    slurm: FakeSlurm,
    submission: Submission,
) -> None:
    paths = paths_of(fdllm.root, submission.assignments[0].run)
    (slurm.folder / "queue").write_text("101\n")  # as `squeue --format=%A` prints it
    since = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%d %H:%M:%S UTC")
    with locked(paths):
        write_json(paths.holder, {"host": "node7", "pid": 7, "since": since, "job": job})
        found = left_behind(paths)
        assert found.startswith("held by process 7 on node7") == bool(said)
        assert said in found
        assert found.endswith(f"delete {paths.lock}") == bool(said)
        slurm.empty()
        assert set(fdllm.cells(*ONE).values()) == {"running"}
        shown = json.loads(fdllm.out)["cells"][0]["reason"]
        assert (str(paths.lock) in shown) == (bool(said) or job is not None)
    assert left_behind(paths) == ""

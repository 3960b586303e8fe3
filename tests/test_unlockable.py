"""Where files cannot be locked, and where a lock is another's: said, and never exit code 0."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkups import of
from command import Command
from fake_slurm import FakeSlurm
from fdllm.doctor.checks_node import folders
from fdllm.errors import FdllmError
from fdllm.record.atomic import write_json
from fdllm.record.lock import LockedError, holder_of, locked
from fdllm.record.paths import RunPaths
from stubs import make_run, paths_of

ONE = ("--task", "tiny_arithmetic", "--config", "k2_middle")
SLURM = ("--executor", "slurm", "--no-doctor", "--timing", "0")
NO_LOCKS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]
EVERY = [*NO_LOCKS, errno.ESTALE]
CARD = {"host": "node7", "pid": 7, "since": "2026-01-01 00:00:00 UTC"}


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The system refuses to lock any file, as file systems without locks do."""

    def lock(number: int) -> None:
        def flock(_file: int, _operation: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    return lock


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm.make(tmp_path / "bin")
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "task" / "k2_last", tmp_path / "artifacts", tmp_path / "logs")


@pytest.mark.parametrize("number", EVERY)
def test_a_run_is_refused_with_what_to_do(
    paths: RunPaths, refuse: Callable[[int], None], number: int
) -> None:
    refuse(number)
    said = "a stale handle" if number == errno.ESTALE else "another file system with --results"
    for _ in range(2):  # no file in place of a lock stays behind
        with pytest.raises(FdllmError, match=said), locked(paths):
            pytest.fail("two processes could be here")
    assert holder_of(paths) is None
    write_json(paths.holder, CARD)
    holder = holder_of(paths)
    assert holder is not None
    assert holder.host == "node7"


@pytest.mark.parametrize("number", NO_LOCKS)
def test_commands_say_it_in_a_line(
    fdllm: Command, slurm: FakeSlurm, refuse: Callable[[int], None], number: int
) -> None:
    refuse(number)
    for command in (("eval", *ONE), ("sweep", *ONE, *SLURM)):
        assert fdllm(*command) == 1
        last = fdllm.err.strip().splitlines()[-1]
        assert "files cannot be locked there" in last
        assert "unexpected" not in fdllm.err
    assert slurm.queue() == []


@pytest.mark.parametrize("number", EVERY)
def test_the_check_up_tries_a_lock_where_runs_lock(
    tmp_path: Path, refuse: Callable[[int], None], number: int
) -> None:
    asked = of(tmp_path)
    assert [found.state for found in folders(asked)] == ["ok"] * 3
    refuse(number)
    found = {one.name: one for one in folders(asked)}
    assert {name: one.state for name, one in found.items()} == {
        "folder results": "fail", "folder artifacts": "ok", "folder logs": "fail",
    }  # fmt: skip
    told = found["folder results"]
    assert f"cannot be locked ({os.strerror(number)})" in told.found
    assert "--results" in told.remedy


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_a_run_that_is_locked_is_no_success(fdllm: Command, command: str) -> None:
    executor = ("--executor", "local") if command == "sweep" else ()
    with locked(paths_of(fdllm.root, make_run(fdllm.root))):
        assert fdllm(command, *ONE, *executor) == 76
    assert f"nothing was done, as its folder is held by process {os.getpid()} on" in fdllm.err
    assert fdllm(command, *ONE, *executor) == 0


def test_a_record_that_is_held_is_not_moved_aside(
    fdllm: Command, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody took it after it was looked at."""
    assert fdllm("eval", *ONE) == 0

    @contextmanager
    def taken(_: RunPaths) -> Iterator[None]:
        raise LockedError("process 7 on node7")
        yield

    monkeypatch.setattr("fdllm.cluster.submit.locked", taken)
    assert fdllm("sweep", *ONE, *SLURM, "--force") == 1
    assert "nothing was submitted, as its folder is held by process 7 on node7" in fdllm.err
    assert paths_of(fdllm.root, make_run(fdllm.root)).summary.exists()
    assert slurm.queue() == []


def test_a_card_that_is_a_pipe_keeps_nobody_waiting(paths: RunPaths) -> None:
    with locked(paths):
        paths.holder.unlink()
        os.mkfifo(paths.holder)
        assert holder_of(paths) is None

"""Files and locks: nothing is lost, and nothing is half there."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fdllm.errors import FdllmError
from fdllm.record.atomic import write_json, write_text
from fdllm.record.lock import LockedError, holder_of, locked
from fdllm.record.paths import RunPaths
from helpers import ROOT
from stubs import small_disk


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """Writing beyond ``num_bytes`` of a file fails, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def paths_in(folder: Path) -> RunPaths:
    return RunPaths(folder / "task" / "k2_middle", folder / "artifacts", folder / "logs")


# --- whole files --------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]


def test_json_is_text_that_people_read_with_the_rights_of_any_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "summary.json", tmp_path / "plain"
    write_json(path, {"a": "ü", "b": [1]})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": [\n    1\n  ]\n}\n'
    for mask, rights in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            write_text(plain, "x")
            assert plain.stat().st_mode & 0o777 == rights
            assert os.umask(mask) == mask
        finally:
            os.umask(before)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")
    with file_size_limit(1000), pytest.raises(FdllmError, match="summary.json"):
        write_text(path, "x" * 100_000)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_full_disk_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "disk" / "summary.json"
    with small_disk(path.parent):
        write_text(path, "old")
        with pytest.raises(FdllmError, match=r"summary.json: the disk is full; free some space"):
            write_text(path, "x" * 200_000)
        assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(FdllmError, match=r"results.*move it away"):
        write_text(tmp_path / "results" / "x" / "summary.json", "text")


# --- locks --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_one_at_a_time(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    with locked(paths):
        with pytest.raises(LockedError, match=str(os.getpid())), locked(paths):
            pytest.fail("two hold the lock")
        assert holder_of(paths) is not None
    assert holder_of(paths) is None
    with locked(paths):
        pass


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    code = f"""
import sys, time
from pathlib import Path
from fdllm.record.lock import locked
from fdllm.record.paths import RunPaths
base = Path({str(tmp_path)!r})
with locked(RunPaths(base / "task" / "k2_middle", base / "artifacts", base / "logs")):
    print("held", flush=True)
    time.sleep(60)
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        holder = holder_of(paths)
        assert holder is not None
        assert holder.pid == process.pid
        process.kill()
        process.wait()
    assert paths.holder.exists()
    assert holder_of(paths) is None
    with locked(paths):
        pass

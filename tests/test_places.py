"""Where a run's files lie, what they say of its progress, and what a failure leaves there."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fdllm.errors import FdllmError, UsageError
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import Failure, Journal, read_failure, read_progress, write_failure
from fdllm.record.lock import Holder, holder_of, locked
from fdllm.record.paths import Layout, RunPaths, TaskFolder, find_root, model_slug
from fdllm.runs import ModelChoice
from fdllm.shard import Shard
from stubs import make_root, make_run

ONE = Fingerprint(fields={"source": "1"})
TWO = Fingerprint(fields={"source": "2"})


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "task" / "k2_last", tmp_path / "artifacts", tmp_path / "logs")


def answer(
    paths: RunPaths,
    *keys: str,
    total: int | None = None,
    identity: Fingerprint = ONE,
    who: str = "m",
    **entry: Any,
) -> None:
    with Journal(paths.journal, identity, {"machine": who}) as journal:
        if total is not None:
            journal.set_total(total)
        for key in keys:
            journal.put(key, {"num_tokens": 3, "seconds": 0.5} | entry)


# --- names ----------------------------------------------------------------------------------------


def test_a_run_and_its_shards_have_files_of_these_names(paths: RunPaths) -> None:
    def names(of: RunPaths) -> list[str]:
        files = (of.summary, of.samples, of.results, of.journal, of.failed, of.lock, of.holder)
        assert {path.parent for path in files} == {paths.folder}
        return [path.name for path in files]

    assert names(paths) == [
        "summary.json", "samples.jsonl", "results.json", "journal.jsonl", "failed.json", ".lock",
        ".holder.json",
    ]  # fmt: skip
    assert names(paths.of_shard(Shard(1, 3))) == [
        "summary.json", "samples.jsonl", "results.json", "journal.shard-2-of-3.jsonl",
        "failed.shard-2-of-3.json", ".lock.shard-2-of-3", ".holder.shard-2-of-3.json",
    ]  # fmt: skip
    assert paths.published.summary == paths.artifacts / "summary.json"
    log = paths.new_log()
    assert log.parent == paths.logs
    assert paths.logs.is_dir()
    assert log.name.startswith("local_2")
    assert log.suffix == ".log"


def test_shards_are_found_by_any_of_their_files_in_order(paths: RunPaths) -> None:
    assert paths.shards() == []
    paths.folder.mkdir(parents=True)
    for name in (
        "journal.shard-3-of-3.jsonl",
        "failed.shard-1-of-3.json",
        ".holder.shard-2-of-2.json",
        "failed.shard-3-of-3.json",
        "journal.shard-0-of-3.jsonl",
        "journal.shard-4-of-3.jsonl",
        "notes.shard-1-of-5.json",
        "journal.jsonl",
    ):
        (paths.folder / name).touch()
    found = [part.shard for part in paths.shards()]
    assert found == [Shard(0, 3), Shard(1, 2), Shard(2, 3)]
    assert [replace(part, shard=None) for part in paths.shards()] == [paths] * 3


def test_what_is_named_is_moved_aside_and_nothing_else(paths: RunPaths) -> None:
    assert paths.supersede() is None
    paths.folder.mkdir(parents=True)
    for name in ("summary.json", "samples.jsonl", "journal.jsonl", ".lock", ".holder.json"):
        (paths.folder / name).write_text(name)
    assert paths.supersede("results.json") is None
    aside = paths.supersede("summary.json", "samples.jsonl", ".lock")
    assert aside is not None
    assert aside.parent == paths.folder.parent / ".superseded"
    assert aside.name.startswith("k2_last-2")
    assert {p.name: p.read_text() for p in aside.iterdir()} == {
        "summary.json": "summary.json", "samples.jsonl": "samples.jsonl",
    }  # fmt: skip
    left = {path.name for path in paths.folder.iterdir()}
    assert left == {"journal.jsonl", ".lock", ".holder.json"}


def test_task_folders_say_what_they_hold(tmp_path: Path) -> None:
    layout = Layout.of(tmp_path)
    assert layout.task_folders("00_baseline") == []
    place = layout.results / "00_baseline"
    for name in ("gsm8k", "gsm8k_limit_10", "mmlu@org--m", "mmlu_limit_5@tiny"):
        (place / name).mkdir(parents=True)
    (place / "file").touch()
    assert layout.task_folders("00_baseline") == [
        TaskFolder("gsm8k"),
        TaskFolder("gsm8k", 10),
        TaskFolder("mmlu", model="org--m"),
        TaskFolder("mmlu", 5, model="tiny"),
    ]


def test_a_model_has_a_folder_of_its_own_unless_it_is_the_tasks(tmp_path: Path) -> None:
    run = make_run(make_root(tmp_path / "root"))
    tiny, hub = ModelChoice(name="tiny"), ModelChoice(name="org/some.model")
    folders = {
        str(TaskFolder.of(run.model_copy(update={"model": model, "limit": limit})))
        for model in (tiny, hub)
        for limit in (None, 7)
    }
    assert folders == {
        "tiny_arithmetic", "tiny_arithmetic_limit_7",
        "tiny_arithmetic@org--some.model", "tiny_arithmetic_limit_7@org--some.model",
    }  # fmt: skip
    own = str(tmp_path / "root" / "model")
    assert model_slug(own).startswith("model-")
    assert model_slug(own) == model_slug(f"{own}/../model")
    assert model_slug("what is/this?") == "what-is--this-"


def test_the_checkout_is_named_or_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDLLM_ROOT", str(tmp_path))
    assert find_root() == tmp_path.resolve()
    monkeypatch.setenv("FDLLM_ROOT", str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="FDLLM_ROOT names .*absent', which is no folder"):
        find_root()
    monkeypatch.delenv("FDLLM_ROOT")
    assert (find_root() / "experiments").is_dir()
    installed = tmp_path / "lib" / "python" / "fdllm" / "record" / "paths.py"
    monkeypatch.setattr("fdllm.record.paths.__file__", str(installed))
    assert find_root(tmp_path) == tmp_path
    monkeypatch.chdir(tmp_path)
    assert find_root() == tmp_path


# --- progress -------------------------------------------------------------------------------------


def test_nothing_has_begun(paths: RunPaths) -> None:
    now = read_progress(paths)
    assert (now.fingerprint, now.done, now.total, now.tokens) == (None, 0, None, 0)
    assert now.tokens_per_second is None


def test_progress_adds_up_a_run_and_its_shards(paths: RunPaths) -> None:
    answer(paths, "a", "b", who="whole")
    first, second = (paths.of_shard(Shard(i, 2)) for i in (0, 1))
    answer(first, "b", "c", total=3, who="first")
    now = read_progress(paths)
    assert (now.done, now.total) == (3, None), "the second shard has not said how much it has"
    answer(second, "d", total=4, who="second", num_tokens=10, seconds=1.0)
    now = read_progress(paths)
    assert (now.fingerprint, now.done, now.total) == (ONE, 4, 7)
    assert [s["machine"] for s in now.sessions] == ["whole", "first", "second"]
    assert (now.tokens, now.seconds) == (19, 2.5)
    assert now.tokens_per_second == pytest.approx(7.6)
    answer(paths, total=6)
    assert read_progress(paths).total == 6, "the run knows it best"


def test_scored_tokens_count_as_tokens(paths: RunPaths) -> None:
    with Journal(paths.journal, ONE, {}) as journal:
        journal.put("a", {"scored_tokens": 5, "seconds": 2.0})
        journal.put("b", {})
    now = read_progress(paths)
    assert (now.done, now.tokens, now.seconds, now.tokens_per_second) == (2, 5, 2.0, 2.5)


def test_of_two_versions_the_shards_count(paths: RunPaths) -> None:
    answer(paths, "a", "b", total=9)
    answer(paths.of_shard(Shard(0, 2)), "c", total=1, identity=TWO, who="new")
    now = read_progress(paths)
    assert (now.fingerprint, now.done, now.total) == (TWO, 1, None)
    assert [s["machine"] for s in now.sessions] == ["new"]
    answer(paths.of_shard(Shard(1, 2)), total=4, identity=TWO)
    assert read_progress(paths).total == 5


def test_totals_of_another_split_are_not_added(paths: RunPaths) -> None:
    for index, count in ((0, 2), (0, 3), (1, 3)):
        answer(paths.of_shard(Shard(index, count)), total=5)
    assert read_progress(paths).total is None
    answer(paths.of_shard(Shard(2, 3)), total=6)
    assert read_progress(paths).total == 16


# --- failure --------------------------------------------------------------------------------------


def test_a_failure_is_read_as_it_was_written(paths: RunPaths) -> None:
    assert read_failure(paths) is None
    written = write_failure(paths, "out of memory", "some.log")
    assert (written.reason, written.log) == ("out of memory", "some.log")
    assert written.time
    assert read_failure(paths) == written
    assert read_failure(paths.of_shard(Shard(0, 2))) is None
    paths.failed.write_text(json.dumps({"reason": 7}))
    assert read_failure(paths) == Failure("7", None, "")


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"log": "x"}'])
def test_a_failure_that_cannot_be_read_is_said(paths: RunPaths, content: str) -> None:
    paths.folder.mkdir(parents=True)
    paths.failed.write_text(content)
    with pytest.raises(FdllmError, match="failed.json cannot be read"):
        read_failure(paths)


def test_a_failure_that_cannot_be_written_is_still_told(paths: RunPaths) -> None:
    paths.folder.parent.mkdir(parents=True)
    paths.folder.write_text("a file where the folder should be")
    assert write_failure(paths, "the disk is full", None).reason == "the disk is full"


# --- locks ----------------------------------------------------------------------------------------


def test_the_holder_says_who_where_and_since_when(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in (None, "12_3"):
        for name, value in (("SLURM_JOB_ID", job), ("SLURM_CLUSTER_NAME", job and "lab")):
            monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        with locked(paths):
            holder = holder_of(paths)
        assert holder is not None
        assert (holder.host, holder.pid, holder.job) == (socket.gethostname(), os.getpid(), job)
        assert holder.cluster == (job and "lab")
        where = f"process {os.getpid()} on {socket.gethostname()}"
        assert str(holder) == f"{where}{', job 12_3' if job else ''}, since {holder.since}"
        assert holder.since.endswith("UTC")
        assert not paths.holder.exists()


@pytest.mark.parametrize("card", ["", "[]", '{"host": "h"}', '{"host": "h", "pid": 1, "x": 2}'])
def test_a_card_that_cannot_be_read_holds_nothing(paths: RunPaths, card: str) -> None:
    with locked(paths):
        paths.holder.write_text(card)
        assert holder_of(paths) is None
        assert holder_of(paths.of_shard(Shard(0, 2))) is None


def test_a_card_without_a_lock_is_of_a_process_that_is_gone(paths: RunPaths) -> None:
    paths.folder.mkdir(parents=True)
    card = {"host": "h", "pid": 1, "since": "then"}
    paths.holder.write_text(json.dumps(card))
    assert holder_of(paths) is None
    paths.lock.touch()
    assert holder_of(paths) is None
    assert str(Holder(**card)) == "process 1 on h, since then"  # type: ignore[arg-type]

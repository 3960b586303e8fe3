"""One attempt at a run: what stands between an evaluation and its journal, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.attempt import Part, RunAttempt
from fdllm.plan import State
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import DamagedJournalError, Journal, read_failure
from fdllm.record.paths import RunPaths
from fdllm.runs import Cell, Run
from fdllm.shard import Shard

ONE, TWO = Fingerprint(fields={"source": "1"}), Fingerprint(fields={"source": "2"})


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "task" / "k2_last", tmp_path / "artifacts", tmp_path / "logs")


def of(paths: RunPaths, **how: Any) -> RunAttempt:
    run = Run(
        experiment="00_baseline", task="tiny_choice", cell=Cell(name="k2_last", k=2, subset="last")
    )
    return RunAttempt(run, paths, Part(), **how)


@pytest.fixture
def attempt(paths: RunPaths) -> RunAttempt:
    return of(paths)


def fill(
    paths: RunPaths, *keys: str, total: int | None = None, identity: Fingerprint = ONE
) -> None:
    with Journal(paths.journal, identity, {"machine": "m"}) as journal:
        if total is not None:
            journal.set_total(total)
        for key in keys:
            journal.put(key, {"text": key})


# --- how it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FdllmError("the disk is full\nand more"), "the disk is full"),
        (UsageError("no such device"), "no such device"),
        (RuntimeError("  out of memory\nlong"), "RuntimeError: out of memory"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError(), "ValueError: no message"),
        (FdllmError(), "no message"),
    ],
)
def test_a_failure_is_a_line_a_log_and_a_file(
    attempt: RunAttempt, error: Exception, reason: str
) -> None:
    with attempt.open_journal(ONE, {}, lambda _: None) as journal:
        journal.put("a", {"text": "a"})
    outcome = attempt.failed(error)
    assert (outcome.run, outcome.state, outcome.reason) == (attempt.run, State.FAILED, reason)
    assert (outcome.num_computed, outcome.summary) == (1, None)
    assert outcome.log is not None
    assert type(error).__name__ in Path(outcome.log).read_text()
    kept = read_failure(attempt.paths)
    assert kept is not None
    assert (kept.reason, kept.log) == (reason, outcome.log)


def test_a_failure_without_room_for_a_log_is_still_told(attempt: RunAttempt) -> None:
    attempt.paths.logs.write_text("a file where the folder should be")
    outcome = attempt.failed(RuntimeError("gone"))
    assert (outcome.reason, outcome.log) == ("RuntimeError: gone", None)


# --- journals of parts ----------------------------------------------------------------------------


def test_the_whole_run_takes_over_what_its_shards_have_answered(paths: RunPaths) -> None:
    fill(paths, "a")
    fill(paths.of_shard(Shard(0, 2)), "a", "b")
    fill(paths.of_shard(Shard(1, 2)), "c", identity=TWO)
    told: list[str] = []
    with of(paths).open_journal(ONE, {"machine": "n"}, told.append) as journal:
        assert sorted(entry["text"] for entry in journal.content.entries.values()) == ["a", "b"]
        assert journal.num_put == 0
    assert told == ["1 answers of shard 1 of 2 are taken over"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_shard_is_asked_for_what_the_whole_run_knows(paths: RunPaths, *, fresh: bool) -> None:
    fill(paths, "a", "b")
    part = paths.of_shard(Shard(0, 2))
    with of(part, force=fresh).open_journal(ONE, {}, lambda _: None) as journal:
        assert len(journal.content.entries) == 0
        assert journal.get("a") == (None if fresh else {"text": "a"})
    with of(part).open_journal(TWO, {}, lambda _: None) as journal:
        assert journal.get("a") is None


def test_a_damaged_journal_is_refused_and_moved_aside_where_that_is_asked(paths: RunPaths) -> None:
    fill(paths, "a", "b")
    whole = paths.journal.read_bytes()
    paths.journal.write_bytes(b"x\n" + whole)
    told: list[str] = []
    with pytest.raises(DamagedJournalError, match="--force"):
        of(paths).open_journal(ONE, {}, told.append)
    assert (paths.journal.read_bytes(), told) == (b"x\n" + whole, [])
    with of(paths, force=True).open_journal(ONE, {}, told.append) as journal:
        assert len(journal.content.entries) == 0
    (note,) = told
    assert "line 1 does not fit its checksum" in note
    assert "it is now in " in note
    assert list(paths.folder.parent.glob(".superseded/*/journal.jsonl"))


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_merge_waits_for_every_shard(paths: RunPaths, at: int) -> None:
    for shard in Shard.all_of(3):
        fill(paths.of_shard(shard), *(["a", "b"] if shard.index != at else ["a"]), total=2)
    name = f"shard {at + 1} of 3"
    problem = of(paths, merge=3).merge_problem()
    assert problem is not None
    assert problem.startswith(f"{name} has 1 of 2 requests: nothing was computed in their place")
    paths.of_shard(Shard(at, 3)).journal.unlink()
    problem = of(paths, merge=3).merge_problem()
    assert problem is not None
    assert problem.startswith(f"{name} has not begun: ")
    fill(paths.of_shard(Shard(at, 3)), "a", "b", total=2)
    assert of(paths, merge=3).merge_problem() is None


# --- parts of a run -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_of_a_run_hold_whole_documents(count: int) -> None:
    requests = [(doc, choice) for doc in range(5) for choice in range(3)]
    parts = [Part(shard).select(requests, lambda one: one[0]) for shard in Shard.all_of(count)]
    assert [one for part in parts for one in part] == requests
    docs = [{doc for doc, _ in part} for part in parts]
    assert sum(map(len, docs)) == 5
    assert Part().select(requests, lambda one: one[0]) == requests
    assert Part().go_on()

"""Every cell's state joined with the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fdllm.cluster.exit_reason import ExitReason
from fdllm.cluster.queue import JobId, Queue, QueueEntry
from fdllm.cluster.status import join, survey
from fdllm.cluster.submission import (
    Submission,
    assign,
    read_submissions,
    submissions_folder,
    write_jobs,
    write_map,
)
from fdllm.plan import CellState, State
from fdllm.record.journal import write_failure
from fdllm.record.lock import locked
from fdllm.shard import Shard
from stubs import (
    NUM_DOCS,
    do_run,
    interrupt,
    make_planner,
    make_run,
    make_sweep,
    stop_at,
)

CONFIGS = ("k1_first", "k2_middle", "k3_last")
HOUR = timedelta(hours=1)


def submit(root: Path, job_id: str, *, ago: timedelta = HOUR, num_shards: int = 1) -> Submission:
    """A submission of three cells, as the queue has taken it."""
    planner = make_planner(root)
    runs = planner.runs(make_sweep(root, configs=CONFIGS))
    stamp = (datetime.now(UTC) - ago).strftime("%Y%m%dT%H%M%S.%fZ")
    submission = Submission(
        folder=submissions_folder(planner.layout.run(runs[0])) / stamp,
        assignments=assign(runs, num_shards),
        jobs={"job.sh": JobId(job_id)}
        | ({"merge.sh": JobId(f"{job_id}00")} if num_shards > 1 else {}),
    )
    write_map(submission)
    write_jobs(submission)
    return submission


def entry(job_id: str, state: str = "RUNNING", reason: str = "") -> QueueEntry:
    node = "node-1" if state == "RUNNING" else None
    return QueueEntry(JobId(job_id), state, node, 60 if node else 0, 3600, reason)


def queue_of(*entries: QueueEntry) -> Queue:
    return {one.job_id: one for one in entries}


def look(
    root: Path, queue: Queue | None, memory: Mapping[str, ExitReason] | None = None
) -> dict[str, CellState]:
    """The three cells by config."""
    planner = make_planner(root)
    runs = planner.runs(make_sweep(root, configs=CONFIGS))
    cells = join(
        [planner.state(run) for run in runs],
        read_submissions(planner.layout, runs),
        queue,
        lambda _: {JobId(number): why for number, why in (memory or {}).items()},
    )
    return {cell.run.cell.name: cell for cell in cells}


def states(cells: Mapping[str, CellState]) -> list[State]:
    return [cells[name].state for name in CONFIGS]


def test_the_queue_says_who_is_at_it(root: Path) -> None:
    submit(root, "7")
    interrupt(root, make_run(root, "k1_first"), 2)
    cells = look(root, queue_of(entry("7_0"), entry("7_1", "PENDING", "Priority"), entry("9_2")))
    assert states(cells) == [State.RUNNING, State.QUEUED, State.FAILED]
    running, waiting = cells["k1_first"], cells["k2_middle"]
    assert running.job is not None
    assert (running.job.job_id, running.job.node, running.job.elapsed_s) == ("7_0", "node-1", 60)
    assert (running.done, running.total, running.job.limit_left_s) == (2, NUM_DOCS, 3600)
    assert running.job.tokens_per_second == 8.0  # four characters in half a second
    assert running.job.time_left_s == round(0.5 * 3)
    assert (waiting.reason, waiting.job and waiting.job.job_id) == ("waits: Priority", "7_1")
    shown = running.as_dict()["job"]
    assert set(shown) == {
        "job_id", "node", "elapsed_s", "limit_left_s", "time_left_s", "tokens_per_second",
    }  # fmt: skip


def test_without_a_queue_the_files_speak_alone(root: Path) -> None:
    submit(root, "7")
    assert states(look(root, None)) == [State.PENDING] * 3


def test_a_job_that_is_gone_without_a_record_has_failed(root: Path) -> None:
    submission = submit(root, "7")
    memory = {"7_0": ExitReason("node node-1 failed"), "7_1": ExitReason("out of memory")}
    cells = look(root, {}, memory)
    assert states(cells) == [State.FAILED] * 3
    assert cells["k1_first"].reason == "job 7_0: node node-1 failed"
    assert cells["k1_first"].log == str(submission.log(0))
    assert cells["k2_middle"].reason == "job 7_1: out of memory"
    assert "without a word" in cells["k3_last"].reason


def test_what_was_answered_before_the_end_is_said(root: Path) -> None:
    submit(root, "7", ago=-HOUR)  # behind the session that answered
    interrupt(root, make_run(root, "k1_first"), 2)
    cell = look(root, {})["k1_first"]
    assert cell.state is State.FAILED
    assert cell.reason.endswith(f"; 2 of {NUM_DOCS} requests kept")


def test_a_record_is_done_whatever_the_queue_still_says(root: Path) -> None:
    submit(root, "7")
    do_run(root, make_run(root, "k1_first"))
    assert look(root, queue_of(entry("7_0", "COMPLETING")))["k1_first"].state is State.DONE
    assert look(root, {})["k1_first"].state is State.DONE


def test_a_record_that_is_computed_anew_is_queued(root: Path) -> None:
    do_run(root, make_run(root, "k1_first"))
    submit(root, "7", ago=-HOUR)
    cell = look(root, queue_of(entry("7_0", "PENDING", "Resources")))["k1_first"]
    assert (cell.state, cell.reason) == (
        State.QUEUED,
        "the record that stands (done) is computed anew; waits: Resources",
    )


def test_what_the_run_said_itself_counts_more_than_how_its_job_ended(root: Path) -> None:
    submission = submit(root, "7")
    do_run(root, make_run(root, "k1_first"), stop_at(1, ValueError("broken")))
    cell = look(root, {}, {"7_0": ExitReason("the job ended with exit code 1")})["k1_first"]
    assert (cell.state, cell.reason) == (State.FAILED, "ValueError: broken")
    assert cell.log is not None
    assert str(submission.folder) not in cell.log


def test_a_failure_of_old_is_not_that_of_a_job_since(root: Path) -> None:
    do_run(root, make_run(root, "k1_first"), stop_at(1, ValueError("broken")))
    submit(root, "7", ago=-HOUR)
    cell = look(root, {}, {"7_0": ExitReason("out of memory")})["k1_first"]
    assert cell.reason.startswith("job 7_0: out of memory")


def test_a_later_submission_counts(root: Path) -> None:
    submit(root, "7")
    submit(root, "8", ago=HOUR / 2)
    cells = look(
        root, queue_of(entry("8_0")), {"7_1": ExitReason("cancelled"), "8_1": ExitReason("x")}
    )
    assert states(cells) == [State.RUNNING, State.FAILED, State.FAILED]
    assert cells["k2_middle"].reason == "job 8_1: x"


def test_a_local_run_since_takes_over(root: Path) -> None:
    submit(root, "7")
    interrupt(root, make_run(root, "k1_first"), 2)
    assert look(root, {})["k1_first"].state is State.PARTIAL
    with locked(make_planner(root).layout.run(make_run(root, "k1_first"))):
        running = look(root, {})["k1_first"]
    assert running.state is State.RUNNING
    assert running.job is not None
    assert running.job.job_id is None


def test_a_split_run_is_one_cell(root: Path) -> None:
    submission = submit(root, "7", num_shards=2)
    first, second, merging = (str(submission.task_id(index)) for index in (0, 1, 6))
    assert merging == "700_6"
    waits = entry(merging, "PENDING", "Dependency")
    cells = look(root, queue_of(entry(first), entry(second), waits))
    found = cells["k1_first"]
    assert (found.state, found.job and found.job.job_id) == (State.RUNNING, f"{first}, {second}")
    assert look(root, queue_of(waits))["k1_first"].state is State.QUEUED


def test_a_shard_that_died_is_named(root: Path) -> None:
    submission = submit(root, "7", num_shards=2)
    never = entry("700_6", "PENDING", "DependencyNeverSatisfied")
    fine = ExitReason("the job ended by itself", by_itself=True)
    memory = {"7_0": fine, "7_1": ExitReason("out of memory")}
    cell = look(root, queue_of(never), memory)["k1_first"]
    assert (cell.state, cell.reason) == (
        State.FAILED,
        "shard 2 of 2, job 7_1: out of memory",
    )
    assert cell.log == str(submission.log(1))


def test_a_shards_own_reason_is_kept(root: Path) -> None:
    submit(root, "7", num_shards=2)
    paths = make_planner(root).layout.run(make_run(root, "k1_first"))
    paths.folder.mkdir(parents=True)
    write_failure(paths.of_shard(Shard(1, 2)), "cancelled", "the.log")
    cell = look(root, {})["k1_first"]
    assert (cell.state, cell.reason, cell.log) == (
        State.FAILED,
        "shard 2 of 2: cancelled",
        "the.log",
    )


def test_arrays_that_are_gone_are_asked_for_once(root: Path) -> None:
    submit(root, "7")
    planner = make_planner(root)
    runs = planner.runs(make_sweep(root, configs=CONFIGS))
    asked: list[Sequence[JobId]] = []

    def memory(arrays: Sequence[JobId]) -> dict[JobId, ExitReason]:
        asked.append(arrays)
        return {}

    join([planner.state(run) for run in runs], read_submissions(planner.layout, runs), {}, memory)
    assert asked == [[JobId("7")]]


def test_nothing_submitted_asks_no_queue(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    planner = make_planner(root)
    runs = planner.runs(make_sweep(root, configs=CONFIGS))
    assert {cell.state for cell in survey(planner, runs)} == {State.PENDING}

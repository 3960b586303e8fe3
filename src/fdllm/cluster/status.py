"""Every cell's state joined with the queue: one ``squeue`` for all of them.

The files say what is done; the queue says who is at it. Where neither does, and a job was submitted
for the cell, that job is gone without a record: the cell has failed, and here is said why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime

from fdllm.cluster.exit_reason import TERMINATED, ExitReason, explain, noted, remembered
from fdllm.cluster.left_behind import left_behind
from fdllm.cluster.queue import JobId, Queue, QueueEntry, read_queue
from fdllm.cluster.submission import Submission, read_submissions
from fdllm.errors import FdllmError
from fdllm.plan import RECORDED, CellState, JobFacts, Planner, State
from fdllm.record.journal import DamagedJournalError, read_failure, read_progress
from fdllm.record.lock import holder_of
from fdllm.runs import Run
from fdllm.timing.wanted import WantedStudy, study_state

# States in which files alone cannot tell a job that died from one that never was.
_OPEN = frozenset({State.PENDING, State.PARTIAL, State.FAILED})


@dataclass(frozen=True)
class _Task:
    """One array task of a cell."""

    submission: Submission
    index: int
    job_id: JobId | None  # None where ``sbatch`` named none

    @property
    def log(self) -> str | None:
        path = self.submission.log(self.index)
        return None if path is None else str(path)

    @property
    def is_unknown(self) -> bool:
        """Whether it may wait or run, for all that anybody knows."""
        return self.job_id is None and noted(self.submission.ended(self.index)) is None


def survey(
    planner: Planner, runs: Sequence[Run], studies: Sequence[WantedStudy] = ()
) -> list[CellState]:
    """The runs' states and then the studies', joined with the queue where there is one.

    Where nothing was ever submitted the queue is not asked. The order of reading matters: a job
    that ends meanwhile has left its record by the time the files are read, and one that is
    submitted meanwhile is not missed in an older queue.

    Raises:
        SlurmError: there is a queue, and it does not answer.
    """
    mentioned = [*runs, *(study.baseline for study in studies)]
    submissions = read_submissions(planner.layout, mentioned)
    clusters = {job.cluster for one in submissions for job in one.jobs.values() if job is not None}
    queue = read_queue(clusters or {None}) if submissions else None
    cells = [planner.state(run) for run in runs]
    cells += [study_state(planner, study) for study in studies]
    return join(cells, submissions, queue)


def join(
    cells: Sequence[CellState],
    submissions: Sequence[Submission],
    queue: Queue | None,
    memory: Callable[[Sequence[JobId]], Mapping[JobId, ExitReason]] = remembered,
) -> list[CellState]:
    """The cells in order, with what the queue says of them; without one, as the files tell them.

    Cells were read after ``queue``, which was read after ``submissions`` (oldest first); ``memory``
    is asked about arrays of which tasks are gone. ``queued`` and ``running`` cells, and those that
    have begun, carry :class:`~fdllm.plan.JobFacts`; a queued one without them was handed to
    ``sbatch``, which named no job.
    """
    tasks = [list(_tasks_of(cell, submissions)) for cell in cells]
    known: Mapping[JobId, ExitReason] = {}
    if queue is not None:
        gone = [
            _latest(of_cell)
            for cell, of_cell in zip(cells, tasks, strict=True)
            if cell.state in _OPEN and not _alive(of_cell, queue)
        ]
        arrays = {task.job_id.array for part in gone for task in part if task.job_id}
        known = memory(sorted(arrays, key=str)) if arrays else {}
    return [
        _with_speed(cell if queue is None else _joined(cell, of_cell, queue, known))
        for cell, of_cell in zip(cells, tasks, strict=True)
    ]


def _tasks_of(cell: CellState, submissions: Sequence[Submission]) -> Iterator[_Task]:
    """The array tasks that were ever submitted for a cell, oldest first."""
    for submission in submissions:
        if submission.folder.parents[1] != cell.paths.logs.parent:
            continue
        for one in submission.assignments:
            if one.script in submission.jobs and one.name == cell.paths.folder.name:
                yield _Task(submission, one.index, submission.task_id(one.index))


def _latest(tasks: Sequence[_Task]) -> list[_Task]:
    """Those of the newest submission."""
    return [task for task in tasks if task.submission == tasks[-1].submission]


def _alive(tasks: Sequence[_Task], queue: Queue) -> list[QueueEntry]:
    entries = (queue.get(task.job_id) for task in tasks if task.job_id)
    return [entry for entry in entries if entry is not None and not entry.is_hopeless]


def _joined(
    cell: CellState, tasks: Sequence[_Task], queue: Queue, memory: Mapping[JobId, ExitReason]
) -> CellState:
    if not tasks or cell.state is State.NOT_APPLICABLE:
        return cell
    submitted = tasks[-1].submission.submitted
    entries = _alive(tasks, queue)
    if entries and not _recorded_since(cell, submitted):
        return _in_queue(cell, entries)
    if _may_wait(cell, _latest(tasks)):
        return replace(cell, state=State.QUEUED, reason=tasks[-1].submission.unknown, log=None)
    if entries or cell.state not in _OPEN or _taken_over(cell, submitted):
        return cell
    return _dead(cell, _latest(tasks), queue, memory)


def _may_wait(cell: CellState, tasks: Sequence[_Task]) -> bool:
    """Whether a job may be there of which the queue's id is not known, and nothing else tells."""
    submitted = tasks[-1].submission.submitted
    return (
        any(task.is_unknown for task in tasks)
        and cell.state is not State.RUNNING
        and not _recorded_since(cell, submitted)
        and not _failed_since(cell, tasks)
        and not _taken_over(cell, submitted)
    )


def _in_queue(cell: CellState, entries: Sequence[QueueEntry]) -> CellState:
    running = [entry for entry in entries if entry.is_running]
    shown = running or entries
    limits = [entry.time_left_s for entry in running if entry.time_left_s is not None]
    facts = JobFacts(
        job_id=", ".join(str(entry.job_id) for entry in shown),
        node=", ".join(dict.fromkeys(e.node for e in running if e.node)) or None,
        elapsed_s=max((entry.elapsed_s for entry in running), default=None),
        limit_left_s=min(limits, default=None),
    )
    waits = ", ".join(dict.fromkeys(entry.reason for entry in entries if entry.reason))
    if running:
        return replace(cell, state=State.RUNNING, reason="", log=None, job=facts)
    reason = f"waits: {waits}" if waits else ""
    if cell.state in RECORDED | {State.STALE, State.INVALID}:
        reason = f"the record that stands ({cell.state.value}) is computed anew; {reason}"
    return replace(cell, state=State.QUEUED, reason=reason, log=None, job=facts)


def _dead(
    cell: CellState, tasks: Sequence[_Task], queue: Queue, memory: Mapping[JobId, ExitReason]
) -> CellState:
    """The cell of jobs that are gone without a record."""
    where, ended = "", ExitReason("")
    for task in tasks:
        shard = task.submission.assignments[task.index].shard
        if task.job_id in queue:  # it waits for a shard that failed
            continue
        ended = explain(task.job_id, task.submission.ended(task.index), memory)
        where, last = "" if shard is None else f"{shard}, ", task
        if not ended.by_itself:
            break
    else:
        last = tasks[0]
    own = cell.reason if cell.state is State.FAILED and _failed_since(cell, tasks) else ""
    # The run itself said why, which is closer than what the queue saw of it; but why a signal was
    # sent only the queue knows.
    if own and not (ended.by_slurm and own == TERMINATED):
        return replace(cell, log=cell.log or last.log)
    kept = f"; {cell.done} of {cell.total or '?'} requests kept" if cell.done else ""
    reason = f"{where}job {last.job_id}: {ended.reason}{kept}"
    return replace(cell, state=State.FAILED, reason=reason, log=last.log)


def _recorded_since(cell: CellState, submitted: datetime) -> bool:
    """Whether the record that stands was made after the submission, so that it is its outcome."""
    if cell.state not in RECORDED or cell.summary is None:
        return False
    return _is_after(cell.summary.provenance.get("finished"), submitted)


def _failed_since(cell: CellState, tasks: Sequence[_Task]) -> bool:
    submitted = tasks[-1].submission.submitted
    for part in (cell.paths, *cell.paths.shards()):
        with suppress(FdllmError):
            failure = read_failure(part)
            if failure is not None and _is_after(failure.time, submitted):
                return True
    return False


def _taken_over(cell: CellState, submitted: datetime) -> bool:
    """Whether somebody has gone on outside the queue since, so that the dead job is history."""
    try:
        sessions = read_progress(cell.paths).sessions
    except DamagedJournalError:
        return False
    return any(
        not session.get("slurm_job_id") and _is_after(session.get("started"), submitted)
        for session in sessions
    )


def _is_after(text: object, moment: datetime) -> bool:
    """Whether a time of a record, which knows no fractions of a second, is not before a moment."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return False
    return found >= moment.replace(microsecond=0)


def _with_speed(cell: CellState) -> CellState:
    """A cell at work, with its speed and what is left of it."""
    if cell.state is not State.RUNNING:
        return cell
    holder = holder_of(cell.paths)
    if cell.job is None:
        cell = replace(cell, reason=left_behind(cell.paths) or cell.reason)
    facts = cell.job or JobFacts(job_id=None, node=None if holder is None else holder.host)
    try:
        now = read_progress(cell.paths)
    except DamagedJournalError:
        return replace(cell, job=facts)
    left = None
    if now.done and now.total is not None:  # model time left, shared among those at work
        num_workers = len(facts.job_id.split(", ")) if facts.job_id else 1
        left = round(now.seconds / now.done * (now.total - now.done) / num_workers)
    facts = replace(facts, time_left_s=left, tokens_per_second=now.tokens_per_second)
    return replace(cell, job=facts, done=now.done or None, total=now.total)

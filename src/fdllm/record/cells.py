"""The states of a run, and what goes with them (docs/records.md section 3)."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any

from fdllm.core.config import Run
from fdllm.record.paths import RunPaths
from fdllm.record.summary import Summary


class State(enum.StrEnum):
    """What a cell is."""

    DONE = "done"
    PENDING = "pending"
    QUEUED = "queued"
    RUNNING = "running"
    PARTIAL = "partial"
    FAILED = "failed"
    STALE = "stale"
    INVALID = "invalid"
    NOT_APPLICABLE = "not-applicable"


SETTLED = frozenset({State.DONE, State.NOT_APPLICABLE})
"""States in which a sweep has nothing to do."""
BUSY = frozenset({State.RUNNING, State.QUEUED})
"""States in which somebody else does it."""


@dataclass(frozen=True)
class JobFacts:
    """What a queue says of a cell, and how fast it gets on.

    Attributes:
        job_id: ``12_3`` in the queue; several, comma-separated, where the run is split. None where
            no queue has it.
        node: the machines, comma-separated; None where it waits.
        elapsed_s: seconds since the job started; the longest of several.
        limit_left_s: seconds until the queue ends it; the shortest of several. None is unlimited.
        time_left_s: seconds of work left at the speed so far; None before the first answer.
        tokens_per_second: generated or scored tokens by model time, so far.
    """

    job_id: str | None
    node: str | None = None
    elapsed_s: int | None = None
    limit_left_s: int | None = None
    time_left_s: int | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class CellState:
    """A run and what has become of it.

    Attributes:
        run: the run.
        state: its state.
        reason: why, in a few words; empty where the state says it all.
        paths: its files.
        done: requests answered, where that is known.
        total: requests of the run, where that is known.
        log: log of the attempt that failed.
        summary: the record, where it is done or stale.
        job: what the queue says of it, where it was asked; see :mod:`fdllm.cluster.status`.
    """

    run: Run
    state: State
    reason: str
    paths: RunPaths
    done: int | None = None
    total: int | None = None
    log: str | None = None
    summary: Summary | None = None
    job: JobFacts | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        summary = self.summary if self.state is State.DONE else None
        return {
            "experiment": self.run.experiment,
            "task": self.run.task,
            "limit": self.run.limit,
            "config": self.run.cell.name,
            "model": self.run.model.name,
            "preset": None if self.run.preset is None else self.run.preset_words,
            "state": self.state.value,
            "reason": self.reason,
            "done": self.done,
            "total": self.total,
            "log": self.log,
            "job": None if self.job is None else asdict(self.job),
            "folder": str(self.paths.folder),
            "headline": None if summary is None else summary.headline.model_dump(),
            "metrics": None if summary is None else summary.metrics,
            "throughput": None if summary is None else summary.throughput.model_dump(),
            "saved_share": None if summary is None else summary.layer_calls.saved_share,
        }

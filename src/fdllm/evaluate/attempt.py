"""One attempt at a run: what was asked for, what it has computed, how it ended."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from fdllm.errors import FdllmError, first_line
from fdllm.evaluate.protocols import Part
from fdllm.plan import State
from fdllm.record.journal import Journal, write_failure
from fdllm.record.paths import RunPaths
from fdllm.record.summary import Summary
from fdllm.runs import Run


class Reporter(Protocol):
    """Told what a run does, for whoever watches."""

    def start(self, run: Run) -> None:
        """A run begins; its model may have to be loaded yet."""

    def begin(self, total: int, done: int) -> None:
        """Requests of the run, and how many the journal answers already."""

    def advance(self, entry: dict[str, Any]) -> None:
        """One more request is answered."""

    def note(self, text: str) -> None:
        """Something a person should know."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        run: the run.
        state: ``done``, ``failed``, ``partial`` (asked to end early; it goes on from there),
            ``running`` (somebody else has it) or ``not-applicable``.
        reason: why, where it is not done.
        log: the log of a failure.
        num_computed: requests computed by this attempt.
        seconds: wall clock of this attempt.
        summary: the record; None for a shard, which writes none.
    """

    run: Run
    state: State
    reason: str = ""
    log: str | None = None
    num_computed: int = 0
    seconds: float = 0.0
    summary: Summary | None = None


@dataclass
class Errand:
    """One call of :meth:`fdllm.evaluate.runner.Runner.run`.

    Attributes:
        run: the run.
        paths: its files, or a shard's.
        part: which documents, and until when.
        merge: shards whose answers make the record, computing none; None where it computes.
        force: everything is computed anew.
        started: when, by the monotonic clock.
        num_computed: requests computed so far.
    """

    run: Run
    paths: RunPaths
    part: Part
    merge: int | None = None
    force: bool = False
    started: float = field(default_factory=time.monotonic)
    num_computed: int = field(default=0, init=False)

    def outcome(
        self, state: State, reason: str, summary: Summary | None = None, log: str | None = None
    ) -> Outcome:
        """How it ended."""
        seconds = time.monotonic() - self.started
        return Outcome(self.run, state, reason, log, self.num_computed, seconds, summary)

    def failed(self, error: Exception) -> Outcome:
        """Keep the reason and the traceback, as far as the disk still takes them."""
        first = first_line(error, "no message")
        reason = first if isinstance(error, FdllmError) else f"{type(error).__name__}: {first}"
        log: str | None = None
        with suppress(FdllmError, OSError):
            path = self.paths.new_log()
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            log = str(path)
        write_failure(self.paths, reason, log)
        return self.outcome(State.FAILED, reason, log=log)


class Watch:
    """Stands between an evaluation and the journal: keeps what is used, warms up, reports.

    It is the :class:`~fdllm.evaluate.protocols.Store` and ``Progress`` of the evaluation.
    """

    def __init__(
        self, journal: Journal, reporter: Reporter, task: Errand, warm_up: Callable[[], None]
    ) -> None:
        self._journal = journal
        self._reporter = reporter
        self._task = task
        self._warm_up = warm_up
        self._used: dict[str, dict[str, Any]] = {}

    @property
    def used(self) -> list[dict[str, Any]]:
        """Answers this evaluation asked for: a journal may hold some of documents since gone."""
        return list(self._used.values())

    def get(self, key: str) -> dict[str, Any] | None:
        """The journal's answer, if it has one."""
        entry = self._journal.get(key)
        if entry is not None:
            self._used[key] = entry
        return entry

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an answer."""
        self._journal.put(key, entry)
        self._used[key] = entry
        self._task.num_computed += 1

    def begin(self, total: int, done: int) -> None:
        """Keep the total; where anything is left to compute, warm up outside the clock."""
        self._journal.set_total(total)
        if done < total and self._task.part.go_on():
            self._warm_up()
        self._reporter.begin(total, done)

    def advance(self, entry: dict[str, Any]) -> None:
        """One more."""
        self._reporter.advance(entry)

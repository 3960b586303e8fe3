"""One run, one record: lock, journal, evaluation, guards, files, in this order.

Whatever ends a run, nothing is lost: answers are durable as they come, the record is written last,
and an earlier record is moved aside, never overwritten.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from fdllm.config import ModelChoice, Run
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.protocols import Evaluation, Progress, Store
from fdllm.evaluate.recording import describe_strategy, fill_summary, write_record
from fdllm.evaluate.tasks import task_info
from fdllm.experiment import Unmask
from fdllm.plan import SETTLED, CellState, Planner, State
from fdllm.record.atomic import write_json
from fdllm.record.journal import DamagedJournalError, Journal
from fdllm.record.lock import LockedError, locked
from fdllm.record.paths import RunPaths
from fdllm.record.provenance import session, utc_now
from fdllm.record.summary import PeakMemory, Summary
from fdllm.reuse import ReuseStrategy

_RECORD_FILES = ("summary.json", "samples.jsonl", "results.json")


class Worker(Protocol):
    """A loaded model; :class:`fdllm.evaluate.machine.Machine` is one."""

    @property
    def n_layers(self) -> int:
        """Transformer layers of the model."""

    def facts(self) -> dict[str, str | int | None]:
        """What a session's provenance says of it."""

    def evaluate(
        self,
        run: Run,
        strategy: ReuseStrategy[Any],
        unmask: Unmask | None,
        store: Store,
        progress: Progress,
    ) -> Evaluation:
        """Ask the model a run's task."""

    def warm_up(self, run: Run, strategy: ReuseStrategy[Any]) -> None:
        """Decode something and forget it."""

    def peak_memory(self) -> PeakMemory:
        """Largest memory so far."""


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
        state: ``done``, ``failed``, ``running`` (somebody else has it) or ``not-applicable``.
        reason: why, where it is not done.
        log: the log of a failure.
        num_computed: requests computed by this attempt.
        seconds: wall clock of this attempt.
        summary: the record.
    """

    run: Run
    state: State
    reason: str = ""
    log: str | None = None
    num_computed: int = 0
    seconds: float = 0.0
    summary: Summary | None = None


class Runner:
    """Does runs one after the other, on one loaded model.

    Args:
        planner: says what a run is and how far it is.
        reporter: told about progress.
        load: loads a checkpoint; :meth:`fdllm.evaluate.machine.Machine.load` is one.
    """

    def __init__(
        self, planner: Planner, reporter: Reporter, load: Callable[[ModelChoice], Worker]
    ) -> None:
        self._planner = planner
        self._reporter = reporter
        self._load = load
        self._machines: dict[ModelChoice, Worker] = {}

    def run(self, run: Run, *, force: bool = False) -> Outcome:
        """Bring a run to its record; a record that stands already is left alone.

        Args:
            run: the run.
            force: move an existing record aside and compute everything anew.

        Raises:
            UsageError: the request makes no sense (a device that is not there, a model without a
                chat template); every run of the sweep would end the same way.
            FdllmError: the model cannot be loaded, or the results folder cannot be written.
        """
        started = time.monotonic()
        paths = self._planner.layout.run(run)
        try:
            with locked(paths):
                now = self._planner.state(run, mine=True)
                if now.state in SETTLED and not (force and now.state is State.DONE):
                    return Outcome(run, now.state, now.reason, summary=now.summary)
                self._reporter.start(run)
                machine = self._machine(run.model)
                self._clear(now, paths, force=force)
                return self._attempt(run, machine, paths, started)
        except LockedError as error:
            return Outcome(run, State.RUNNING, str(error.holder or "another process"))

    def _machine(self, choice: ModelChoice) -> Worker:
        """The loaded model; every run of a grid shares it."""
        if choice not in self._machines:
            self._machines.clear()  # two models do not fit one GPU
            self._machines[choice] = self._load(choice)
            self._planner.forget_model(choice)  # a Hub id's commit is known now
        return self._machines[choice]

    def _clear(self, now: CellState, paths: RunPaths, *, force: bool) -> None:
        """Move what must not be mixed with the new record aside."""
        paths.failed.unlink(missing_ok=True)
        if force or now.state is State.STALE:
            aside = paths.supersede()
        elif now.state is State.INVALID:
            aside = paths.supersede(*_RECORD_FILES)
        else:
            return
        if aside is not None:
            self._reporter.note(f"the earlier record ({now.state.value}) was moved to {aside}")

    def _attempt(self, run: Run, machine: Worker, paths: RunPaths, started: float) -> Outcome:
        strategy = self._planner.strategy(run, machine.n_layers)
        unmask = self._planner.experiment(run.experiment).unmask
        fresh = 0
        try:
            with self._open_journal(run, machine, paths) as journal:
                watch = _Watch(journal, self._reporter, lambda: machine.warm_up(run, strategy))
                try:
                    found = machine.evaluate(run, strategy, unmask, watch, watch)
                finally:
                    fresh = watch.num_computed
                summary = fill_summary(
                    run,
                    found,
                    watch.used,
                    kind=task_info(run.task).kind,
                    strategy=describe_strategy(run, strategy, machine.n_layers),
                    identity=self._planner.fingerprint(run),
                    peak_memory=machine.peak_memory(),
                    sessions=journal.sessions,
                )
                summary = write_record(paths, summary, found)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the cell's reason
            reason, log = self._fail(paths, error)
            return Outcome(run, State.FAILED, reason, log, fresh, time.monotonic() - started)
        seconds = time.monotonic() - started
        return Outcome(run, State.DONE, "", None, fresh, seconds, summary)

    def _open_journal(self, run: Run, machine: Worker, paths: RunPaths) -> Journal:
        identity = self._planner.fingerprint(run)
        asked = run.evaluating
        who = session(
            **machine.facts(),
            batch_size=asked.batch_size,
            score_batch_size=asked.score_batch_size,
        )
        try:
            return Journal(paths.journal, identity, who)
        except DamagedJournalError as error:
            aside = paths.supersede(paths.journal.name)
            self._reporter.note(f"{error}; it is now in {aside}")
            return Journal(paths.journal, identity, who)

    @staticmethod
    def _fail(paths: RunPaths, error: Exception) -> tuple[str, str | None]:
        """Keep the reason and the traceback, as far as the disk still takes them."""
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reason = first if isinstance(error, FdllmError) else f"{type(error).__name__}: {first}"
        log: str | None = None
        with suppress(FdllmError, OSError):
            path = paths.new_log()
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            log = str(path)
        with suppress(FdllmError):
            write_json(paths.failed, {"reason": reason, "log": log, "time": utc_now()})
        return reason, log


class _Watch:
    """Stands between an evaluation and the journal: keeps what is used, warms up, reports.

    It is the :class:`~fdllm.evaluate.protocols.Store` and ``Progress`` of the evaluation.
    """

    def __init__(self, journal: Journal, reporter: Reporter, warm_up: Callable[[], None]) -> None:
        self._journal = journal
        self._reporter = reporter
        self._warm_up = warm_up
        self._used: dict[str, dict[str, Any]] = {}
        self.num_computed = 0

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
        self.num_computed += 1

    def begin(self, total: int, done: int) -> None:
        """Keep the total; where anything is left to compute, warm up outside the clock."""
        self._journal.set_total(total)
        if done < total:
            self._warm_up()
        self._reporter.begin(total, done)

    def advance(self, entry: dict[str, Any]) -> None:
        """One more."""
        self._reporter.advance(entry)

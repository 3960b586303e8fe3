"""One run, one record: lock, journal, evaluation, guards, files, in this order.

Whatever ends a run, nothing is lost: answers are durable as they come, the record is written last,
and an earlier record is moved aside, never overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from fdllm.core.reuse import ReuseStrategy
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.attempt import Errand, Outcome, Reporter, Watch
from fdllm.evaluate.journals import merge_problem, open_journal
from fdllm.evaluate.protocols import (
    WHOLE,
    EndedEarly,
    Evaluation,
    Part,
    Progress,
    ShardAnswered,
    Store,
)
from fdllm.evaluate.recording import describe_strategy, fill_summary, write_record
from fdllm.evaluate.tasks import task_info
from fdllm.experiment import Unmask
from fdllm.plan import SETTLED, CellState, Planner, State
from fdllm.record.journal import Journal
from fdllm.record.lock import LockedError, holder_of, locked
from fdllm.record.provenance import session
from fdllm.record.summary import PeakMemory
from fdllm.runs import Evaluating, ModelChoice, Run
from fdllm.shard import Shard

__all__ = ["Outcome", "Reporter", "Runner", "Worker"]

_RECORD_FILES = ("summary.json", "samples.jsonl", "results.json")


class Worker(Protocol):
    """A loaded model; :class:`fdllm.evaluate.machine.Machine` is one."""

    @property
    def n_layers(self) -> int:
        """Transformer layers of the model."""

    def facts(self, asked: Evaluating) -> dict[str, str | int | None]:
        """What a session's provenance says of it."""

    def evaluate(
        self,
        run: Run,
        strategy: ReuseStrategy[Any],
        unmask: Unmask | None,
        store: Store,
        progress: Progress,
        *,
        part: Part = WHOLE,
    ) -> Evaluation:
        """Ask the model a run's task.

        Raises:
            EndedEarly: ``part`` said that no further request may be begun.
            ShardAnswered: ``part`` is a shard, and all of it is answered.
        """

    def warm_up(self, run: Run, strategy: ReuseStrategy[Any]) -> None:
        """Decode something and forget it."""

    def peak_memory(self) -> PeakMemory:
        """Largest memory so far."""


class Runner:
    """Does runs one after the other, on one loaded model.

    Args:
        planner: says what a run is and how far it is.
        reporter: told about progress.
        load: loads a checkpoint; :meth:`fdllm.evaluate.machine.Machine.load` is one.
        go_on: asked before a request is begun; a no ends the run once those in flight are kept.
    """

    def __init__(
        self,
        planner: Planner,
        reporter: Reporter,
        load: Callable[[ModelChoice], Worker],
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._planner = planner
        self._reporter = reporter
        self._load = load
        self._go_on = go_on
        self._machines: dict[ModelChoice, Worker] = {}

    def run(
        self,
        run: Run,
        *,
        force: bool = False,
        shard: Shard | None = None,
        merge: int | None = None,
    ) -> Outcome:
        """Bring a run to its record; a record that stands already is left alone.

        Args:
            run: the run.
            force: move an existing record aside and compute everything anew. A shard never moves
                what belongs to the whole run: it only answers although a record stands.
            shard: answer this part of the documents and write no record.
            merge: make the record from the answers of that many shards, computing none.

        Raises:
            UsageError: the request makes no sense (a device that is not there, a model without a
                chat template); every run of the sweep would end the same way.
            FdllmError: the model cannot be loaded, or the results folder cannot be written.
        """
        whole = self._planner.layout.run(run)
        # A merge begins no request: what the shards have not answered keeps it from its record.
        part = Part(shard, self._go_on) if merge is None else Part(None, lambda: False)
        task = Errand(run, whole.of_shard(shard), part, merge, force)
        try:
            with locked(task.paths):
                now = self._planner.state(run, mine=True)
                if now.state in SETTLED and not (force and now.state is State.DONE):
                    return Outcome(run, now.state, now.reason, summary=now.summary)
                # Each side looks for the other behind its own lock, so one of them sees it.
                others = whole.shards() if shard is None else [whole]
                for other in others:
                    holder = holder_of(other)
                    if holder is not None:
                        return Outcome(run, State.RUNNING, f"{other.shard or 'whole'}: {holder}")
                return self._do(task, now)
        except LockedError as error:
            return Outcome(run, State.RUNNING, str(error.holder or "another process"))

    def _do(self, task: Errand, now: CellState) -> Outcome:
        self._reporter.start(task.run)
        if not self._go_on():
            return task.outcome(State.PARTIAL, "asked to end before it began")
        if task.merge is not None:
            problem = merge_problem(task.paths, task.merge)
            if problem:
                return task.failed(FdllmError(problem))
        machine = self._machine(task.run.model)
        self._clear(now, task)
        return self._attempt(task, machine)

    def _machine(self, choice: ModelChoice) -> Worker:
        """The loaded model; every run of a grid shares it."""
        if choice not in self._machines:
            self._machines.clear()  # two models do not fit one GPU
            self._machines[choice] = self._load(choice)
            self._planner.forget_model(choice)  # a Hub id's commit is known now
        return self._machines[choice]

    def _clear(self, now: CellState, task: Errand) -> None:
        """Move what must not be mixed with the new record aside."""
        paths = task.paths
        paths.failed.unlink(missing_ok=True)
        if paths.shard is not None:
            return
        if task.merge is not None and (task.force or now.state in (State.STALE, State.INVALID)):
            aside = paths.supersede(*_RECORD_FILES, paths.journal.name)
        elif task.force or now.state is State.STALE:
            aside = paths.supersede()
        elif now.state is State.INVALID:
            aside = paths.supersede(*_RECORD_FILES)
        else:
            return
        if aside is not None:
            self._reporter.note(f"the earlier record ({now.state.value}) was moved to {aside}")

    def _attempt(self, task: Errand, machine: Worker) -> Outcome:
        run = task.run
        strategy = self._planner.strategy(run, machine.n_layers)
        unmask = self._planner.experiment(run.experiment).unmask
        try:
            with self._journal(task, machine) as journal:
                watch = Watch(journal, self._reporter, task, lambda: machine.warm_up(run, strategy))
                found = machine.evaluate(run, strategy, unmask, watch, watch, part=task.part)
                summary = fill_summary(
                    run,
                    found,
                    watch.used,
                    kind=task_info(run.task).kind,
                    strategy=describe_strategy(run, strategy, machine.n_layers),
                    identity=self._planner.fingerprint(run).known(),
                    peak_memory=machine.peak_memory(),
                    sessions=journal.sessions,
                )
                summary = write_record(task.paths, summary, found)
        except ShardAnswered:
            return task.outcome(State.DONE, f"{task.paths.shard} answered")
        except EndedEarly as error:
            if task.merge is not None:
                problem = merge_problem(task.paths, task.merge) or "the rest is of another version"
                return task.failed(FdllmError(f"{error} are there: {problem}"))
            return task.outcome(State.PARTIAL, f"asked to end early, {error} kept")
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the cell's reason
            return task.failed(error)
        for part in task.paths.shards():  # their answers are in the run's own journal
            part.journal.unlink(missing_ok=True)
            part.failed.unlink(missing_ok=True)
        return task.outcome(State.DONE, "", summary)

    def _journal(self, task: Errand, machine: Worker) -> Journal:
        facts = machine.facts(task.run.evaluating)
        if task.paths.shard is not None:
            facts["shard"] = str(task.paths.shard)
        who = session(**facts)
        identity = self._planner.fingerprint(task.run).known()
        return open_journal(task.paths, identity, who, self._reporter.note, fresh=task.force)

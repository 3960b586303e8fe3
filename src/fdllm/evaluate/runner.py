"""One run, one record: lock, journal, evaluation, guards, files, in this order.

Whatever ends a run, nothing is lost: answers are durable as they come, the record is written last,
and an earlier record is moved aside, never overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fdllm.core.reuse import ReuseStrategy
from fdllm.criteria import criteria_text
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.attempt import (
    EndedEarly,
    Part,
    Reporter,
    RunAttempt,
    RunOutcome,
    ShardAnswered,
)
from fdllm.evaluate.recording import describe_strategy, fill_summary, write_record
from fdllm.plan import ENDED, RECORDED, SETTLED, CellState, Planner, State
from fdllm.record.journal import DamagedJournalError, read_progress
from fdllm.record.lock import LockedError, holder_of, locked
from fdllm.record.paths import COLUMNS, SAMPLES
from fdllm.record.provenance import session
from fdllm.record.summary import Summary
from fdllm.runs import ModelChoice, Run
from fdllm.shard import Shard
from fdllm.until_decided import UntilDecided, looks_of

if TYPE_CHECKING:
    from fdllm.evaluate.adapter import LoadedModel

_RECORD_FILES = ("summary.json", SAMPLES, "results.json", COLUMNS)


class Runner:
    """Does runs one after the other, on one loaded model.

    Args:
        planner: says what a run is and how far it is.
        reporter: told about progress.
        load: loads a checkpoint, see :meth:`fdllm.evaluate.adapter.LoadedModel.load`.
        go_on: asked before a request is begun; a no ends the run once those in flight are kept.
    """

    def __init__(
        self,
        planner: Planner,
        reporter: Reporter,
        load: Callable[[ModelChoice], LoadedModel],
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self._planner = planner
        self._reporter = reporter
        self._load = load
        self._go_on = go_on
        self._models: dict[ModelChoice, LoadedModel] = {}

    def run(
        self,
        run: Run,
        *,
        force: bool = False,
        shard: Shard | None = None,
        merge: int | None = None,
        until: UntilDecided | None = None,
    ) -> RunOutcome:
        """Bring a run to its record; a record that stands already is left alone.

        Args:
            run: the run.
            force: move an existing record aside and compute everything anew. A shard never moves
                what belongs to the whole run: it only answers although a record stands.
            shard: answer this part of the documents and write no record.
            merge: make the record from the answers of that many shards, computing none.
            until: end where the criteria are decided; a record that ended there is left alone.
                None goes on with it to the last document.

        Raises:
            UsageError: the request makes no sense (a device that is not there, a model without a
                chat template); every run of the sweep would end the same way.
            FdllmError: the model cannot be loaded, or the results folder cannot be written.
        """
        whole = self._planner.layout.run(run)
        # A merge begins no request: what the shards have not answered keeps it from its record.
        looks = None if until is None else looks_of(self._planner, run, until)
        part = Part(shard, self._go_on, looks) if merge is None else Part(None, lambda: False)
        attempt = RunAttempt(run, whole.of_shard(shard), part, merge, force)
        try:
            with locked(attempt.paths):
                now = self._planner.state(run, mine=True)
                settled = now.state in (SETTLED if until is None else ENDED)
                if settled and not (force and now.state in RECORDED):
                    return RunOutcome(run, now.state, now.reason, summary=now.summary)
                # Each side looks for the other behind its own lock, so one of them sees it.
                others = whole.shards() if shard is None else [whole]
                for other in others:
                    holder = holder_of(other)
                    if holder is not None:
                        return RunOutcome(run, State.RUNNING, f"{other.shard or 'whole'}: {holder}")
                return self._attempt(attempt, now)
        except LockedError as error:
            return RunOutcome(run, State.RUNNING, str(error))

    def _attempt(self, attempt: RunAttempt, now: CellState) -> RunOutcome:
        run = attempt.run
        self._reporter.start(run)
        if not self._go_on():
            return attempt.outcome(State.PARTIAL, "asked to end before it began")
        try:
            if not attempt.force and now.state is not State.STALE:
                read_progress(attempt.paths)  # a damaged journal is refused ahead of any change
            problem = attempt.merge_problem()
        except DamagedJournalError as error:
            problem = str(error)
        if problem:
            return attempt.failed(FdllmError(problem))
        model = self._model(run.model)
        self._clear(now, attempt)
        strategy = self._planner.strategy(run, model.n_layers)
        try:
            summary = self._record(attempt, model, strategy)
        except ShardAnswered:
            return attempt.outcome(State.DONE, f"{attempt.paths.shard} answered")
        except EndedEarly as error:
            return attempt.ended_early(error)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the cell's reason
            return attempt.failed(error)
        for part in attempt.paths.shards():  # their answers are in the run's own journal
            part.journal.unlink(missing_ok=True)
            part.failed.unlink(missing_ok=True)
        found = summary.decided
        state, reason = (State.DECIDED, found.words) if found else (State.DONE, "")
        return attempt.outcome(state, reason, summary)

    def _record(
        self, attempt: RunAttempt, model: LoadedModel, strategy: ReuseStrategy[Any]
    ) -> Summary:
        """Evaluate, and write the record; answers that are there already are not computed again."""
        run = attempt.run
        identity = self._planner.fingerprint(run).known()
        criteria = self._planner.experiment(run.experiment).settings.criteria
        facts = model.facts(run.evaluating) | {"criteria": criteria_text(criteria)}
        if attempt.paths.shard is not None:
            facts["shard"] = str(attempt.paths.shard)
        with attempt.open_journal(identity, session(**facts), self._reporter.note) as journal:
            found = model.evaluate(
                run,
                journal,
                self._reporter,
                strategy=strategy,
                unmask=self._planner.experiment(run.experiment).unmask,
                part=attempt.part,
            )
            summary = fill_summary(
                run,
                found,
                strategy=describe_strategy(run, strategy, model.n_layers),
                identity=identity,
                peak_memory=model.peak_memory(),
                journal=journal.content,
            )
            return write_record(attempt.paths, summary, found)

    def _model(self, choice: ModelChoice) -> LoadedModel:
        """The loaded model; every run of a grid shares it."""
        if choice not in self._models:
            self._models.clear()  # two models do not fit one GPU
            self._models[choice] = self._load(choice)
            self._planner.forget_model(choice)  # a Hub id's commit is known now
        return self._models[choice]

    def _clear(self, now: CellState, attempt: RunAttempt) -> None:
        """Move what must not be mixed with the new record aside."""
        paths = attempt.paths
        paths.failed.unlink(missing_ok=True)
        if paths.shard is not None:
            return
        if attempt.merge is not None and (
            attempt.force or now.state in (State.STALE, State.INVALID)
        ):
            aside = paths.supersede(*_RECORD_FILES, paths.journal.name)
        elif attempt.force or now.state is State.STALE:
            aside = paths.supersede()
        elif now.state is State.INVALID or paths.summary.exists():  # its answers are still good
            aside = paths.supersede(*_RECORD_FILES)
        else:
            return
        if aside is not None:
            self._reporter.note(f"the earlier record ({now.state.value}) was moved to {aside}")

"""From a sweep to its runs, their fingerprints and states (docs/records.md section 3). No torch."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fdllm.applicable import repeats
from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.subsets import subset_overlaps
from fdllm.criteria import criteria_lock, criteria_text
from fdllm.errors import FdllmError
from fdllm.experiment import Experiment, load_experiment
from fdllm.record.identity import (
    SCHEMA,
    Fingerprint,
    ModelIdentity,
    digest_of,
    locked_versions,
    model_identity,
    source_hashes,
    strategy_words,
)
from fdllm.record.journal import DamagedJournalError, RunProgress, read_failure, read_progress
from fdllm.record.lock import holder_of
from fdllm.record.paths import Layout, RunPaths
from fdllm.record.summary import Decided, InvalidRecordError, Summary, read_summary
from fdllm.runs import Cell, ModelChoice, Run, Sweep
from fdllm.task_facts import TaskFacts

_ANY_DEPTH = 28  # layers of the published model, where a checkpoint's are not known here


class State(enum.StrEnum):
    """What a cell is."""

    DONE = "done"
    DECIDED = "decided"  # ended where its criteria were decided, before its last document
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
RECORDED = frozenset({State.DONE, State.DECIDED})
"""States with a record that may stand in a table."""
ENDED = SETTLED | RECORDED
"""States in which nothing is left to do, unless every row of what is decided is wanted."""
BUSY = frozenset({State.RUNNING, State.QUEUED})
"""States in which somebody else does it."""


@dataclass(frozen=True)
class JobFacts:
    """What a queue says of a cell, and how fast it gets on."""

    # ``12_3`` in the queue; several, comma-separated, where the run is split. None where no queue
    # has it.
    job_id: str | None
    node: str | None = None  # the machines, comma-separated; None where it waits
    elapsed_s: int | None = None  # seconds since the job started; the longest of several
    # seconds until the queue ends it; the shortest of several. None is unlimited.
    limit_left_s: int | None = None
    # seconds of work left at the speed so far; None before the first answer
    time_left_s: int | None = None
    tokens_per_second: float | None = None  # generated or scored tokens by model time, so far


@dataclass(frozen=True)
class CellState:
    """A run and what has become of it."""

    run: Run
    state: State
    reason: str  # why, in a few words; empty where the state says it all
    paths: RunPaths  # its files
    done: int | None = None  # requests answered, where that is known
    total: int | None = None  # requests of the run, where that is known
    log: str | None = None  # log of the attempt that failed
    summary: Summary | None = None  # the record, where it is done, decided or stale
    # what the queue says of it, where it was asked; see :mod:`fdllm.cluster.status`
    job: JobFacts | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        summary = self.summary if self.state in RECORDED else None
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


class Planner:
    """Answers what a sweep consists of and how far it is.

    Experiments and tasks are asked for by name, found once, and a UsageError where there is none.

    Args:
        root: the checkout.
        layout: where records lie.
        facts: what is known of a task by its name.
    """

    def __init__(self, root: Path, layout: Layout, facts: Callable[[str], TaskFacts]) -> None:
        self.root = root
        self.layout = layout
        self.experiment: Callable[[str], Experiment] = cache(partial(load_experiment, root=root))
        self.task: Callable[[str], TaskFacts] = cache(facts)
        self._models: dict[ModelChoice, ModelIdentity] = {}

    def runs(self, sweep: Sweep) -> list[Run]:
        """The runs of a sweep: tasks one after the other, each in the order of the grid.

        Raises:
            UsageError: an experiment, task or config is unknown.
        """
        experiment = self.experiment(sweep.experiment)
        chosen = [experiment.cell(name) for name in dict.fromkeys(sweep.configs)]
        cells = [cell for cell in experiment.cells if not chosen or cell in chosen]
        for task in sweep.tasks:
            self.task(task)
        return [
            self._run(sweep, task, experiment, cell)
            for task in dict.fromkeys(sweep.tasks)
            for cell in cells
        ]

    def run(self, sweep: Sweep, task: str, config: str) -> Run:
        """One run of a sweep's experiment, whether or not the sweep selects its config.

        Raises:
            UsageError: the task or config is unknown.
        """
        experiment = self.experiment(sweep.experiment)
        return self._run(sweep, task, experiment, experiment.cell(config))

    def _run(self, sweep: Sweep, task: str, experiment: Experiment, cell: Cell) -> Run:
        self.task(task).check_headline(task, sweep.asked(task).headline)
        return Run(
            experiment=sweep.experiment,
            task=task,
            cell=cell,
            model=sweep.model,
            limit=sweep.limit,
            decoding=experiment.decoding(cell, self.task(task).max_new_tokens, sweep.preset, task),
            evaluating=sweep.asked(task),
            subset_size=experiment.settings.reuse.subset_size,
            params=experiment.params(cell),
            preset=None if sweep.preset is None else sweep.preset.name,
            departures=sweep.departures(task),
            exceptions=() if sweep.preset is None else sweep.preset.exceptions,
            code_execution=sweep.code_execution,
            include=sweep.include,
        )

    def model(self, choice: ModelChoice) -> ModelIdentity:
        """A checkpoint's identity, found once; :meth:`forget_model` where a download changed it."""
        if choice not in self._models:
            self._models[choice] = model_identity(choice)
        return self._models[choice]

    def forget_model(self, choice: ModelChoice) -> None:
        """Look a checkpoint up again when it is next asked for."""
        self._models.pop(choice, None)

    def strategy(self, run: Run, n_layers: int) -> ReuseStrategy[Any]:
        """The strategy of a run on a model of ``n_layers`` layers."""
        values = {
            "k": run.cell.k,
            "subset": run.cell.subset,
            "n_layers": n_layers,
            "subset_size": run.subset_size,
            "params": run.params,
        }
        config = StrategyConfig.read(values, f"config '{run.cell.name}'")
        return self.experiment(run.experiment).strategy(config)

    def reuses(self, run: Run) -> bool:
        """Whether a run's strategy may skip a layer."""
        return self.strategy(run, self.model(run.model).n_layers or _ANY_DEPTH).reuses

    def are_twins(self, run: Run, other: Run) -> bool:
        """Whether both reuse nothing under one decoding, so that they are one computation."""
        return run.decoding == other.decoding and not (self.reuses(run) or self.reuses(other))

    def overlaps(self, sweep: Sweep) -> list[tuple[str, str, int]]:
        """Subsets of the grid that share layers, with how many; empty where that is unknown."""
        experiment = self.experiment(sweep.experiment)
        n_layers = self.model(sweep.model).n_layers
        used = {cell.subset for cell in experiment.cells}
        if n_layers is None:
            return []
        pairs = subset_overlaps(n_layers, experiment.settings.reuse.subset_size)
        return [pair for pair in pairs if {pair[0], pair[1]} <= used]

    def fingerprint(self, run: Run) -> Fingerprint:
        """The identity of a run, as far as this machine knows it."""
        experiment, task = self.experiment(run.experiment), self.task(run.task)
        model = self.model(run.model)
        code = {f"experiments/{run.experiment}/{name}": h for name, h in experiment.code.items()}
        asked = run.evaluating
        scored = task.kind == "loglikelihood"
        invalid = ", allowed where invalid" if asked.allow_invalid else ""
        return Fingerprint(
            fields={
                "schema": SCHEMA,
                "source": digest_of(source_hashes()),
                "experiment": digest_of(code),
                "lock": locked_versions(),
                "model": model.name,
                "revision": model.revision,
                "task": task.definition,
                "decoding": run.decoding.words,
                "strategy": self._strategy_text(run, model.n_layers),
                "dtype": run.model.dtype,
                "limit": "all" if run.limit is None else str(run.limit),
                "scoring": asked.scoring + invalid if scored else "none",
                "preset": run.preset_words,
            }
            | asked.identity(),
            files=source_hashes() | code,
        )

    def _strategy_text(self, run: Run, n_layers: int | None) -> str | None:
        if n_layers is None:
            return None
        strategy = self.strategy(run, n_layers)
        return strategy_words(repr(strategy), strategy.layer_subset(n_layers), n_layers)

    def state(self, run: Run, *, mine: bool = False) -> CellState:
        """What has become of a run. Only files are read; nothing is changed.

        Args:
            run: the run.
            mine: this process holds the run's lock, so nobody else is at work.
        """
        paths = self.layout.run(run)
        why_not = self.not_applicable(run)
        if why_not:
            return CellState(run, State.NOT_APPLICABLE, why_not, paths)
        at_work = "" if mine else _at_work(paths)
        if at_work:
            return self._unfinished(run, paths, State.RUNNING, at_work)
        if os.path.lexists(paths.summary):  # a link that leads nowhere is no pending run
            return self._recorded(run, paths)
        return self._failed(run, paths) or self._unfinished(
            run, paths, State.PENDING, "not run yet"
        )

    def shown(self, cell: CellState) -> CellState:
        """What there is to read of a run: where nothing of it is here, what git keeps of it.

        A sweep goes by :meth:`state`: what git keeps has no samples, so it does not stand for them.
        """
        published = cell.paths.published
        if cell.state is not State.PENDING or cell.paths.folder.exists():
            return cell
        if not os.path.lexists(published.summary):
            return cell
        return self._recorded(cell.run, published, published=True)

    def not_applicable(self, run: Run) -> str:
        """Why a run could only repeat another cell's result; empty where it has one of its own."""
        task, experiment = self.task(run.task), self.experiment(run.experiment)
        criteria = experiment.settings.criteria
        if task.kind == "loglikelihood":
            repeated = repeats(
                run.cell,
                experiment.cells,
                run.evaluating.scoring,
                one_token=task.one_token,
                baseline=None if criteria is None else criteria.baseline,
            )
            if repeated:
                return repeated
        return "" if run.decoding.use_block_cache else self._only_refreshes(run)

    def _only_refreshes(self, run: Run) -> str:
        """Why a run without the block cache reuses nothing; empty where it may."""
        strategy = self.strategy(run, self.model(run.model).n_layers or _ANY_DEPTH)
        if strategy.refresh_reuse or not strategy.reuses:
            return ""
        return (
            "without the block cache every step is a REFRESH, in which this strategy never reuses; "
            "the cells of k=1 stand for it"
        )

    def _recorded(self, run: Run, paths: RunPaths, *, published: bool = False) -> CellState:
        try:
            summary = read_summary(paths.summary, published=published)
        except InvalidRecordError as error:
            return CellState(run, State.INVALID, str(error), paths)
        identity = (summary.experiment, summary.task, summary.config, summary.limit)
        if identity != (run.experiment, run.task, run.cell.name, run.limit):
            reason = f"summary.json is of another run: {' / '.join(map(str, identity))}"
            return CellState(run, State.INVALID, reason, paths)
        origin = ["from artifacts"] if published else []
        changed = self.fingerprint(run).differences(summary.fingerprint.whole)
        if changed:
            reason = "; ".join([*origin, *changed])
            return CellState(run, State.STALE, reason, paths, summary=summary)
        if summary.decided is not None:
            return self._decided(run, paths, summary, summary.decided, origin)
        number = summary.num_requests
        marks = "; ".join([*origin, *summary.warnings])
        return CellState(run, State.DONE, marks, paths, number, number, summary=summary)

    def _decided(
        self, run: Run, paths: RunPaths, summary: Summary, found: Decided, marks: list[str]
    ) -> CellState:
        """A record that ended early stands as long as the criteria that it decided."""
        now = criteria_lock(criteria_text(self.experiment(run.experiment).settings.criteria))
        if now != found.criteria:
            reason = f"decided {found.documents} of {found.of} by criteria that have changed since"
            return self._unfinished(run, paths, State.PARTIAL, reason)
        done, whole = summary.num_requests, round(summary.num_requests * found.of / found.documents)
        reason = "; ".join([*marks, found.words, *summary.warnings])
        return CellState(run, State.DECIDED, reason, paths, done, whole, summary=summary)

    def _failed(self, run: Run, paths: RunPaths) -> CellState | None:
        """The cell, where the last attempt at the run or at a shard of it left a reason."""
        for part in (paths, *paths.shards()):
            try:
                failure = read_failure(part)
            except FdllmError as error:
                return CellState(run, State.INVALID, str(error), paths)
            if failure is not None:
                where = "" if part.shard is None else f"{part.shard}: "
                kept = self._unfinished(run, paths, State.FAILED, where + failure.reason)
                return replace(kept, log=failure.log)
        return None

    def _unfinished(self, run: Run, paths: RunPaths, state: State, reason: str) -> CellState:
        """A cell without a record: as far as its journals are."""
        try:
            now = read_progress(paths)
        except DamagedJournalError as error:
            return CellState(run, State.INVALID, str(error), paths)
        if state is State.PENDING and now.fingerprint is not None:
            changed = "; ".join(self.fingerprint(run).differences(now.fingerprint))
            if changed:
                return CellState(run, State.STALE, f"unfinished, and since then {changed}", paths)
            if now.done:
                return CellState(run, State.PARTIAL, _progress(now), paths, now.done, now.total)
        return CellState(run, state, reason, paths, now.done or None, now.total)


def _at_work(paths: RunPaths) -> str:
    """Who works on a run or on shards of it now; empty where nobody does."""
    found = []
    for part in (paths, *paths.shards()):
        holder = holder_of(part)
        if holder is not None:
            found.append(f"{holder}" if part.shard is None else f"{part.shard}: {holder}")
    return "; ".join(found)


def _progress(now: RunProgress) -> str:
    finished = ", the record is missing" if now.done == now.total else ""
    return f"{now.done} of {now.total or '?'} requests{finished}"

"""From a sweep to its runs, their fingerprints and states. No torch, nothing is changed."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fdllm.config import Cell, ModelChoice, Run, StrategyConfig, Sweep
from fdllm.experiment import Experiment, load_experiment
from fdllm.record.fingerprint import SCHEMA, Fingerprint, digest_of
from fdllm.record.identity import ModelIdentity, locked_versions, model_identity, source_hashes
from fdllm.record.journal import DamagedJournalError, JournalContent, read_journal
from fdllm.record.lock import holder_of
from fdllm.record.paths import Layout, RunPaths
from fdllm.record.summary import InvalidRecordError, Summary, read_summary
from fdllm.reuse import ReuseStrategy, subset_overlaps


class State(enum.StrEnum):
    """What a cell is (DESIGN section 6)."""

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
class TaskFacts:
    """What planning needs to know of a task.

    Attributes:
        kind: what the task asks of a model.
        definition: content hash of its definition.
        max_new_tokens: new tokens of an answer at most, where the experiment states no number.
    """

    kind: Literal["generate", "loglikelihood"]
    definition: str
    max_new_tokens: int = 512


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
    """

    run: Run
    state: State
    reason: str
    paths: RunPaths
    done: int | None = None
    total: int | None = None
    log: str | None = None
    summary: Summary | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        summary = self.summary if self.state is State.DONE else None
        return {
            "experiment": self.run.experiment,
            "task": self.run.task,
            "limit": self.run.limit,
            "config": self.run.cell.name,
            "model": self.run.model.name,
            "state": self.state.value,
            "reason": self.reason,
            "done": self.done,
            "total": self.total,
            "log": self.log,
            "folder": str(self.paths.folder),
            "headline": None if summary is None else summary.headline.model_dump(),
            "throughput": None if summary is None else summary.throughput.model_dump(),
            "saved_share": None if summary is None else summary.layer_calls.saved_share,
        }


class Planner:
    """Answers what a sweep consists of and how far it is.

    Args:
        root: the checkout.
        layout: where records lie.
        facts: what is known of a task by its name; raises UsageError for an unknown one.
    """

    def __init__(self, root: Path, layout: Layout, facts: Callable[[str], TaskFacts]) -> None:
        self.root = root
        self.layout = layout
        self._facts = facts
        self._tasks: dict[str, TaskFacts] = {}
        self._experiments: dict[str, Experiment] = {}
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

    def _run(self, sweep: Sweep, task: str, experiment: Experiment, cell: Cell) -> Run:
        return Run(
            experiment=sweep.experiment,
            task=task,
            cell=cell,
            model=sweep.model,
            limit=sweep.limit,
            decoding=experiment.decoding(cell, self.task(task).max_new_tokens),
            evaluating=sweep.evaluating,
            subset_size=experiment.settings.reuse.subset_size,
            params=experiment.params(cell),
        )

    def experiment(self, name: str) -> Experiment:
        """An experiment, read once."""
        if name not in self._experiments:
            self._experiments[name] = load_experiment(name, self.root)
        return self._experiments[name]

    def task(self, name: str) -> TaskFacts:
        """A task's facts, found once."""
        if name not in self._tasks:
            self._tasks[name] = self._facts(name)
        return self._tasks[name]

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
        config = StrategyConfig(
            k=run.cell.k,
            subset=run.cell.subset,
            n_layers=n_layers,
            subset_size=run.subset_size,
            params=run.params,
        )
        return self.experiment(run.experiment).strategy(config)

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
                "decoding": ", ".join(f"{k}={v}" for k, v in sorted(run.decoding)),
                "strategy": self._strategy_text(run, model.n_layers),
                "dtype": run.model.dtype,
                "limit": "all" if run.limit is None else str(run.limit),
                "seed": str(asked.seed),
                "scoring": asked.scoring + invalid if scored else "none",
                "num_fewshot": str(asked.num_fewshot),
                "chat_template": str(asked.chat_template),
            },
            files=source_hashes() | code,
        )

    def _strategy_text(self, run: Run, n_layers: int | None) -> str | None:
        if n_layers is None:
            return None
        strategy = self.strategy(run, n_layers)
        layers = " ".join(map(str, strategy.layer_subset(n_layers)))
        parameters = repr(strategy).replace("(", ", ", 1).removesuffix(")")
        return f"{parameters}, layers {layers} of {n_layers}"

    def state(self, run: Run, *, mine: bool = False) -> CellState:
        """What has become of a run. Only files are read; nothing is changed.

        Args:
            run: the run.
            mine: this process holds the run's lock, so nobody else is at work.
        """
        paths = self.layout.run(run)
        if not self.is_applicable(run):
            first = self.experiment(run.experiment).cells[0].name
            reason = f"one forward, so reuse cannot act; {first} stands for the whole grid"
            return CellState(run, State.NOT_APPLICABLE, reason, paths)
        holder = None if mine else holder_of(paths)
        if holder is not None:
            return self._unfinished(run, paths, State.RUNNING, str(holder))
        if paths.summary.exists():
            return self._recorded(run, paths)
        if paths.failed.exists():
            return self._failed(run, paths)
        return self._unfinished(run, paths, State.PENDING, "not run yet")

    def is_applicable(self, run: Run) -> bool:
        """Whether a run can differ from the grid's first cell (DESIGN section 5)."""
        one_forward = run.evaluating.scoring == "first-token"
        scored = self.task(run.task).kind == "loglikelihood"
        first = self.experiment(run.experiment).cells[0]
        return not (one_forward and scored) or run.cell.name == first.name

    def _recorded(self, run: Run, paths: RunPaths) -> CellState:
        try:
            summary = read_summary(paths.summary)
        except InvalidRecordError as error:
            return CellState(run, State.INVALID, str(error), paths)
        identity = (summary.experiment, summary.task, summary.config, summary.limit)
        if identity != (run.experiment, run.task, run.cell.name, run.limit):
            reason = f"summary.json is of another run: {' / '.join(map(str, identity))}"
            return CellState(run, State.INVALID, reason, paths)
        changed = self.fingerprint(run).differences(summary.fingerprint)
        if changed:
            return CellState(run, State.STALE, "; ".join(changed), paths, summary=summary)
        number = summary.num_requests
        return CellState(run, State.DONE, "", paths, number, number, summary=summary)

    def _failed(self, run: Run, paths: RunPaths) -> CellState:
        try:
            data = json.loads(paths.failed.read_text(encoding="utf-8"))
            reason, log = str(data["reason"]), data.get("log")
        except (OSError, ValueError, KeyError, TypeError):
            return CellState(run, State.INVALID, "failed.json cannot be read", paths)
        kept = self._unfinished(run, paths, State.FAILED, reason)
        return CellState(run, State.FAILED, reason, paths, kept.done, kept.total, log)

    def _unfinished(self, run: Run, paths: RunPaths, state: State, reason: str) -> CellState:
        """A cell without a record: as far as its journal is."""
        try:
            journal = read_journal(paths.journal)
        except DamagedJournalError as error:
            return CellState(run, State.INVALID, str(error), paths)
        done, total = len(journal.entries), journal.total
        if state is State.PENDING and journal.fingerprint is not None:
            changed = "; ".join(self.fingerprint(run).differences(journal.fingerprint))
            if changed:
                return CellState(run, State.STALE, f"unfinished, and since then {changed}", paths)
            if done:
                return CellState(run, State.PARTIAL, _progress(journal), paths, done, total)
        return CellState(run, state, reason, paths, done or None, total)


def _progress(journal: JournalContent) -> str:
    finished = ", the record is missing" if len(journal.entries) == journal.total else ""
    return f"{len(journal.entries)} of {journal.total or '?'} requests{finished}"

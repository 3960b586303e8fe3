"""Which timing studies a grid has, and what has become of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from fdllm.plan import ANY_DEPTH, CellState, Planner, State
from fdllm.record.paths import TaskFolder
from fdllm.record.study import Study, read_study
from fdllm.record.summary import InvalidRecordError
from fdllm.runs import Run, Sweep

DOCUMENTS, REPEATS = 100, 3  # where nobody says otherwise


@dataclass(frozen=True)
class WantedStudy:
    """A timing study of one task."""

    runs: dict[str, Run]  # by the name that each is timed under; the baseline first
    number: int  # documents; fewer where the task has no more
    repeats: int = REPEATS  # times that each config answers a document

    @property
    def baseline(self) -> Run:
        """What the others are compared with."""
        return next(iter(self.runs.values()))

    @property
    def again(self) -> str | None:
        """The name under which the baseline is timed a second time; None where it has a twin."""
        return next((n for n, run in self.runs.items() if n != run.cell.name), None)

    def __str__(self) -> str:
        return f"{self.baseline.experiment} / {TaskFolder.of(self.baseline)} / timing study"


@dataclass(frozen=True)
class StudyState:
    """A wanted study and what there is of it."""

    wanted: WantedStudy
    state: State
    reason: str  # why, in a few words; empty where the state says it all
    study: Study | None = None  # what stands, done or stale

    @property
    def words(self) -> str:
        """The state in a few words: ``done, 100 documents``."""
        if self.state is State.DONE and self.study is not None:
            return f"done, {len(self.study.documents)} documents"
        return self.state.value + (f": {self.reason}" if self.reason else "")

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "task": self.wanted.baseline.task,
            "state": self.state.value,
            "reason": self.reason,
            "docs": None if self.study is None else len(self.study.documents),
            "configs": list(self.wanted.runs),
        }


def want_studies(
    planner: Planner, sweep: Sweep, number: int | None = None, repeats: int = REPEATS
) -> list[WantedStudy]:
    """The studies of a sweep, a task each; a task on which no two configs can differ has none.

    In each are the configs asked for, as far as they apply, the baseline, and its twins: the cells
    without reuse that decode as it does. Where it has no twin it is timed twice.

    Args:
        planner: knows the grid.
        sweep: which tasks, which configs.
        number: documents of each; None is 100, or the limit where there is one.
        repeats: times that each config answers a document.
    """
    grid = planner.runs(sweep.model_copy(update={"configs": ()}))
    documents = number or sweep.limit or DOCUMENTS
    return [
        WantedStudy(runs, documents, repeats)
        for _, group in groupby(grid, key=lambda run: run.task)
        if (runs := _timed(planner, list(group), sweep.configs))
    ]


def _timed(planner: Planner, grid: Sequence[Run], configs: Sequence[str]) -> dict[str, Run]:
    """The runs of a task's study; empty where there is nothing to compare."""
    criteria = planner.experiment(grid[0].experiment).settings.criteria
    named = None if criteria is None else criteria.baseline
    n_layers = planner.model(grid[0].model).n_layers or ANY_DEPTH
    plain = [run for run in grid if not planner.strategy(run, n_layers).reuses]
    base = next((run for run in plain if named in (None, run.cell.name)), None)
    if base is None:
        return {}
    twins = [run for run in plain if run.decoding == base.decoding]
    asked = [run for run in grid if not configs or run.cell.name in configs]
    others = [run for run in asked if run not in twins and not planner.not_applicable(run)]
    if not others:
        return {}
    runs = {run.cell.name: run for run in [base, *twins, *others]}
    if len(twins) == 1:
        name = f"{base.cell.name}_again"
        while name in runs:
            name += "_again"
        runs[name] = base
    return runs


def study_state(planner: Planner, wanted: WantedStudy) -> StudyState:
    """What has become of a study. Only files are read."""
    try:
        study = read_study(planner.layout.timing(wanted.baseline)[0])
    except InvalidRecordError as error:
        return StudyState(wanted, State.INVALID, str(error))
    if study is None:
        return StudyState(wanted, State.PENDING, "not taken yet")
    reason = _missing(planner, wanted, study)
    return StudyState(wanted, State.STALE if reason else State.DONE, reason, study)


def _missing(planner: Planner, wanted: WantedStudy, study: Study) -> str:
    """What a study lacks of the one that is wanted; empty where nothing."""
    absent = [name for name in wanted.runs if name not in study.configs]
    if absent:
        return f"it is without {', '.join(absent)}"
    for name, run in wanted.runs.items():
        now, then = planner.fingerprint(run).fields, study.configs[name].fingerprint
        changed = [n for n, value in now.items() if value is not None and value != then.get(n)]
        if changed:
            return f"{' and '.join(changed)} of {name} changed"
    if study.repeats < wanted.repeats:
        return f"{study.repeats} of {wanted.repeats} repeats"
    number = len(study.documents)
    if number < wanted.number and number < _documents(planner.state(wanted.baseline)):
        return f"{number} of {wanted.number} documents"
    return ""


def _documents(cell: CellState) -> float:
    """Documents of a run, as far as its record tells."""
    return float("inf") if cell.summary is None else cell.summary.headline.num_samples

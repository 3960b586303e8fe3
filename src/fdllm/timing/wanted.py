"""Which timing studies a grid has, and what has become of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from fdllm.errors import FdllmError
from fdllm.plan import BUSY, CellState, Planner, State
from fdllm.record.journal import read_failure
from fdllm.record.lock import holder_of
from fdllm.record.paths import TIMING, RunPaths, TaskFolder, set_aside
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


def want_studies(
    planner: Planner, sweep: Sweep, number: int | None = None, repeats: int = REPEATS
) -> list[WantedStudy]:
    """The studies of a sweep, a task each; a task on which no two configs can differ has none.

    In each are the configs asked for, as far as they apply, the baseline, and its twins: the cells
    without reuse that decode as it does. Where it has no twin it is timed twice.

    ``number`` is that of documents, of each; None is 100, or the limit where there is one.
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
    plain = [run for run in grid if not planner.reuses(run)]
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


def study_paths(planner: Planner, wanted: WantedStudy) -> RunPaths:
    """A study's files, as those of a run whose config is called timing."""
    own = planner.layout.run(wanted.baseline)
    folders = {name: getattr(own, name).parent / TIMING for name in ("folder", "artifacts", "logs")}
    return RunPaths(**folders)


def study_state(planner: Planner, wanted: WantedStudy) -> CellState:
    """What has become of a study, as a cell whose run is the baseline's. Only files are read."""
    paths = study_paths(planner, wanted)
    cell = partial(CellState, wanted.baseline, paths=paths, total=wanted.number)
    holder = holder_of(paths)
    if holder is not None:
        return cell(State.RUNNING, str(holder))
    try:
        failure = read_failure(paths)
        study = read_study(planner.layout.timing(wanted.baseline)[0])
    except (FdllmError, InvalidRecordError) as error:
        return cell(State.INVALID, str(error))
    if failure is not None:
        return cell(State.FAILED, failure.reason, log=failure.log)
    if study is None:
        return cell(State.PENDING, "not taken yet")
    number = len(study.documents)
    reason = _missing(planner, wanted, study)
    return cell(State.STALE if reason else State.DONE, reason, done=number)


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
    number, record = len(study.documents), planner.state(wanted.baseline).summary
    # A task may have fewer documents than were asked for; its record knows.
    if number < wanted.number and (record is None or number < record.headline.num_samples):
        return f"{number} of {wanted.number} documents"
    return ""


def is_due(cell: CellState) -> bool:
    """Whether a study is to be taken: it does not stand, and nobody takes it."""
    return cell.state is not State.DONE and cell.state not in BUSY


def keep_study(planner: Planner, wanted: WantedStudy, study: Study) -> Path | None:
    """Write a study and its copy for git; where an earlier one was moved to, if there was one.

    Raises:
        FdllmError: a place cannot be written.
    """
    path, copy = planner.layout.timing(wanted.baseline)
    aside = set_aside(path.parent, [path]) if path.exists() else None
    study.write(path, copy)
    return aside


def study_words(cell: CellState) -> str:
    """A study's state in a few words: ``timing: done, 100 documents``."""
    what = f"{cell.done} documents" if cell.state is State.DONE else cell.reason
    return f"timing: {cell.state.value}" + (f", {what}" if what else "")

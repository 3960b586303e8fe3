"""Everything a report says of an experiment, as plain values; drawing and checking start here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

from fdllm.applicable import repeats
from fdllm.criteria import Criteria
from fdllm.errors import FdllmError
from fdllm.evaluate.tasks import TASKS
from fdllm.plan import RECORDED, Planner
from fdllm.record.paths import Layout
from fdllm.report.alternative import (
    CONTROLS,
    THRESHOLD,
    Alternative,
    at_equal_time,
    find_control,
)
from fdllm.report.bounds import Bounds, find_bounds
from fdllm.report.compare import compare_all
from fdllm.report.compare_text import MARGIN, Comparison
from fdllm.report.figures import CellFigures, cell_figures
from fdllm.report.grid import (
    GridFinding,
    check_grid,
    checks,
    choose_baseline,
    overlap_sentence,
)
from fdllm.report.origin import Origin, origin
from fdllm.report.records import NotComparableError, Record, finished
from fdllm.report.terms import check_criteria, judged_cells, lock_words, undecidable
from fdllm.report.times import Times, read_times
from fdllm.report.verdict import Judged, Judgement, judge
from fdllm.runs import Cell, Sweep


@dataclass(frozen=True)
class TablePage:
    """One task, on one model, under one limit."""

    key: str  # of its elements on the page
    task: str  # the task
    model: str  # what was asked for
    limit: int | None  # documents of each leaf task at most; None is all
    # the protocol, with what stands over it; None where it is the experiment's own
    preset: str | None
    folder: str  # the task folder below the experiment's
    kind: str  # ``generate`` or ``loglikelihood``
    estimator: str | None  # of log-likelihoods; None where text is generated
    metric: str  # the headline metric
    n_layers: int  # layers of the model
    baseline: str | None  # the cell that the others are compared with; None where none is done
    cells: tuple[CellFigures, ...]  # figures, in the order of the grid
    against: dict[str, Comparison]  # comparison with the baseline, by config
    rivals: dict[str, Comparison]  # comparison with its rival, by config that has one
    undecidable: str  # why its rows cannot decide the criteria; empty where they can
    lock: str  # whether the criteria stood before its rows did; empty where all did
    times: Times  # what the task's timing study says
    findings: tuple[GridFinding, ...]  # what holds of the grid, and what is suspicious about it
    alternative: Alternative  # lowering the threshold instead, in as much time
    bounds: Bounds  # what the savings are worth, by the oracle's and by the controls'
    origin: Origin  # provenance

    @property
    def base(self) -> CellFigures | None:
        """Figures of the baseline."""
        return next((cell for cell in self.cells if cell.name == self.baseline), None)

    @property
    def smoke(self) -> bool:
        """Whether only some rows were run."""
        return self.limit is not None


@dataclass(frozen=True)
class Section:
    """One task of a report."""

    records: tuple[Record, ...]  # cells that are done, in the order of the grid
    title: str = ""  # task, model and preset
    limit: int | None = None  # documents of each leaf task at most; None is all
    remark: str = ""  # where runs differ from their preset all the same
    missing: tuple[str, ...] = ()  # cells that are not done, and why
    overlap: str | None = None  # the sentence on overlapping subsets; None where none do
    table: TablePage | None = None  # the figures; None where no cell is done


@dataclass(frozen=True)
class Report:
    """What ``results.md`` and the HTML file say."""

    experiment: str
    title: str
    verdict: Judgement
    sections: tuple[Section, ...]
    criteria: Criteria | None = None  # what the verdict judges by

    @property
    def tables(self) -> tuple[TablePage, ...]:
        """The figures of those tasks that have some."""
        return tuple(one.table for one in self.sections if one.table is not None)

    def figures(self) -> dict[str, Any]:
        """All of them as JSON values: what ``--check`` computes anew and compares."""
        return {
            "experiment": self.experiment,
            "title": self.title,
            "verdict": asdict(self.verdict),
            "tables": [asdict(table) for table in self.tables],
        }


def build_report(
    experiment: str,
    title: str,
    criteria: Criteria | None,
    sections: Sequence[Section],
    layout: Layout,
    *,
    grid: Sequence[Cell] = (),
) -> Report:
    """Compute every figure of a report, from sections that have no table yet.

    By ``grid``, the experiment's cells, what is not done counts as open; an empty one judges what
    is there. ``layout`` is of all records, the controls' too.

    Raises:
        FdllmError: a record is broken, or cells cannot be compared.
    """
    keys = (f"t{number}" for number in count())
    made = tuple(
        replace(one, table=_table(next(keys), one.records, criteria, layout))
        if one.records
        else one
        for one in sections
    )
    judged = [
        _judged(one.table, one.records, criteria, grid) for one in made if one.table is not None
    ]
    return Report(experiment, title, judge(criteria, judged), made, criteria)


def _table(
    key: str, cells: Sequence[Record], criteria: Criteria | None, layout: Layout
) -> TablePage:
    check_grid(cells)
    first = cells[0]
    baseline = choose_baseline(cells, None if criteria is None else criteria.baseline)
    times = read_times(cells, None if baseline is None else baseline.name)
    others = [cell for cell in cells if cell is not baseline]
    pairs = [(baseline, cell, times) for cell in others] if baseline is not None else []
    figures = tuple(cell_figures(cell) for cell in cells)
    controls = {name: find_control(layout, name, cells, baseline) for name in CONTROLS}
    drop = None if criteria is None else criteria.max_accuracy_drop
    margin = MARGIN if drop is None else drop
    rows = max(cell.summary.headline.num_samples for cell in cells)
    return TablePage(
        key=key,
        task=first.task,
        model=first.summary.model,
        limit=first.limit,
        preset=first.summary.preset_words,
        folder=first.folder.parent.name,
        kind=first.summary.kind,
        estimator=first.summary.estimator_words,
        metric=first.summary.headline.metric,
        n_layers=first.summary.strategy.n_layers,
        baseline=None if baseline is None else baseline.name,
        cells=figures,
        against={one.b: one for one in compare_all(pairs, margin=margin)},
        rivals={} if criteria is None else _against_rivals(cells, criteria, margin),
        undecidable="" if criteria is None or first.limit else undecidable(criteria, rows),
        lock=lock_words(criteria, [cell.summary for cell in cells]),
        times=times,
        findings=tuple(checks(cells)),
        alternative=at_equal_time(controls[THRESHOLD], cells, times),
        bounds=find_bounds(layout, cells, baseline, tuple(controls.values())),
        origin=origin(cells),
    )


def _against_rivals(
    cells: Sequence[Record], criteria: Criteria, margin: float
) -> dict[str, Comparison]:
    """Each config that has a rival against it, in accuracy and in time."""
    done = {cell.name: cell for cell in cells}
    times = {name: read_times(cells, name) for name in criteria.rivals if name in done}
    named = [(criteria.rival_of(cell.name), cell) for cell in cells]
    pairs = [(done[r], cell, times[r]) for r, cell in named if r in done and r is not None]
    return {one.b: one for one in compare_all(pairs, margin=margin)}


def _judged(
    table: TablePage, records: Sequence[Record], criteria: Criteria | None, grid: Sequence[Cell]
) -> Judged:
    """A task as it is judged; further cells that are the baseline once more are left away."""
    done = [cell for cell in table.cells if cell.name != table.baseline]
    twins = {name for name, one in table.against.items() if one.same_computation}
    rivals = () if criteria is None or criteria.configs else criteria.rivals
    apart = {*twins, *rivals}
    wanted = [] if criteria is None else judged_cells(criteria, grid)
    why = not_applicable(grid, records, table.baseline)
    names = {record.name for record in records} | why.keys()
    return Judged(
        task=table.task,
        smoke=table.smoke,
        cells=[(cell, table.against.get(cell.name)) for cell in done if cell.name not in apart],
        rivals=table.rivals,
        left_out=table.undecidable,
        not_applicable={cell.name: why[cell.name] for cell in wanted if cell.name in why},
        missing=[cell.name for cell in wanted if cell.name not in names],
        lock=table.lock,
        untimed="" if table.times.pairs else table.times.sentence,
    )


def not_applicable(
    grid: Sequence[Cell], records: Sequence[Record], baseline: str | None
) -> dict[str, str]:
    """Cells that could only repeat one of the records of their task, each with the reason."""
    first = records[0].summary
    if first.estimator is None:
        return {}
    info = TASKS.get(first.task)
    # Of a task that is not known by name its answers tell.
    one_token = (
        info.one_token
        if info
        else all(row["tokens"] == row["requests"] for row in records[0].samples)
    )
    done = {record.name for record in records}
    why = {
        cell.name: repeats(cell, grid, first.estimator, one_token=one_token, baseline=baseline)
        for cell in grid
    }
    return {name: reason for name, reason in why.items() if reason and name not in done}


# --- from a sweep's records -----------------------------------------------------------------------


def make_report(planner: Planner, sweeps: Sequence[Sweep], experiment: str) -> Report:
    """Compute a report from the records of some sweeps.

    Raises:
        FdllmError: a record is broken, or the records of a table must not stand together.
    """
    for sweep in sweeps:
        check_criteria(planner, sweep)
    try:
        return report_of(planner, experiment, [_section(planner, sweep) for sweep in sweeps])
    except NotComparableError as error:  # exit code 2 is "cannot tell", the word of a comparison
        raise FdllmError(str(error)) from None


def report_of(planner: Planner, experiment: str, sections: Sequence[Section]) -> Report:
    """Compute the report of an experiment as it is now; see :func:`build_report`."""
    found = planner.experiment(experiment)
    title, criteria = found.settings.experiment.title, found.settings.criteria
    return build_report(experiment, title, criteria, sections, planner.layout, grid=found.cells)


def _section(planner: Planner, sweep: Sweep) -> Section:
    cells = [planner.shown(planner.state(run)) for run in planner.runs(sweep)]
    records = tuple(finished(cells))
    left = [cell for cell in cells if cell.state not in RECORDED]
    title, remark = f"{sweep.tasks[0]} on {sweep.model.name}", ""
    if sweep.preset is not None:
        title += f", preset {cells[0].run.preset_words}"
    if sweep.preset is not None and sweep.preset.exceptions:
        but = "; ".join(sweep.preset.exceptions)
        remark = f"{sweep.preset.title}. Where a run differs from it all the same: {but}."
    return Section(
        records=records,
        title=title,
        limit=sweep.limit,
        remark=remark,
        missing=tuple(
            f"{cell.run.cell.name}: {cell.state.value}{f' ({cell.reason})' if cell.reason else ''}"
            for cell in left
        ),
        overlap=overlap_sentence(planner.overlaps(sweep), records[0].summary.strategy.n_layers)
        if records
        else None,
    )

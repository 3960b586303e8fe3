"""Everything a report says of an experiment, as plain values; drawing and checking start here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fdllm.errors import FdllmError
from fdllm.experiment.settings import Criteria
from fdllm.plan import CellState, Planner, State
from fdllm.report.alternative import Alternative, find_alternative
from fdllm.report.compare import compare_grid
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures, cell_figures
from fdllm.report.grid import GridFinding, check_grid, findings, overlap_sentence
from fdllm.report.origin import Origin, origin
from fdllm.report.records import NotComparableError, Record, finished
from fdllm.report.speed import Floor, noise_floor
from fdllm.report.verdict import Judged, Judgement, judge
from fdllm.runs import Sweep


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
    unit: str  # of speeds
    n_layers: int  # layers of the model
    baseline: str | None  # the cell that the others are compared with; None where none is done
    cells: tuple[CellFigures, ...]  # figures, in the order of the grid
    against: dict[str, Comparison]  # comparison with the baseline, by config
    # what the cells that are one computation show of the noise; None where there are no two of them
    floor: Floor | None
    findings: tuple[GridFinding, ...]  # what is suspicious about the grid
    alternative: Alternative  # lowering the threshold instead
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
class Page:
    """The figures of a whole report."""

    experiment: str
    title: str
    verdict: Judgement
    tables: tuple[TablePage, ...]

    def figures(self) -> dict[str, Any]:
        """All of them as JSON values: what ``--check`` computes anew and compares."""
        return asdict(self)


def build_page(
    experiment: str,
    title: str,
    criteria: Criteria | None,
    tables: Sequence[Sequence[Record]],
    results: Path,
) -> Page:
    """Compute every figure of a report.

    Args:
        experiment: its name.
        title: its title.
        criteria: success criteria; None where there are none.
        tables: finished cells, a list for each task, model and limit, in the order of the grid.
        results: folder of all records, where the alternative's lie too.

    Raises:
        FdllmError: a record is broken, or cells cannot be compared.
    """
    made = tuple(_table(f"t{i}", cells, criteria, results) for i, cells in enumerate(tables))
    return Page(experiment, title, judge(criteria, [_judged(table) for table in made]), made)


def choose_baseline(cells: Sequence[Record], criteria: Criteria | None) -> Record | None:
    """The cell that the others are compared with: the criteria's, else the first without reuse."""
    named = criteria.baseline if criteria is not None else None
    if named is not None:
        return next((cell for cell in cells if cell.name == named), None)
    return next((cell for cell in cells if not cell.summary.strategy.reuses), None)


def _table(
    key: str, cells: Sequence[Record], criteria: Criteria | None, results: Path
) -> TablePage:
    check_grid(cells)
    first = cells[0]
    baseline = choose_baseline(cells, criteria)
    others = [cell for cell in cells if cell is not baseline]
    floor = noise_floor(cells)
    figures = tuple(cell_figures(cell) for cell in cells)
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
        unit="tokens/s" if first.summary.kind == "generate" else "scored tokens/s",
        n_layers=first.summary.strategy.n_layers,
        baseline=None if baseline is None else baseline.name,
        cells=figures,
        against={c.b: c for c in compare_grid(baseline, others, floor=floor)}
        if baseline is not None
        else {},
        floor=floor,
        findings=tuple(findings(cells, None if floor is None else floor.finding)),
        alternative=find_alternative(results, cells, figures),
        origin=origin(cells),
    )


def _judged(table: TablePage) -> Judged:
    others = [
        (cell, table.against.get(cell.name)) for cell in table.cells if cell.name != table.baseline
    ]
    # Further cells that reuse nothing under the same decoding are the baseline once more.
    twins = set() if table.floor is None else set(table.floor.names)
    if table.baseline in twins:
        others = [pair for pair in others if pair[0].name not in twins]
    return Judged(table.task, table.smoke, table.base, others)


# --- from a sweep's records -----------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """One task of a report."""

    sweep: Sweep  # what was asked for
    cells: tuple[CellState, ...]  # the state of each of its cells
    records: tuple[Record, ...]  # those that are done
    overlap: str | None  # the sentence on overlapping subsets; None where none do
    table: TablePage | None  # their figures on the page; None where no cell is done

    @property
    def missing(self) -> tuple[str, ...]:
        """Cells that are not done, and why."""
        return tuple(
            f"{cell.run.cell.name}: {cell.state.value}{f' ({cell.reason})' if cell.reason else ''}"
            for cell in self.cells
            if cell.state is not State.DONE
        )


@dataclass(frozen=True)
class Report:
    """What goes into ``results.md`` and the HTML file."""

    page: Page  # every figure of the page
    sections: tuple[Section, ...]  # a task each; those with a record have one of the page's tables


def make_report(planner: Planner, sweeps: Sequence[Sweep], experiment: str) -> Report:
    """Compute a report from the records of some sweeps.

    Raises:
        FdllmError: a record is broken, or the records of a table must not stand together.
    """
    settings = planner.experiment(experiment).settings
    check_names(planner, experiment, settings.criteria)
    states = [tuple(planner.state(run) for run in planner.runs(sweep)) for sweep in sweeps]
    records = [tuple(finished(cells)) for cells in states]
    try:
        page = build_page(
            experiment,
            settings.experiment.title,
            settings.criteria,
            [one for one in records if one],
            planner.layout.results,
        )
    except NotComparableError as error:  # exit code 2 is "cannot tell", the word of a comparison
        raise FdllmError(str(error)) from None
    tables = iter(page.tables)
    sections = [
        Section(
            sweep,
            cells,
            own,
            overlap_sentence(planner.overlaps(sweep), own[0].summary.strategy.n_layers)
            if own
            else None,
            next(tables) if own else None,
        )
        for sweep, cells, own in zip(sweeps, states, records, strict=True)
    ]
    return Report(page, tuple(sections))


def check_names(planner: Planner, experiment: str, criteria: Criteria | None) -> None:
    """Configs and tasks that the criteria name must exist.

    Raises:
        UsageError: one does not; the message lists those that do.
    """
    if criteria is None:
        return
    for name in (*criteria.configs, *((criteria.baseline,) if criteria.baseline else ())):
        planner.experiment(experiment).cell(name)
    for task in criteria.tasks:
        planner.task(task)

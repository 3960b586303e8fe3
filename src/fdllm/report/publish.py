"""From a sweep's records to the HTML report, and from a written report back to its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fdllm.errors import FdllmError
from fdllm.experiment.settings import Criteria
from fdllm.plan import CellState, Planner, State
from fdllm.record.paths import Layout
from fdllm.report.build import Page, TablePage, build_page
from fdllm.report.grid import overlap_sentence
from fdllm.report.html import render_html
from fdllm.report.recheck import Mismatch, Recheck, check_page, check_records, embedded_tables
from fdllm.report.records import NotComparableError, Record, finished, load_record
from fdllm.runs import Sweep


@dataclass(frozen=True)
class Section:
    """One task of a report.

    Attributes:
        sweep: what was asked for.
        cells: the state of each of its cells.
        records: those that are done.
        overlap: the sentence on overlapping subsets; None where none do.
        table: their figures on the page; None where no cell is done.
    """

    sweep: Sweep
    cells: tuple[CellState, ...]
    records: tuple[Record, ...]
    overlap: str | None
    table: TablePage | None

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
    """What goes into ``results.md`` and the HTML file.

    Attributes:
        page: every figure of the page.
        sections: a task each; those with a record have one of the page's tables.
    """

    page: Page
    sections: tuple[Section, ...]

    def render(self) -> str:
        """The HTML file."""
        shown = {one.table.key: one for one in self.sections if one.table is not None}
        return render_html(
            self.page,
            [one.records for one in shown.values()],
            {key: one.missing for key, one in shown.items()},
            {key: one.overlap for key, one in shown.items()},
            [
                f"{one.sweep.tasks[0]} on {one.sweep.model.name}"
                for one in self.sections
                if one.table is None
            ],
        )


def html_path(layout: Layout, experiment: str) -> Path:
    """Where the report of an experiment lies unless somebody says otherwise."""
    return layout.results / experiment / "report.html"


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


def recheck(planner: Planner, experiment: str, folders: Sequence[Path], written: Path) -> Recheck:
    """Compute every figure of some records, and of the written report, anew.

    Args:
        planner: knows the experiment and where records lie.
        experiment: its name.
        folders: the records.
        written: the HTML report; passed over where it is not there.
    """
    found = check_records(planner.layout, folders)
    if not written.exists():
        note = f"{written} is not there: only the records were compared"
        return found.and_also(Recheck.only_noting(note))
    place = planner.layout.results / experiment
    named = embedded_tables(written)
    try:
        tables = [tuple(load_record(place / folder / n) for n in names) for folder, names in named]
        settings = planner.experiment(experiment).settings
        page = build_page(
            experiment, settings.experiment.title, settings.criteria, tables, planner.layout.results
        )
    except FdllmError as error:
        wrong = Mismatch(written.name, "a record behind it", "gone or broken", str(error))
        return found.and_also(Recheck(0, 0, (wrong,), ()))
    shown = {place / folder / name for folder, names in named for name in names}
    later = [f.relative_to(place).as_posix() for f in folders if f not in shown]
    notes = (f"not in {written.name}: {', '.join(later)}",) if later else ()
    return found.and_also(check_page(written, page.figures())).and_also(Recheck(0, 0, (), notes))

"""From a sweep's records to the HTML report, and from a written report back to its records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fdllm.config import Sweep
from fdllm.errors import FdllmError
from fdllm.experiment.criteria import Criteria
from fdllm.plan import Planner, State
from fdllm.record.paths import Layout
from fdllm.report.grid import overlap_sentence
from fdllm.report.html import render_html
from fdllm.report.page import Page, build_page
from fdllm.report.recheck import Difference, Recheck, check_page, check_records, embedded_tables
from fdllm.report.records import Record, load_record
from fdllm.report.wording import Missing, summary_sentence


@dataclass(frozen=True)
class Report:
    """What goes into the file.

    Attributes:
        page: every figure.
        cells: the cells of each of its tables.
        missing: cells without a record, by key of the table.
        overlaps: the sentence on overlapping subsets, by key of the table.
        unfinished: tasks of which no cell is done.
    """

    page: Page
    cells: tuple[tuple[Record, ...], ...]
    missing: dict[str, tuple[Missing, ...]]
    overlaps: dict[str, str | None]
    unfinished: tuple[str, ...]

    def render(self) -> str:
        """The file."""
        return render_html(self.page, self.cells, self.missing, self.overlaps, self.unfinished)

    def add_verdict(self, markdown: str) -> str:
        """``results.md`` with the verdict ahead of its tables, and each comparison in words."""
        verdict = self.page.verdict
        lines = ["## Verdict", "", f"**{verdict.word.capitalize()}.** {verdict.sentence}", ""]
        if verdict.criteria:
            lines += [f"Success criteria, decided beforehand: {verdict.criteria}.", ""]
        for table in self.page.tables:
            limit = "" if table.limit is None else f" (limit {table.limit}, a smoke test)"
            lines.append(f"- {table.task}{limit}: {summary_sentence(table)}")
            lines += [f"  - {against.sentence}" for against in table.against.values()]
            lines += [f"  - At equal speed, {one.sentence}" for one in table.alternative.against]
        head, mark, tables = markdown.partition("\n## ")
        return "\n".join([head, *lines, ""]) + mark + tables


def html_path(layout: Layout, experiment: str) -> Path:
    """Where the report of an experiment lies unless somebody says otherwise."""
    return layout.results / experiment / "report.html"


def make_report(planner: Planner, sweeps: Sequence[Sweep], experiment: str) -> Report:
    """Compute a report from the records of some sweeps.

    Raises:
        FdllmError: a record is broken, or the records of a table must not stand together.
    """
    tables: list[tuple[Record, ...]] = []
    missing: dict[str, tuple[Missing, ...]] = {}
    overlaps: dict[str, str | None] = {}
    unfinished: list[str] = []
    for sweep in sweeps:
        states = [planner.state(run) for run in planner.runs(sweep)]
        done = tuple(load_record(s.paths.folder) for s in states if s.state is State.DONE)
        if not done:
            unfinished.append(f"{sweep.tasks[0]} on {sweep.model.name}")
            continue
        key = f"t{len(tables)}"
        tables.append(done)
        missing[key] = tuple(
            Missing(s.run.cell.name, s.state.value, s.reason)
            for s in states
            if s.state is not State.DONE
        )
        overlaps[key] = overlap_sentence(planner.overlaps(sweep), done[0].summary.strategy.n_layers)
    settings = planner.experiment(experiment).settings
    check_names(planner, experiment, settings.criteria)
    page = build_page(
        experiment, settings.experiment.title, settings.criteria, tables, planner.layout.results
    )
    return Report(page, tuple(tables), missing, overlaps, tuple(unfinished))


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
        return found.and_also(Recheck(0, 0, (), (note,)))
    place = planner.layout.results / experiment
    named = embedded_tables(written)
    try:
        tables = [tuple(load_record(place / folder / n) for n in names) for folder, names in named]
        settings = planner.experiment(experiment).settings
        page = build_page(
            experiment, settings.experiment.title, settings.criteria, tables, planner.layout.results
        )
    except FdllmError as error:
        wrong = Difference(written.name, "a record behind it", "gone or broken", str(error))
        return found.and_also(Recheck(0, 0, (wrong,), ()))
    shown = {place / folder / name for folder, names in named for name in names}
    later = [f.relative_to(place).as_posix() for f in folders if f not in shown]
    notes = (f"not in {written.name}: {', '.join(later)}",) if later else ()
    return found.and_also(check_page(written, page.figures())).and_also(Recheck(0, 0, (), notes))

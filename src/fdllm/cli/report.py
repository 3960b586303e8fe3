"""``fdllm report``: what the records say, as Markdown and as HTML, and whether it holds."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fdllm.cli.options import Selection, flag
from fdllm.cli.output import complain, say, say_json
from fdllm.cli.request import default_tasks, make_planner, read_request
from fdllm.errors import FdllmError, UsageError
from fdllm.experiment.load import FOLDER, list_experiments
from fdllm.outside import AbsentError, OutsideError, read_text
from fdllm.plan import ENDED, Planner
from fdllm.presets.reader import load_preset
from fdllm.record.atomic import write_text
from fdllm.record.paths import TaskFolder, model_slug
from fdllm.report.records import html_path, record_folders
from fdllm.runs import DEFAULT_MODEL, TINY_MODEL, Run, Sweep, home_model

if TYPE_CHECKING:  # scipy and statsmodels come in where a report is made
    from fdllm.report.build import Report
    from fdllm.report.recheck import Recheck

_HEADER = re.compile(r"^Written by (`+)fdllm report(?P<selection> .+?)\1 from", re.MULTILINE)
_FLAGS = (
    "task",
    "headline",
    "config",
    "limit",
    "model",
    "revision",
    "scoring",
    "preset",
)
_MOST = 1 << 26  # bytes of results.md
_SHOWN = 20  # differences; a changed sample changes many figures


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Selection):
    """Write results.md and an HTML report from the records, or check them."""

    all: bool = flag("one table and picture over all experiments: referee.md", default=False)
    stdout: bool = flag("print the Markdown, write nothing", default=False)
    html: Path | None = flag("the HTML file (results/EXPERIMENT/report.html)", metavar="PATH")
    check: bool = flag("compute every figure anew; exit code 1 where one differs", default=False)
    replace: bool = flag("write it though rows that stand there would go", default=False)
    json: bool = flag("with --check: print JSON", default=False)

    def run(self) -> int:
        """``experiments/NAME/results.md`` and the HTML report, from the records.

        Of another folder of results both go into that folder.

        Raises:
            UsageError: ``--all`` stands beside what selects of one experiment.
            FdllmError: there are no records, or rows that stand there would go.
        """
        from fdllm.profiling.profile_page import pages_beside  # noqa: PLC0415 - as above
        from fdllm.report.html import render_html  # noqa: PLC0415 - as above
        from fdllm.report.standing import keep_cells, keep_rows  # noqa: PLC0415 - as above
        from fdllm.report.sums import write_sums  # noqa: PLC0415 - as above

        planner = make_planner(self)
        if self.all:
            return self._all(planner)
        markdown, page = _places(planner, self)
        if self.check:
            return _print_check(_check(planner, self, markdown, page), as_json=self.json)
        report, text = _render(planner, self)
        if self.stdout:
            say(text)
            return 0
        if not self.replace:
            keep_rows(markdown, text)
            keep_cells(page, report)
        shown = [record for section in report.sections for record in section.records]
        if kept := sum(record.is_published for record in shown):
            complain(f"note: {kept} of {len(shown)} records are git's copies, which hold no texts")
        pages = {markdown: text, page: render_html(report)}
        for table in report.tables:
            pages |= pages_beside(planner.layout, table.folder)
        for place, content in pages.items():
            write_text(place, content)
            say(f"wrote {place}")
        say(f"wrote {write_sums(planner.layout, self.experiment, shown)}")
        return 0

    def _all(self, planner: Planner) -> int:
        """``experiments/referee.md``, its pictures and ``results/index.html``, or their check."""
        from fdllm.report.referee_page import PAGE  # noqa: PLC0415 - as above
        from fdllm.report.standing import keep_rows  # noqa: PLC0415 - as above

        own = {field.name: field.default for field in fields(self)}
        odd = [n for n in ("experiment", "config", "html") if getattr(self, n) != own[n]]
        if odd:
            raise UsageError(f"--all is of every experiment and config; leave --{odd[0]} out")
        folder = planner.root / FOLDER if self.results is None else planner.layout.results
        if self.check:
            return _print_check(_check_all(planner, self, folder / PAGE), as_json=self.json)
        pages = _render_all(planner, self, folder / PAGE, linked=not self.stdout)
        if self.stdout:
            say(pages[folder / PAGE])
            return 0
        if not self.replace:
            keep_rows(folder / PAGE, pages[folder / PAGE])
        for place, content in pages.items():
            write_text(place, content)
            say(f"wrote {place}")
        return 0


def _places(planner: Planner, options: ReportCommand) -> tuple[Path, Path]:
    """Where an experiment's two pages lie."""
    own = planner.experiment(options.experiment).folder
    folder = own if options.results is None else planner.layout.results / options.experiment
    return folder / "results.md", options.html or html_path(planner.layout, options.experiment)


def page_of(planner: Planner, options: ReportCommand) -> Path:
    """Where the HTML page of a selection lies; a page that is not there is written.

    Raises:
        FdllmError: there are no records, or they must not share a table.
    """
    from fdllm.report.html import render_html  # noqa: PLC0415 - as above
    from fdllm.report.referee_page import INDEX  # noqa: PLC0415 - as above

    names = [*_sweeps_of_all(planner, options)] if options.all else [options.experiment]
    linked = [html_path(planner.layout, name) for name in names]
    page = planner.layout.results / INDEX if options.all else linked[0]
    if all(one.exists() for one in (page, *linked)):
        return page
    if options.all:
        pages = _render_all(planner, options, page, linked=True)
    else:
        report = _render(planner, options)[0]
        if not report.tables:  # an empty page would stay
            name = options.experiment
            raise FdllmError(f"'{name}' has no finished cell to show; fdllm status says why")
        pages = {page: render_html(report)}
    for place, content in pages.items():
        if place.suffix == ".html" and not place.exists():
            write_text(place, content)
            complain(f"wrote {place}")
    return page


def report_sweeps(planner: Planner, options: Selection) -> Iterator[Sweep]:
    """The (task, limit, model) selections that have records, for the report.

    Raises:
        FdllmError: there are none.
    """
    found = False
    for sweep in _sweeps(planner, options):
        found = True
        yield sweep
    if not found:
        named = " or ".join(f"'{model}'" for model in _models(options))
        preset = "" if options.preset is None else f" and preset {load_preset(options.preset).name}"
        raise FdllmError(
            f"experiment '{options.experiment}' has no records of model {named}{preset} under "
            f"{planner.layout.results}; sweep first, or name another --model"
        )


def _models(options: Selection) -> list[str]:
    return [options.model] if options.model else [DEFAULT_MODEL, TINY_MODEL]


def _sweeps(planner: Planner, options: Selection) -> Iterator[Sweep]:
    """The same; there may be none."""
    experiment = planner.experiment(options.experiment)
    preset = None if options.preset is None else load_preset(options.preset).name
    for model in _models(options):
        for task in options.task or default_tasks(experiment, model, options.include_path):
            own = None if model == home_model(task) else model_slug(model)
            for folder in planner.layout.task_folders(options.experiment):
                wanted = options.limit is None or folder.limit == options.limit
                if (folder.task, folder.preset, folder.model) == (task, preset, own) and wanted:
                    one = replace(options, task=(task,), model=model, limit=folder.limit)
                    yield read_request(one).sweep


def _sweeps_of_all(planner: Planner, options: Selection) -> dict[str, list[Sweep]]:
    """What each experiment has of a selection: of all rows, unless a limit is named.

    Raises:
        FdllmError: there is nothing.
    """
    names = list_experiments(planner.root)
    each = {n: _sweeps(planner, replace(options, experiment=n)) for n in names}
    found = {n: [one for one in sweeps if one.limit == options.limit] for n, sweeps in each.items()}
    if not any(found.values()):
        raise FdllmError(
            f"no experiment has such records under {planner.layout.results}; sweep first, or name "
            "another --model (or --limit, for smoke tests)"
        )
    return {name: sweeps for name, sweeps in found.items() if sweeps}


def selection_words(options: Selection) -> str:
    """The flags that chose the records, as they would be typed."""
    everything = isinstance(options, ReportCommand) and options.all
    words = ["--all"] if everything else ["--experiment", options.experiment]
    for name in _FLAGS:
        value = getattr(options, name)
        if value is not None:
            words += [
                f"--{name.replace('_', '-')}",
                *map(str, value if isinstance(value, tuple) else [value]),
            ]
    if options.dtype != "auto":
        words += ["--dtype", options.dtype]
    return shlex.join(words + (["--allow-invalid"] if options.allow_invalid else []))


def _render(planner: Planner, options: Selection) -> tuple[Report, str]:
    """The report of a selection, and its ``results.md``.

    Raises:
        FdllmError: there are no records, or they must not share a table.
    """
    from fdllm.report.build import make_report  # noqa: PLC0415 - as above
    from fdllm.report.results_md import render_results  # noqa: PLC0415 - as above

    report = make_report(planner, list(report_sweeps(planner, options)), options.experiment)
    return report, render_results(report, selection_words(options))


def _render_all(
    planner: Planner, options: ReportCommand, page: Path, *, linked: bool = False
) -> dict[Path, str]:
    """The page over all experiments, its pictures, and the same as HTML.

    With ``linked`` also the experiments' own pages that are not there.

    Raises:
        FdllmError: there are no records, or they must not share a table.
    """
    from fdllm.report.build import make_report  # noqa: PLC0415 - as above
    from fdllm.report.html import render_html  # noqa: PLC0415 - as above
    from fdllm.report.referee import read_claims  # noqa: PLC0415 - as above
    from fdllm.report.referee_page import referee_pages  # noqa: PLC0415 - as above

    found = _sweeps_of_all(planner, options)
    reports = [make_report(planner, sweeps, name) for name, sweeps in found.items()]
    claims = read_claims(planner.root / FOLDER)
    words, results = selection_words(options), planner.layout.results
    absent = {
        place: render_html(one)
        for one in reports
        if linked
        and one.tables
        and not (place := html_path(planner.layout, one.experiment)).exists()
    }
    return referee_pages(reports, words, claims, page.parent, results) | absent


def _check_all(planner: Planner, options: ReportCommand, page: Path) -> Recheck:
    """Check each experiment that has records, and then the page over all of them."""
    from fdllm.report.recheck import Recheck  # noqa: PLC0415 - as above

    found = Recheck()
    for name in list_experiments(planner.root):
        if record_folders(planner.layout, name, options.task or (), options.limit):
            markdown, html = _places(planner, replace(options, experiment=name))
            one = _check(planner, replace(options, experiment=name), markdown, html)
            notes = tuple(f"{name}: {note}" for note in one.notes)
            wrong = tuple(replace(each, where=f"{name}: {each.where}") for each in one.differences)
            found += replace(one, notes=notes, differences=wrong)
    return found + _check_markdown(planner, page, options.include_path)


def _check(planner: Planner, options: ReportCommand, markdown: Path, page: Path) -> Recheck:
    from fdllm.report import sums  # noqa: PLC0415 - as above
    from fdllm.report.recheck import recheck  # noqa: PLC0415 - as above

    folders = record_folders(planner.layout, options.experiment, options.task or (), options.limit)
    if options.config:
        folders = [folder for folder in folders if folder.name in options.config]
    if not folders:
        raise FdllmError(
            f"experiment '{options.experiment}' has no finished records of this selection under "
            f"{planner.layout.results}, so there is nothing to check; sweep first, or name them "
            "with --results"
        )
    # What was changed, ahead of what it did.
    found = sums.check_sums(planner.layout, options.experiment) + sums.check_release(planner.root)
    found += sums.check_studies(planner.layout, folders)
    found += sums.check_profiles(planner.layout, folders)
    runs = _runs_of(planner, options, folders)
    found += recheck(planner, options.experiment, folders, page, runs)
    return found + _check_markdown(planner, markdown, options.include_path)


def _runs_of(planner: Planner, options: Selection, folders: Sequence[Path]) -> list[Run]:
    """The runs that some records may be of, by these flags."""
    places = [TaskFolder.parse(folder.parent.name) for folder in folders]
    tasks = tuple(dict.fromkeys(place.task for place in places if place is not None))
    try:
        sweeps = list(report_sweeps(planner, replace(options, task=tasks)))
    except FdllmError:  # the records are of other models, or made by another preset
        return []
    return [run for sweep in sweeps for run in planner.runs(sweep)]


class _Reader(ArgumentParser):
    """Reads the flags that stand in a file, which may be damaged."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _print_check(found: Recheck, *, as_json: bool) -> int:
    number = len(found.differences)
    if as_json:
        say_json(asdict(found))
        return int(bool(number))
    for note in found.notes:
        complain(f"note: {note}")
    for difference in found.differences[:_SHOWN]:
        say(str(difference))
    if number > _SHOWN:
        say(f"and {number - _SHOWN} more")
    verdict = "every one as written" if not number else f"{number} DIFFER"
    say(f"{found.num_figures} figures of {found.num_records} records computed anew: {verdict}")
    return int(bool(number))


class _NotComparedError(Exception):
    """A page that cannot be made anew now, and why."""


class _FlagsError(Exception):
    """Flags that stand in a page and are none, and what is wrong with them."""


def _check_markdown(planner: Planner, path: Path, include: Path | None) -> Recheck:
    """Make a page and its pictures again, and compare the lines."""
    from fdllm.report.recheck import Recheck, check_file  # noqa: PLC0415 - as above

    try:
        pages = _anew(planner, path, include)
    except _NotComparedError as why:
        return Recheck(notes=(f"{path.name} was not compared: {why}",))
    except _FlagsError as error:
        return Recheck.wrong(path.name, "its flags", *error.args)
    except OutsideError as error:
        return Recheck.wrong(path.name, "the page", "not readable", str(error))
    except FdllmError as error:
        return Recheck.wrong(path.name, "a record behind it", "gone or broken", str(error))
    return sum(starmap(check_file, pages.items()), Recheck())


def _anew(planner: Planner, path: Path, include: Path | None) -> dict[Path, str]:
    """A page and its pictures from the records as they are, by the flags that stand in it.

    Raises:
        FdllmError: a record behind it is gone or broken, or the page cannot be read.
    """
    try:
        written = read_text(path, most=_MOST)
    except AbsentError:
        written = ""
    header = _HEADER.search(written)
    if header is None:
        raise _NotComparedError("it was not written by fdllm report yet")
    parser = _Reader(add_help=False)
    ReportCommand.add_flags(parser)
    try:
        then = ReportCommand.read(parser.parse_args(shlex.split(header["selection"])))
    except ValueError as error:
        raise _FlagsError(header["selection"].strip(), str(error)) from None
    # Where a user's tasks lie differs from place to place, so the page does not name it.
    then = replace(then, include_path=include)
    try:
        every = _sweeps_of_all(planner, then) if then.all else {"": [*report_sweeps(planner, then)]}
    except FdllmError as error:
        raise _NotComparedError(error) from None
    runs = [run for sweeps in every.values() for one in sweeps for run in planner.runs(one)]
    states = [planner.shown(planner.state(run)) for run in runs]
    other = [cell for cell in states if cell.state not in ENDED]
    if other:
        raise _NotComparedError(
            f"{len(other)} of its {len(states)} cells are {other[0].state.value} now "
            f"({other[0].run.cell.name}: {other[0].reason})"
        )
    return _render_all(planner, then, path) if then.all else {path: _render(planner, then)[1]}

"""``fdllm report``: what the records say, as Markdown and as HTML, and whether it holds."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fdllm.cli.options import Selection, flag
from fdllm.cli.output import complain, say, say_json
from fdllm.cli.request import default_tasks, make_planner, read_request
from fdllm.errors import FdllmError
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

    stdout: bool = flag("print the Markdown, write nothing", default=False)
    html: Path | None = flag("the HTML file (results/EXPERIMENT/report.html)", metavar="PATH")
    check: bool = flag("compute every figure anew; exit code 1 where one differs", default=False)
    replace: bool = flag("write it though rows that stand there would go", default=False)
    json: bool = flag("with --check: print JSON", default=False)

    def run(self) -> int:
        """``experiments/NAME/results.md`` and the HTML report, from the records.

        Of another folder of results both go into that folder.

        Raises:
            FdllmError: there are no records, or rows that stand there would go.
        """
        from fdllm.report.html import render_html  # noqa: PLC0415 - as above
        from fdllm.report.standing import keep_rows  # noqa: PLC0415 - as above
        from fdllm.report.sums import write_sums  # noqa: PLC0415 - as above

        planner = make_planner(self)
        own = planner.experiment(self.experiment).folder
        folder = own if self.results is None else planner.layout.results / self.experiment
        markdown = folder / "results.md"
        page = self.html or html_path(planner.layout, self.experiment)
        if self.check:
            return _print_check(_check(planner, self, markdown, page), as_json=self.json)
        report, text = _render(planner, self)
        if self.stdout:
            say(text)
            return 0
        if not self.replace:
            keep_rows(markdown, text, page, report)
        shown = [record for section in report.sections for record in section.records]
        if kept := sum(record.is_published for record in shown):
            complain(f"note: {kept} of {len(shown)} records are git's copies, which hold no texts")
        html = render_html(report)
        for place, content in ((markdown, text), (page, html)):
            write_text(place, content)
            say(f"wrote {place}")
        say(f"wrote {write_sums(planner.layout, self.experiment, shown)}")
        return 0


def report_sweeps(planner: Planner, options: Selection) -> Iterator[Sweep]:
    """The (task, limit, model) selections that have records, for the report.

    Raises:
        FdllmError: there are none.
    """
    experiment = planner.experiment(options.experiment)
    preset = None if options.preset is None else load_preset(options.preset).name
    models = [options.model] if options.model else [DEFAULT_MODEL, TINY_MODEL]
    found = False
    for model in models:
        for task in options.task or default_tasks(experiment, model, options.include_path):
            own = None if model == home_model(task) else model_slug(model)
            for folder in planner.layout.task_folders(options.experiment):
                wanted = options.limit is None or folder.limit == options.limit
                if (folder.task, folder.preset, folder.model) == (task, preset, own) and wanted:
                    found = True
                    one = replace(options, task=(task,), model=model, limit=folder.limit)
                    yield read_request(one).sweep
    if not found:
        named = " or ".join(f"'{model}'" for model in models)
        raise FdllmError(
            f"experiment '{options.experiment}' has no records of model {named}"
            f"{'' if preset is None else f' and preset {preset}'} under "
            f"{planner.layout.results}; sweep first, or name another --model"
        )


def selection_words(options: Selection) -> str:
    """The flags that chose the records, as they would be typed."""
    words = ["--experiment", options.experiment]
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


def _check(planner: Planner, options: ReportCommand, markdown: Path, page: Path) -> Recheck:
    from fdllm.report.recheck import Mismatch, Recheck, recheck  # noqa: PLC0415 - as above
    from fdllm.report.sums import check_release, check_studies, check_sums  # noqa: PLC0415

    folders = record_folders(planner.layout, options.experiment, options.task or (), options.limit)
    if options.config:
        folders = [folder for folder in folders if folder.name in options.config]
    if not folders:
        raise FdllmError(
            f"experiment '{options.experiment}' has no finished records of this selection under "
            f"{planner.layout.results}, so there is nothing to check; sweep first, or name them "
            "with --results"
        )
    found = check_sums(planner.layout, options.experiment)  # what was changed, ahead of what it did
    found += check_release(planner.root)
    found += check_studies(planner.layout, folders)
    found += recheck(
        planner, options.experiment, folders, page, _runs_of(planner, options, folders)
    )
    try:
        return found + _check_markdown(planner, markdown, options.include_path)
    except OutsideError as error:
        wrong = Mismatch(markdown.name, "the page", "not readable", str(error))
        return found + Recheck(differences=(wrong,))


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


def _check_markdown(planner: Planner, path: Path, include: Path | None) -> Recheck:
    """Render ``results.md`` again from the records it was written from, and compare the lines."""
    from fdllm.report.recheck import Mismatch, Recheck, check_lines  # noqa: PLC0415 - as above

    def passed_over(why: str) -> Recheck:
        return Recheck(notes=(f"{path.name} was not compared: {why}",))

    try:
        written = read_text(path, most=_MOST)
    except AbsentError:
        written = ""
    header = _HEADER.search(written)
    if header is None:
        return passed_over("it was not written by fdllm report yet")
    parser = _Reader(add_help=False)
    ReportCommand.add_flags(parser)
    try:
        then = ReportCommand.read(parser.parse_args(shlex.split(header["selection"])))
    except ValueError as error:
        wrong = Mismatch(path.name, "its flags", header["selection"].strip(), str(error))
        return Recheck(differences=(wrong,))
    # Where a user's tasks lie differs from place to place, so the page does not name it.
    then = replace(then, include_path=include)
    try:
        sweeps = list(report_sweeps(planner, then))
    except FdllmError as error:
        return passed_over(str(error))
    states = [planner.shown(planner.state(run)) for sweep in sweeps for run in planner.runs(sweep)]
    other = [cell for cell in states if cell.state not in ENDED]
    if other:
        return passed_over(
            f"{len(other)} of its {len(states)} cells are {other[0].state.value} now "
            f"({other[0].run.cell.name}: {other[0].reason})"
        )
    try:
        fresh = _render(planner, then)[1]
    except FdllmError as error:
        wrong = Mismatch(path.name, "a record behind it", "gone or broken", str(error))
        return Recheck(differences=(wrong,))
    return check_lines(path.name, written, fresh)

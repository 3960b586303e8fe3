"""``fdllm report``: what the records say, as Markdown and as HTML, and whether it holds."""

from __future__ import annotations

import difflib
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fdllm import strictjson
from fdllm.cli import show
from fdllm.cli.options import Selection, flag
from fdllm.cli.output import complain, say
from fdllm.cli.request import make_planner
from fdllm.errors import FdllmError
from fdllm.plan import SETTLED, Planner
from fdllm.record.atomic import write_text

if TYPE_CHECKING:  # scipy and statsmodels come in where a report is made
    from fdllm.report.publish import Report
    from fdllm.report.recheck import Mismatch, Recheck

_HEADER = re.compile(r"^Written by `fdllm report(?P<selection> [^`]+)`", re.MULTILINE)
_FLAGS = ("task", "config", "limit", "model", "revision", "scoring", "preset")
_FIGURE = re.compile(r"\d")
_SHOWN = 20  # differences; a changed sample changes many figures


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Selection):
    """Write results.md and an HTML report from the records, or check them."""

    stdout: bool = flag("print the Markdown, write nothing", default=False)
    html: Path | None = flag("the HTML file (results/EXPERIMENT/report.html)", metavar="PATH")
    check: bool = flag(
        "compute every figure anew from the samples; exit code 1 where one differs", default=False
    )
    json: bool = flag("with --check: print JSON", default=False)

    def run(self) -> int:
        """See :func:`run_report`."""
        return run_report(self)


def run_report(options: ReportOptions) -> int:
    """``experiments/NAME/results.md`` and the HTML report, from the records."""
    planner = make_planner(options)
    if options.check:
        return _check(planner, options)
    report, text = _render(planner, options)
    if options.stdout:
        say(text)
        return 0
    page, path = report.render(), _markdown_path(planner, options)
    for place, content in ((path, text), (_html_path(planner, options), page)):
        write_text(place, content)
        say(f"wrote {place}")
    return 0


def _selection_words(options: Selection) -> list[str]:
    """The flags that chose the records, as they would be typed."""
    words = ["--experiment", options.experiment]
    for name in _FLAGS:
        value = getattr(options, name)
        if value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, tuple) else [value])]
    if options.dtype != "auto":
        words += ["--dtype", options.dtype]
    return words + (["--allow-invalid"] if options.allow_invalid else [])


def _render(planner: Planner, options: Selection) -> tuple[Report, str]:
    """The report of a selection, and its ``results.md``.

    Raises:
        FdllmError: there are no records, or they must not share a table.
    """
    from fdllm.report.publish import make_report  # noqa: PLC0415 - scipy and statsmodels
    from fdllm.report.results_md import render_results  # noqa: PLC0415 - as above

    report = make_report(planner, list(show.report_sweeps(planner, options)), options.experiment)
    return report, render_results(report, shlex.join(_selection_words(options)))


def _markdown_path(planner: Planner, options: Selection) -> Path:
    return planner.experiment(options.experiment).folder / "results.md"


def _html_path(planner: Planner, options: ReportOptions) -> Path:
    from fdllm.report.publish import html_path  # noqa: PLC0415 - as above

    return options.html or html_path(planner.layout, options.experiment)


def _check(planner: Planner, options: ReportOptions) -> int:
    from fdllm.report.publish import recheck  # noqa: PLC0415 - as above
    from fdllm.report.records import record_folders  # noqa: PLC0415 - as above

    results = planner.layout.results
    folders = record_folders(results, options.experiment, options.task or (), options.limit)
    if options.config:
        folders = [folder for folder in folders if folder.name in options.config]
    if not folders:
        raise FdllmError(
            f"experiment '{options.experiment}' has no finished records of this selection under "
            f"{results}, so there is nothing to check; sweep first, or name them with --results"
        )
    found = recheck(planner, options.experiment, folders, _html_path(planner, options)).and_also(
        _check_markdown(planner, options, _markdown_path(planner, options))
    )
    if options.json:
        say(strictjson.dumps(asdict(found), indent=2))
        return int(bool(found.differences))
    for note in found.notes:
        complain(f"note: {note}")
    for difference in found.differences[:_SHOWN]:
        say(str(difference))
    number = len(found.differences)
    if number > _SHOWN:
        say(f"and {number - _SHOWN} more")
    verdict = "every one as written" if not number else f"{number} DIFFER"
    say(f"{found.num_figures} figures of {found.num_records} records computed anew: {verdict}")
    return int(bool(number))


def _check_markdown(planner: Planner, options: Selection, path: Path) -> Recheck:
    """Render ``results.md`` again from the records it was written from, and compare the lines.

    Args:
        planner: knows the checkout's own records.
        options: of ``fdllm report --check``.
        path: the file.
    """
    from fdllm.report.recheck import Recheck  # noqa: PLC0415 - as above

    header = _HEADER.search(path.read_text(encoding="utf-8")) if path.is_file() else None
    if options.results is not None or header is None:
        why = "is the checkout's own" if header else "was not written by fdllm report yet"
        return Recheck.only_noting(f"{path.name} was not compared: it {why}")
    parser = ArgumentParser()
    ReportOptions.add_flags(parser)
    then = ReportOptions.read(parser.parse_args(shlex.split(header["selection"])))
    try:
        sweeps = list(show.report_sweeps(planner, then))
    except FdllmError as error:  # a clone has the file and not the records
        return Recheck.only_noting(f"{path.name} was not compared: {error}")
    states = [planner.state(run) for sweep in sweeps for run in planner.runs(sweep)]
    other = [cell for cell in states if cell.state not in SETTLED]
    if other:
        return Recheck.only_noting(
            f"{path.name} was not compared: {len(other)} of its {len(states)} cells are "
            f"{other[0].state.value} now ({other[0].run.cell.name}: {other[0].reason})"
        )
    found = _render(planner, then)[1].splitlines()
    written = path.read_text(encoding="utf-8").splitlines()
    number = sum(bool(_FIGURE.search(line)) for line in found)
    return Recheck(0, number, tuple(_differences(path.name, written, found)), ())


def _differences(name: str, written: list[str], found: list[str]) -> Iterator[Mismatch]:
    from fdllm.report.recheck import Mismatch  # noqa: PLC0415 - as above

    matcher = difflib.SequenceMatcher(None, written, found, autojunk=False)
    for kind, start, stop, first, last in matcher.get_opcodes():
        if kind != "equal":
            lines = "\n".join(written[start:stop]), "\n".join(found[first:last])
            yield Mismatch(name, f"line {start + 1}", *(repr(text) for text in lines))

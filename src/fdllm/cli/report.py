"""``fdllm report``: what the records say, as Markdown and as HTML, and whether it holds."""

from __future__ import annotations

import argparse
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from fdllm import strictjson
from fdllm.cli.output import complain, say
from fdllm.cli.report_markdown import check_markdown, render_markdown
from fdllm.cli.request import make_planner
from fdllm.errors import FdllmError
from fdllm.evaluate.tasks import task_info
from fdllm.plan import Planner
from fdllm.record.atomic import write_text

_SHOWN = 20  # differences; a changed sample changes many figures


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("--stdout", action="store_true", help="print the Markdown, write nothing")
    parser.add_argument(
        "--html", metavar="PATH", help="the HTML file (results/EXPERIMENT/report.html)"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compute every figure anew from the samples; exit code 1 where one differs",
    )
    parser.add_argument("--json", action="store_true", help="with --check: print JSON")


def run_report(args: Namespace) -> int:
    """``experiments/NAME/results.md`` and the HTML report, from the records."""
    planner = make_planner(args)
    for task in args.task or ():
        task_info(task)
    if args.check:
        return _check(planner, args)
    text, report = render_markdown(planner, args)
    if args.stdout:
        say(text)
        return 0
    page, path = report.render(), _markdown_path(planner, args)
    for place, content in ((path, text), (_html_path(planner, args), page)):
        write_text(place, content)
        say(f"wrote {place}")
    return 0


def _markdown_path(planner: Planner, args: Namespace) -> Path:
    return planner.experiment(args.experiment).folder / "results.md"


def _html_path(planner: Planner, args: Namespace) -> Path:
    from fdllm.report.publish import html_path  # noqa: PLC0415 - as above

    if args.html is not None:
        return Path(args.html).expanduser().absolute()
    return html_path(planner.layout, args.experiment)


def _check(planner: Planner, args: Namespace) -> int:
    from fdllm.report.publish import recheck  # noqa: PLC0415 - as above
    from fdllm.report.recheck import record_folders  # noqa: PLC0415 - as above

    results = planner.layout.results
    folders = record_folders(results, args.experiment, args.task or (), args.limit)
    if args.config:
        folders = [folder for folder in folders if folder.name in args.config]
    if not folders:
        raise FdllmError(
            f"experiment '{args.experiment}' has no finished records of this selection under "
            f"{results}, so there is nothing to check; sweep first, or name them with --results"
        )
    found = recheck(planner, args.experiment, folders, _html_path(planner, args)).and_also(
        check_markdown(planner, args, _markdown_path(planner, args))
    )
    if args.json:
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

"""``fdllm export``: a folder with everything that a reader needs to check an experiment."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from fdllm.cli import show
from fdllm.cli.output import complain, say
from fdllm.cli.request import make_planner
from fdllm.evaluate.tasks import task_info
from fdllm.record.provenance import versions
from fdllm.release.choose import ALLOWANCES


def export_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that only ``export`` has."""
    parser.add_argument(
        "--out", metavar="DIR", help="folder to make (release/EXPERIMENT); it must not exist"
    )
    parser.add_argument(
        "--allow",
        action="extend",
        nargs="+",
        choices=ALLOWANCES,
        default=[],
        metavar="WHAT",
        help="take what would be refused: stale or mixed records as they are, without the invalid "
        "ones, texts that name places of this machine. The release says so",
    )


def run_export(args: Namespace) -> int:
    """Write a release of an experiment's records."""
    from fdllm.release.export import export  # noqa: PLC0415

    planner = make_planner(args)
    for task in args.task or ():
        task_info(task)
    sweeps = list(show.report_sweeps(planner, args))
    covered = {planner.layout.task_folder(planner.runs(sweep)[0]) for sweep in sweeps}
    others = sorted(
        path.name
        for path in (planner.layout.results / args.experiment).iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in covered
    )
    out = Path(args.out or Path("release", args.experiment)).expanduser().absolute()
    release = export(
        planner, sweeps, out, version=versions()["fdllm"], allowed=frozenset(args.allow)
    )
    for remark in release.remarks:
        complain(f"note: {remark}")
    if others:
        complain(
            f"note: not part of this selection: {', '.join(others)} (--task, --model, --limit)"
        )
    say(f"wrote {release.folder}: {release.num_cells} records; see its README.md")
    return 0

"""``fdllm doctor``: what is ready for a run, what is not, and what to do about it."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fdllm.cli.output import say
from fdllm.cli.request import Request, read_request
from fdllm.cluster.cluster_config import load_cluster_config
from fdllm.cluster.planned import SubmitOptions, binds
from fdllm.cluster.queue import why_no_cluster
from fdllm.doctor.examine import Checkup, Finding, blocking, examine

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_WIDE = 200  # columns of a log, which folds nothing


def doctor_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``doctor`` besides those that select runs."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    place_flags(parser)
    group = parser.add_argument_group("the cluster")
    group.add_argument(
        "--executor",
        choices=("auto", "local", "slurm"),
        default="auto",
        help="what the runs are meant for (auto: slurm where there is an sbatch)",
    )
    group.add_argument("--partition", metavar="NAME", help="where jobs go (the site file's)")
    group.add_argument("--account", metavar="NAME", help="who is charged (the site file's)")


def place_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that ``doctor`` and ``prefetch`` share."""
    parser.add_argument(
        "--image", metavar="FILE", help="look inside this image, as its runs will (the site file's)"
    )


def run_doctor(args: Namespace) -> int:
    """Check, show, and answer with 1 where something that the runs need is missing."""
    findings = examine(checkup_of(read_request(args), args))
    show_findings(findings, as_json=args.json)
    return int(bool(blocking(findings)))


def checkup_of(request: Request, args: Namespace) -> Checkup:
    """What the flags and the site file say of the runs and their place.

    Raises:
        UsageError: the site file has an unknown key or a wrong value.
    """
    planner = request.planner
    site = load_cluster_config(planner.root)
    # Tasks may differ in where they go.
    runs = planner.runs(request.sweep)
    wanted = [site.resources_of(run) for run in runs]
    partition, account = (
        ",".join(sorted({name for name in names if name}))
        for names in ([one.partition for one in wanted], [one.account for one in wanted])
    )
    named = getattr(args, "image", None)
    image = Path(named).expanduser().absolute() if named else site.image
    places: list[str] = []
    if image is not None:
        # What the jobs will see in the image, no more and no less.
        wish = SubmitOptions(
            site, 1, results=planner.layout.results, threads=None, workdir=Path.cwd()
        )
        places = [*binds(planner, wish, runs[0], wish.workdir), *site.binds]
    asked = getattr(args, "executor", "local")
    there = asked == "slurm" or (asked == "auto" and why_no_cluster() is None)
    return Checkup(
        root=planner.root,
        layout=planner.layout,
        sweep=request.sweep,
        executor="slurm" if there else "local",
        partition=getattr(args, "partition", None) or partition or None,
        account=getattr(args, "account", None) or account or None,
        image=image,
        binds=tuple(places),
        hf_home=site.hf_home,
    )


def show_findings(findings: Sequence[Finding], *, as_json: bool) -> None:
    """A table for people, or JSON."""
    failed = len(blocking(findings))
    if as_json:
        ready = {"ready": not failed, "findings": [finding.as_dict() for finding in findings]}
        say(json.dumps(ready, indent=2, allow_nan=False))
        return
    table = Table(title="check-up", title_justify="left", show_lines=False)
    for column in ("check", "state", "what was found", "what to do"):
        # Names and states are short, and a cut one says nothing.
        table.add_column(column, no_wrap=column in ("check", "state"), overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.state]
        table.add_row(
            escape(finding.name),
            f"[{colour}]{finding.state}[/{colour}]",
            escape(finding.found),
            escape(finding.remedy),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDE)
    console.print(table)
    say(verdict(findings))


def verdict(findings: Sequence[Finding]) -> str:
    """The whole table in a line."""
    failed = len(blocking(findings))
    warned = sum(finding.state == "warn" for finding in findings)
    warnings = f", {warned} to keep in mind" if warned else ""
    if failed:
        return f"not ready: {failed} of {len(findings)} checks failed{warnings}"
    return f"ready: {len(findings)} checks{warnings}"

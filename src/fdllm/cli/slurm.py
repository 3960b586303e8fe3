"""``--executor slurm``: what is missing of a sweep goes to the queue, and nothing twice."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from fdllm.cli import show
from fdllm.cli.output import complain, say
from fdllm.cli.request import Request
from fdllm.cli.work import Work, choose_work
from fdllm.cluster.cluster_config import load_cluster_config
from fdllm.cluster.planned import SubmitOptions, binds, draft
from fdllm.cluster.queue import why_no_cluster
from fdllm.cluster.status import survey
from fdllm.cluster.submission import Submission
from fdllm.cluster.submit import require_sbatch, submit, submitting
from fdllm.doctor.examine import Checkup, blocking, examine
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.code import check_consent
from fdllm.evaluate.tasks import task_info
from fdllm.plan import CellState

EXECUTORS = ("auto", "local", "slurm")
_ONLY_SLURM = ("max_jobs", "shards", "image", "partition", "account", "qos", "gres", "time")


def slurm_flags(parser: ArgumentParser, positive: Callable[[str], int]) -> None:
    """The flags of a sweep that goes to SLURM."""
    group = parser.add_argument_group(
        "where it is computed",
        "what stays the same from one sweep "
        "to the next stands in fdllm.toml (fdllm.toml.example has all of it)",
    )
    group.add_argument(
        "--executor",
        choices=EXECUTORS,
        default=os.environ.get("FDLLM_EXECUTOR", "auto"),
        help="auto takes SLURM where there is a cluster, else this machine (FDLLM_EXECUTOR, auto)",
    )
    group.add_argument(
        "--max-jobs", type=positive, metavar="N", help="array tasks that run at the same time"
    )
    group.add_argument(
        "--shards", type=positive, metavar="N", help="split each run's samples over N array tasks"
    )
    group.add_argument("--image", metavar="SIF", help="compute inside this Apptainer image")
    group.add_argument("--no-doctor", action="store_true", help="submit without the check-up")
    group.add_argument("--partition", metavar="P", help="where in the cluster")
    group.add_argument("--account", metavar="A", help="who pays")
    group.add_argument("--qos", metavar="Q", help="quality of service")
    group.add_argument("--gres", metavar="G", help="gpu:1, say; '' asks for no GPU")
    group.add_argument("--time", type=positive, metavar="MIN", help="minutes until a requeue")


def choose_executor(args: Namespace) -> str:
    """``local`` or ``slurm``; what ``auto`` chose is said.

    Raises:
        UsageError: a flag means nothing there.
    """
    if args.executor not in EXECUTORS:  # argparse does not look at a default
        raise UsageError(
            f"FDLLM_EXECUTOR is '{args.executor}'; it is one of {', '.join(EXECUTORS)}"
        )
    chosen = str(args.executor)
    if chosen == "auto":
        missing = why_no_cluster()
        chosen, other = ("local", "slurm") if missing else ("slurm", "local")
        why = missing or "sbatch is there"
        complain(f"executor: {chosen} ({why}; --executor {other} otherwise)")
    named = [name for name in _ONLY_SLURM if getattr(args, name) is not None]
    given = [f"--{name.replace('_', '-')}" for name in named]
    if chosen == "local" and given:
        raise UsageError(
            f"{', '.join(given)}: only for --executor slurm, and this sweep is computed on this "
            "machine; leave it out, or submit where sbatch is"
        )
    return chosen


def run_slurm(request: Request, args: Namespace) -> int:
    """Submit what is missing; done cells, running ones and queued ones are left alone."""
    wish = read_wish(request, args)
    cells = states(request)
    work = choose_work(cells, force=args.force)
    if args.dry_run:
        show.plan(cells, work, as_json=args.json)
        if not args.json:
            _show_scripts(request, work, wish)
        return 0
    if not work:
        show.nothing_to_do(cells, as_json=args.json)
        if args.json:
            show.print_json(cells)
        return 0
    for one in work:
        check_consent(task_info(one.cell.run.task), one.cell.run.code_execution)
    require_sbatch()
    if not args.no_doctor:
        check_up(request, work, wish)
    with submitting(request.planner.layout.logs):
        work = choose_work(states(request), force=args.force)  # another sweep may have been first
        drafts = draft(request.planner, [one.cell.run for one in work], wish)
        made = submit(request.planner, drafts, forced=[one.cell.run for one in work if one.force])
    if args.json:
        show.print_json(states(request))
        return 0
    for submission in made:
        say(_told(request, submission))
    if made:
        say("fdllm status --watch follows them; scancel JOB ends one, the same sweep goes on")
    else:
        say("nothing to do: another sweep has submitted all of it meanwhile")
    return 0


def states(request: Request) -> list[CellState]:
    """Every run of the sweep, joined with the queue."""
    return survey(request.planner, request.planner.runs(request.sweep))


def read_wish(request: Request, args: Namespace) -> SubmitOptions:
    """The site file with this command's flags on top.

    Raises:
        UsageError: a value makes no sense.
    """
    site = load_cluster_config(request.planner.root).changed(
        {
            "partition": args.partition,
            "account": args.account,
            "qos": args.qos,
            "gres": args.gres,
            "time_min": args.time,
        },
        max_jobs=args.max_jobs,
        image=None if args.image is None else Path(args.image).expanduser().absolute(),
    )
    results = None if args.results is None else Path(args.results).expanduser().absolute()
    return SubmitOptions(site, args.shards or 1, results, args.threads, Path.cwd())


def check_up(request: Request, work: Sequence[Work], wish: SubmitOptions) -> None:
    """Look for what would make the jobs fail, before they wait in a queue.

    Raises:
        FdllmError: something must be mended first.
    """
    site, runs = wish.site, [one.cell.run for one in work]
    tasks = tuple(dict.fromkeys(run.task for run in runs))
    resources = site.resources_of(runs[0])
    places: list[str] = []
    if site.image is not None:
        places = [*binds(request.planner, wish, runs[0], wish.workdir), *site.binds]
    findings = examine(
        Checkup(
            root=request.planner.root,
            layout=request.planner.layout,
            sweep=request.sweep.model_copy(update={"tasks": tasks}),
            executor="slurm",
            partition=resources.partition,
            account=resources.account,
            image=site.image,
            binds=tuple(places),
            hf_home=site.hf_home,
        )
    )
    for found in findings:
        if found.state == "warn":
            complain(f"warning: {found.name}: {found.found}. {found.remedy}".rstrip())
    bad = blocking(findings)
    if bad:
        reasons = "\n".join(f"  {one.name}: {one.found}\n    {one.remedy}" for one in bad)
        raise FdllmError(
            f"nothing was submitted, as the check-up found\n{reasons}\n"
            "fdllm doctor shows all of it; --no-doctor submits all the same"
        )


def _show_scripts(request: Request, work: Sequence[Work], wish: SubmitOptions) -> None:
    drafts = draft(request.planner, [one.cell.run for one in work], wish)
    for one in drafts:
        for name, text in one.files():
            say(f"\n# {one.submission.folder / name}\n{text}")


def _told(request: Request, submission: Submission) -> str:
    """A line about what was submitted."""
    first = submission.assignments[0].run
    num_runs = len({one.run.cell.name for one in submission.assignments})
    task = request.planner.layout.task_folder(first)
    parts = sum(one.merge is None for one in submission.assignments)
    split = "" if parts == num_runs else f" in {parts} shards, merged by {submission.merge_job_id}"
    log = submission.log_folder(0).parent / "*" / f"slurm_{submission.job_id}_*.log"
    return (
        f"submitted {first.experiment} / {task}: job {submission.job_id}, {num_runs} "
        f"run{'s' * (num_runs != 1)}{split}; logs in {log}"
    )

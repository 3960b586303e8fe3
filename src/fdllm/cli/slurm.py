"""``--executor slurm``: what is missing of a sweep goes to the queue, and nothing twice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fdllm.cli import show
from fdllm.cli.doctor import checkup_of
from fdllm.cli.options import Computing, absolute_path, flag, positive
from fdllm.cli.output import complain, say
from fdllm.cli.request import Request
from fdllm.cli.work import Work, choose_work
from fdllm.cluster.cluster_config import ClusterConfig, load_cluster_config
from fdllm.cluster.planned import plan_submissions
from fdllm.cluster.queue import require_sbatch, why_no_cluster
from fdllm.cluster.status import survey
from fdllm.cluster.submission import Submission
from fdllm.cluster.submit import submit, submitting
from fdllm.doctor.examine import examine
from fdllm.doctor.findings import blocking
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.tasks import task_info
from fdllm.plan import CellState

_PLACE = (
    "where it is computed\nwhat stays the same from one sweep to the next stands in fdllm.toml "
    "(fdllm.toml.example has all of it)"
)
EXECUTORS = ("auto", "local", "slurm")
_ONLY_SLURM = ("max_jobs", "shards", "image", "partition", "account", "qos", "gres", "time")


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Computing):
    """What ``sweep`` and ``validate`` are given besides their runs.

    Attributes:
        force: configs that are computed anew; empty forces the whole selection, None nothing.
    """

    status: bool = flag("show every cell's state, run none", default=False)
    dry_run: bool = flag("show what would run and why, run nothing", default=False)
    force: tuple[str, ...] | None = flag(
        "compute these configs anew, and no others; without names all of the selection. Old "
        "records are kept aside",
        nargs="*",
        metavar="CONFIG",
    )
    json: bool = flag("print the cells as JSON", default=False)
    executor: str | None = flag(
        "auto takes SLURM where there is a cluster, else this machine (FDLLM_EXECUTOR, auto)",
        group=_PLACE,
        choices=EXECUTORS,
    )
    max_jobs: int | None = flag(
        "array tasks that run at the same time", group=_PLACE, type=positive, metavar="N"
    )
    shards: int | None = flag(
        "split each run's samples over N array tasks", group=_PLACE, type=positive, metavar="N"
    )
    image: Path | None = flag(
        "compute inside this Apptainer image", group=_PLACE, type=absolute_path, metavar="SIF"
    )
    no_doctor: bool = flag("submit without the check-up", default=False, group=_PLACE)
    partition: str | None = flag("where in the cluster", group=_PLACE, metavar="P")
    account: str | None = flag("who pays", group=_PLACE, metavar="A")
    qos: str | None = flag("quality of service", group=_PLACE, metavar="Q")
    gres: str | None = flag("gpu:1, say; '' asks for no GPU", group=_PLACE, metavar="G")
    time: int | None = flag("minutes until a requeue", group=_PLACE, type=positive, metavar="MIN")

    def cluster_config(self, root: Path) -> ClusterConfig:
        """The site file with these flags on top.

        Raises:
            UsageError: a value makes no sense.
        """
        return load_cluster_config(root).changed(
            {
                "partition": self.partition,
                "account": self.account,
                "qos": self.qos,
                "gres": self.gres,
                "time_min": self.time,
            },
            max_jobs=self.max_jobs,
            image=self.image,
        )


def choose_executor(options: SweepOptions) -> str:
    """``local`` or ``slurm``; what ``auto`` chose is said.

    Raises:
        UsageError: a flag means nothing there.
    """
    chosen = options.executor or os.environ.get("FDLLM_EXECUTOR", "auto")
    if chosen not in EXECUTORS:
        raise UsageError(f"FDLLM_EXECUTOR is '{chosen}'; it is one of {', '.join(EXECUTORS)}")
    if chosen == "auto":
        missing = why_no_cluster()
        chosen, other = ("local", "slurm") if missing else ("slurm", "local")
        why = missing or "sbatch is there"
        complain(f"executor: {chosen} ({why}; --executor {other} otherwise)")
    named = [name for name in _ONLY_SLURM if getattr(options, name) is not None]
    given = [f"--{name.replace('_', '-')}" for name in named]
    if chosen == "local" and given:
        raise UsageError(
            f"{', '.join(given)}: only for --executor slurm, and this sweep is computed on this "
            "machine; leave it out, or submit where sbatch is"
        )
    return chosen


def run_slurm(request: Request, options: SweepOptions) -> int:
    """Submit what is missing; done cells, running ones and queued ones are left alone."""
    cluster = options.cluster_config(request.planner.root)
    cells = states(request)
    work = choose_work(cells, force=options.force)
    if options.dry_run:
        show.plan(cells, work, as_json=options.json)
        if not options.json:
            _show_scripts(_planned(request, work, options, cluster))
        return 0
    if not work:
        show.nothing_to_do(cells, as_json=options.json)
        if options.json:
            show.print_json(cells)
        return 0
    for one in work:
        check_consent(task_info(one.cell.run.task), one.cell.run.code_execution)
    require_sbatch()
    if not options.no_doctor:
        check_up(request, work, cluster)
    with submitting(request.planner.layout.logs):
        # Another sweep may have been first.
        work = choose_work(states(request), force=options.force)
        forced = [one.cell.run for one in work if one.force]
        planned = _planned(request, work, options, cluster)
        made = submit(request.planner, planned, cluster, forced=forced)
    if options.json:
        show.print_json(states(request))
        return 0
    for submission in made:
        say(_told(request, submission))
    if made:
        say("fdllm status --watch follows them; scancel JOB ends one, the same sweep goes on")
    else:
        say("nothing to do: another sweep has submitted all of it meanwhile")
    return 0


def _planned(
    request: Request, work: Sequence[Work], options: SweepOptions, cluster: ClusterConfig
) -> list[Submission]:
    return plan_submissions(
        request.planner,
        [one.cell.run for one in work],
        cluster,
        num_shards=options.shards or 1,
        results=options.results,
        threads=options.threads,
    )


def states(request: Request) -> list[CellState]:
    """Every run of the sweep, joined with the queue."""
    return survey(request.planner, request.planner.runs(request.sweep))


def check_up(request: Request, work: Sequence[Work], cluster: ClusterConfig) -> None:
    """Look for what would make the jobs fail, before they wait in a queue.

    Raises:
        FdllmError: something must be mended first.
    """
    findings = examine(checkup_of(request, [one.cell.run for one in work], cluster, "slurm"))
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


def _show_scripts(submissions: Sequence[Submission]) -> None:
    for one in submissions:
        for name, text in one.scripts.items():
            say(f"\n# {one.folder / name}\n{text}")


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

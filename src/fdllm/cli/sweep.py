"""``fdllm eval``, ``sweep`` and ``validate``: runs, on this machine or through the queue.

What is missing of a sweep is computed or submitted, and nothing twice.
"""

from __future__ import annotations

import os
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from fdllm.caches import OFFLINE
from fdllm.cli import show, studies
from fdllm.cli.doctor import checkup_of
from fdllm.cli.options import Computing, flag, number
from fdllm.cli.output import complain, console, say
from fdllm.cli.pace import check_pace
from fdllm.cli.progress import GridProgress
from fdllm.cli.request import SweepRequest, read_request
from fdllm.cli.status_table import show_status, with_what_there_is
from fdllm.cli.work import PlannedCell, choose_work, ends_of, in_order, missing_configs
from fdllm.cluster.cluster_config import ClusterConfig, load_cluster_config
from fdllm.cluster.planned import plan_submissions
from fdllm.cluster.queue import require_sbatch, why_no_cluster
from fdllm.cluster.signals import terminable
from fdllm.cluster.submit import submit, submitting
from fdllm.doctor.examine import examine
from fdllm.doctor.findings import blocking
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.attempt import RunOutcome
from fdllm.evaluate.humaneval import check_consent
from fdllm.evaluate.runner import Runner
from fdllm.evaluate.tasks import task_info
from fdllm.plan import RECORDED, CellState, Planner, State
from fdllm.report.terms import check_criteria
from fdllm.runs import ModelChoice, Run
from fdllm.timing.wanted import WantedStudy, is_due, study_state

if TYPE_CHECKING:
    from fdllm.evaluate.adapter import LoadedModel

_PLACE = (
    "where it is computed\nwhat stays the same from one sweep to the next stands in fdllm.toml; "
    "all of it\n  is in fdllm.toml.example"
)
_place = partial(flag, group=_PLACE)
EXECUTORS = ("auto", "local", "slurm")
_ONLY_SLURM = ("max_jobs", "shards", "image", "partition", "account", "qos", "gres", "time")


@dataclass(frozen=True, kw_only=True)
class EvalCommand(Computing):
    """One run: one task, one config."""

    force: bool = flag("compute it anew; the old record is kept aside", default=False)
    json: bool = flag("print the cell as JSON", default=False)

    def run(self) -> int:
        """One run."""
        if len(self.task or ()) != 1 or len(self.config or ()) != 1:
            raise UsageError(
                "one run needs one --task and one --config, for example --task gsm8k --config "
                "k2_middle; several are a sweep: fdllm sweep"
            )
        request = read_request(self)
        check_criteria(request.planner, request.sweep)
        return _compute(
            request, choose_work(request.states(), force=() if self.force else None), self
        )


@dataclass(frozen=True, kw_only=True)
class SweepCommand(Computing):
    """A grid of runs: only what is missing."""

    status: bool = flag("show every cell's state, run none", default=False)
    dry_run: bool = flag("show what would run and why, run nothing", default=False)
    # configs that are computed anew; empty forces the whole selection, None nothing
    force: tuple[str, ...] | None = flag(
        "compute these configs anew, and no others; without names all of the selection. Old "
        "records are kept aside",
        nargs="*",
        metavar="CONFIG",
    )
    timing: int | None = flag(
        "documents of each task's timing study, taken once its cells are done (100, or the limit); "
        "0 takes none",
        type=number(int, "a whole number, 0 or more", 0),
        metavar="N",
    )
    until_decided: bool = flag(
        "end each config where the experiment's criteria are decided; the baseline is asked first, "
        "and whole",
        default=False,
    )
    json: bool = flag("print the cells as JSON", default=False)
    executor: str | None = _place(
        "auto takes SLURM where there is a cluster, else this machine (FDLLM_EXECUTOR, auto)",
        choices=EXECUTORS,
    )
    max_jobs: int | None = _place("array tasks that run at the same time", metavar="N")
    shards: int | None = _place("split each run's samples over N array tasks", metavar="N")
    image: Path | None = flag("compute inside this Apptainer image", group=_PLACE, metavar="SIF")
    no_doctor: bool = _place("submit without the check-up", default=False)
    partition: str | None = _place("where in the cluster", metavar="P")
    account: str | None = _place("who pays", metavar="A")
    qos: str | None = _place("quality of service", metavar="Q")
    gres: str | None = _place("gpu:1, say; '' asks for no GPU", metavar="G")
    time: int | None = _place("minutes until a requeue", metavar="MIN")

    def run(self) -> int:
        """A grid: only what is missing."""
        # Configs named behind --force are the selection where there is no --config.
        request = read_request(self, self.force or ())
        if self.until_decided:
            too = missing_configs(request, self.shards)
            request = read_request(self, (*(self.force or ()), *too))
        show.overlaps(request)
        show.terms(request)
        if self.status:
            show_status(with_what_there_is(self, request), as_json=self.json)
            return 0
        if _choose_executor(self) == "slurm":
            return _submit(request, self)
        cells = request.states()
        work = self.choose(request, cells)
        if self.dry_run:
            planned = [
                study_state(request.planner, one) for one in studies.of_sweep(request, self.timing)
            ]
            show.plan(cells, work, planned, as_json=self.json)
            return 0
        return _compute(request, work, self)

    def choose(self, request: SweepRequest, cells: Sequence[CellState]) -> list[PlannedCell]:
        """What is computed, and where each run ends."""
        work = choose_work(cells, force=self.force, early=self.until_decided)
        return in_order(request, work) if self.until_decided else work


@dataclass(frozen=True, kw_only=True)
class ValidateCommand(SweepCommand):
    """The whole grid on the embedded model, ten rows a task, offline."""

    @classmethod
    def add_flags(cls, parser: ArgumentParser) -> None:
        """The same flags with other defaults."""
        super().add_flags(parser)
        parser.set_defaults(model="tiny", limit=10, executor="local")

    def run(self) -> int:
        """The whole grid on the embedded model, small and offline."""
        os.environ.update(dict.fromkeys(OFFLINE, "1"))
        code = super().run()
        if not (self.status or self.dry_run or self.json):
            show.verdict(code)
        return code


def _compute(
    request: SweepRequest, work: Sequence[PlannedCell], options: EvalCommand | SweepCommand
) -> int:
    _check_device(options.device)
    if not work:
        show.nothing_to_do(request.states(), as_json=options.json)
    check_pace(request, [one.cell.run for one in work], request.sweep.limit)
    load = cache(lambda choice: load_model(choice, options.threads))
    outcomes = _execute(request.planner, work, load)
    cells, timed = request.states(), list[CellState]()
    for cell in cells:
        if cell.state is State.RUNNING:
            show.held(cell.run, cell.paths, cell.reason)
    if isinstance(options, SweepCommand):
        wanted = studies.of_sweep(request, options.timing)
        timed = studies.take_missing(request, wanted, load, quiet=options.json)
    agree = show.cells(cells, request.criteria, timed, as_json=options.json)
    if isinstance(options, SweepCommand) and not options.json:
        show.what_is_left(cells)
    return show.exit_code([*cells, *timed], outcomes, agree=agree)


# --- on this machine ------------------------------------------------------------------------------


def load_model(choice: ModelChoice, threads: int | None) -> LoadedModel:
    """Load a checkpoint; torch and the harness come in here, where something is computed."""
    from fdllm.evaluate.adapter import LoadedModel  # noqa: PLC0415

    return LoadedModel.load(choice, threads)


def _check_device(device: str) -> None:
    """A device that was asked for by name must be there, also where there is nothing to compute."""
    if device not in ("auto", "cpu"):
        from fdllm.core.checkpoint import resolve_device  # noqa: PLC0415 - torch: only where asked

        resolve_device(device)


def _execute(planner: Planner, work: Sequence[PlannedCell], load: studies.Load) -> list[RunOutcome]:
    """Compute ``work``; what is computed is durable at every moment.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; what is left is said first.
        UsageError: a run executes what the model writes, and nobody agreed to that.
        FdllmError: no run can be computed: the model cannot be loaded, say.
    """
    for one in work:
        check_consent(
            task_info(one.cell.run.task, one.cell.run.include), one.cell.run.code_execution
        )
    if not work:
        return []
    outcomes: list[RunOutcome] = []
    rest = list(work)  # the run in flight, then those to come
    with terminable(), GridProgress(len(work), console(stderr=True)) as watch:
        runner = Runner(planner, watch, load)
        try:
            while rest:
                one = rest[0]
                outcomes.append(runner.run(one.cell.run, force=one.force, until=one.until))
                watch.end(outcomes[-1])
                del rest[0]
                if outcomes[-1].missing:
                    others = [o for o in rest if o.cell.run.task != one.cell.run.task]
                    _leave(len(rest) - len(others), watch)
                    rest = others
        except FdllmError:  # the model cannot be loaded, say
            _leave(len(rest) - 1, watch)
            raise
        except KeyboardInterrupt:
            done = sum(outcome.state in RECORDED for outcome in outcomes)
            kept = _kept(planner, rest)
            watch.note(
                f"interrupted: {done} of {len(work)} runs done{kept}; the same command goes on here"
            )
            raise
    return outcomes


def _leave(number: int, watch: GridProgress) -> None:
    """Say how many runs are not tried, as they need what has just been missed."""
    if number:
        watch.note(f"{number} other run{'s' * (number != 1)} not tried: the same would be missing")


def _kept(planner: Planner, rest: Sequence[PlannedCell]) -> str:
    """What the run in flight leaves behind."""
    if not rest:
        return ""
    now = planner.state(rest[0].cell.run)
    return f", {now.reason} of {now.run.cell.name} kept" if now.done else ""


# --- through the queue ----------------------------------------------------------------------------


def _choose_executor(options: SweepCommand) -> str:
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


def _look(
    request: SweepRequest, options: SweepCommand, wanted: Sequence[WantedStudy]
) -> tuple[list[CellState], list[PlannedCell], list[CellState], list[WantedStudy]]:
    """The cells and what is to be done of them; the studies and those that are to be taken."""
    found, num = request.survey(wanted), len(request.runs)
    due = [one for one, state in zip(wanted, found[num:], strict=True) if is_due(state)]
    return found[:num], options.choose(request, found[:num]), found[num:], due


def _submit(request: SweepRequest, options: SweepCommand) -> int:
    """Submit what is missing; done cells, running ones and queued ones are left alone."""
    asked = {name: getattr(options, name) for name in ("partition", "account", "qos", "gres")}
    cluster = load_cluster_config(request.planner.root).changed(
        asked | {"time_min": options.time}, max_jobs=options.max_jobs, image=options.image
    )
    look = partial(_look, request, options, studies.of_sweep(request, options.timing))
    cells, work, timed, due = look()
    plan = partial(
        plan_submissions,
        request.planner,
        cluster=cluster,
        num_shards=options.shards or 1,
        results=options.results,
        threads=options.threads,
        until=ends_of(request) if options.until_decided else None,
    )
    show.unknown([*cells, *timed])
    if options.dry_run:
        show.plan(cells, work, timed, as_json=options.json)
        if not options.json:
            show.scripts(plan([one.cell.run for one in work], studies=due))
        return 0
    if not work and not due:
        show.nothing_to_do(cells, as_json=options.json)
        if options.json:
            show.print_json(cells, timed)
        return 0
    for one in work:
        check_consent(
            task_info(one.cell.run.task, one.cell.run.include), one.cell.run.code_execution
        )
    require_sbatch()
    if not options.no_doctor:
        asked_for = [one.cell.run for one in work] or [one.baseline for one in due]
        _check_up(request, asked_for, cluster)
    with submitting(request.planner.layout.logs):
        # Another sweep may have been first.
        _, work, _, due = look()
        forced = [one.cell.run for one in work if one.force]
        planned = plan([one.cell.run for one in work], studies=due)
        made = submit(request.planner, planned, cluster, forced=forced)
    if options.json:
        cells, _, timed, _ = look()
        show.print_json(cells, timed)
        return 0
    for submission in made:
        say(show.submitted(submission))
    if made:
        say("fdllm status --watch follows them; scancel JOB ends one, the same sweep goes on")
    else:
        say("nothing to do: another sweep has submitted all of it meanwhile")
    return 0


def _check_up(request: SweepRequest, runs: Sequence[Run], cluster: ClusterConfig) -> None:
    """Raise what would make the jobs fail, before they wait in a queue."""
    findings = examine(checkup_of(request, list(runs), cluster, "slurm"))
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

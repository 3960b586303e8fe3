"""``fdllm job MAP INDEX``: what an array task runs. Not meant to be typed."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fdllm.cli import show, studies, sweep
from fdllm.cli.options import Command, flag
from fdllm.cli.output import complain, console
from fdllm.cli.progress import GridProgress
from fdllm.cluster.exit_reason import LOCKED, TERMINATED
from fdllm.cluster.render import ENDED_EARLY
from fdllm.cluster.signals import Terminated, terminable, warned
from fdllm.cluster.submission import Assignment, Submission, read_submission
from fdllm.errors import FdllmError, MissingError, UsageError
from fdllm.evaluate.attempt import RunOutcome
from fdllm.evaluate.runner import Runner
from fdllm.evaluate.tasks import task_facts
from fdllm.outside import read_text
from fdllm.plan import Planner, State
from fdllm.record.atomic import write_text
from fdllm.record.journal import write_failure
from fdllm.record.paths import Layout, find_root

_NO_FURTHER = (
    "asked to end before a single batch was done, and not requeued, as it would get no further; "
    "give it more time (time_min in fdllm.toml, or --time), a smaller batch or more --shards"
)


@dataclass(frozen=True, kw_only=True)
class JobCommand(Command):
    """What an array task runs: an assignment of a submission."""

    hidden = True
    map: Path = flag("map.json of a submission", flags=("map",), metavar="MAP")
    index: int = flag("number in the array", flags=("index",), type=int, metavar="INDEX")

    def run(self) -> int:
        """Do one assignment of a submission.

        Returns:
            0 done, or nothing left to do; 1 failed; 75 asked to end early with answers kept, so
            that the job is to be requeued; 76 another process works in the run's folder.
        """
        submission = read_submission(self.map.parent)
        if not 0 <= self.index < len(submission.assignments):
            raise UsageError(
                f"{submission.map} has assignments 0 .. {len(submission.assignments) - 1}, no "
                f"{self.index}"
            )
        one = submission.assignments[self.index]
        root = find_root()
        facts = partial(task_facts, include=one.run.include)
        planner = Planner(root, Layout.of(root, submission.results), facts)
        # The name by which queue and log know this task; a record's is the number behind it.
        job = f"{os.environ.get('SLURM_ARRAY_JOB_ID')}_{one.number}"
        log = submission.log_folder(self.index) / f"slurm_{job}.log"
        warning = submission.warning(self.index, os.environ.get("SLURM_RESTART_COUNT", "0"))
        if one.study is not None:
            _check_missing(submission)
            with terminable():
                studies.take(
                    planner,
                    one.study,
                    lambda choice: sweep.load_model(choice, submission.threads),
                    str(log),
                )
            return 0
        paths = planner.layout.run(one.run).of_shard(one.shard)
        try:
            _check_missing(submission)
            outcome = _work(planner, one, submission.threads, log, warning)
        except FdllmError as error:  # the model cannot be loaded, say: the cell's reason too
            write_failure(paths, str(error), str(log))
            if isinstance(error, MissingError):
                _miss(submission, job, str(error))
            raise
        if outcome.missing:
            _miss(submission, job, outcome.reason)
        if outcome.state is State.PARTIAL and outcome.num_computed:
            return ENDED_EARLY
        if outcome.state is State.RUNNING:
            show.held(one.run, paths, outcome.reason)
            return LOCKED
        return int(outcome.state in (State.FAILED, State.PARTIAL))


def _check_missing(submission: Submission) -> None:
    """Raise what another task of the submission has said, if it missed what this one needs too."""
    if submission.missing.exists():
        raise MissingError(f"not tried: {read_text(submission.missing, most=1 << 16)}")


def _miss(submission: Submission, job: str, reason: str) -> None:
    """Let the submission's other tasks know; a later sweep is another submission."""
    if not submission.missing.exists():
        write_text(submission.missing, f"{reason} (job {job} on {socket.gethostname()})")


def _work(
    planner: Planner, one: Assignment, threads: int | None, log: Path, warning: Path
) -> RunOutcome:
    """Compute; whatever ends it early is kept as the run's reason."""
    paths = planner.layout.run(one.run).of_shard(one.shard)
    with terminable(), warned(warning) as go_on, GridProgress(1, console(stderr=True)) as watch:
        runner = Runner(planner, watch, lambda choice: sweep.load_model(choice, threads), go_on)
        try:
            outcome = runner.run(one.run, shard=one.shard, merge=one.merge, until=one.until)
        except Terminated:
            write_failure(paths, TERMINATED, str(log))
            raise
        watch.end(outcome)
    if outcome.state is State.PARTIAL and not outcome.num_computed:
        complain(_NO_FURTHER)
        write_failure(paths, _NO_FURTHER, str(log))
    return outcome

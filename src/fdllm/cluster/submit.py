"""Hands arrays to SLURM: all of a submission, or nothing of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from fdllm.cluster.cluster_config import ClusterConfig
from fdllm.cluster.queue import SlurmError, run_command
from fdllm.cluster.submission import (
    Submission,
    write_jobs,
    write_map,
)
from fdllm.errors import FdllmError
from fdllm.plan import Planner
from fdllm.record.atomic import explained, make_folder, write_text
from fdllm.record.lock import locked
from fdllm.runs import Run

_PATIENCE_S = 120


@contextmanager
def submitting(root: Path) -> Iterator[None]:
    """One sweep at a time reads the queue and submits; a second waits, then sees the first's jobs.

    Raises:
        FdllmError: another one takes too long, or the logs' folder cannot be written.
    """
    make_folder(root)
    lock = FileLock(root / ".submitting", timeout=_PATIENCE_S)
    with explained(root / ".submitting"):
        try:
            lock.acquire()
        except Timeout:
            raise FdllmError(
                f"another sweep has been submitting for {_PATIENCE_S} s ({root / '.submitting'}); "
                "nothing was submitted. Wait for it, then run the same command again"
            ) from None
    try:
        yield
    finally:
        lock.release()


def submit(
    planner: Planner,
    submissions: Sequence[Submission],
    cluster: ClusterConfig,
    forced: Sequence[Run] = (),
) -> list[Submission]:
    """Hand submissions to the queue, and return them with their ids.

    Those with ``forced`` runs are held until these runs' old records are out of the way.

    Raises:
        FdllmError: SLURM does not take one. Of that one nothing stays behind; ahead of it are
            whole submissions, which the same command does not submit again.
    """
    make_folder(planner.layout.results)
    if cluster.image is not None:
        make_folder(cluster.hub_home)
    return [_submit(planner, one, forced) for one in submissions]


def _submit(planner: Planner, submission: Submission, forced: Sequence[Run]) -> Submission:
    mine = [run for run in forced if any(run == one.run for one in submission.assignments)]
    for one in submission.assignments:
        make_folder(submission.log_folder(one.index))
    write_map(submission)
    for name, text in submission.scripts.items():
        write_text(submission.folder / name, text)
    accepted: dict[str, str] = {}
    try:
        for script in submission.scripts:
            behind = [f"--dependency=afterany:{':'.join(accepted.values())}"] if accepted else []
            hold = ["--hold"] if mine and not accepted else []
            accepted[script] = _sbatch(submission.folder, script, hold + behind)
        submission = replace(submission, jobs=accepted)
        write_jobs(submission)
        for run in mine:
            paths = planner.layout.run(run)
            with locked(paths):
                paths.supersede()
        if mine:
            _slurm("scontrol", "release", next(iter(accepted.values())))
    except BaseException:
        if accepted:
            with suppress(SlurmError):
                run_command("scancel", *accepted.values())
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return submission


def _sbatch(folder: Path, script: str, flags: Sequence[str]) -> str:
    """Submit a script of a submission; the job's id.

    SLURM's own words about a job, and whatever comes ahead of its log, go to ``array_N.out``.
    """
    answer = _slurm(
        "sbatch",
        "--parsable",
        "--export=ALL",
        f"--chdir={folder}",
        f"--output={str(folder).replace('%', '%%')}/array_%a.out",
        *flags,
        str(folder / script),
    )
    return answer.strip().split(";")[0]


def _slurm(*command: str) -> str:
    """Run one of SLURM's commands that submit."""
    told = (
        "{}; of these runs nothing was submitted. 'scontrol ping' says whether slurmctld "
        "is up, fdllm.toml holds partition and account; then the same command again"
    )
    return run_command(*command, timeout_s=180, told=told)

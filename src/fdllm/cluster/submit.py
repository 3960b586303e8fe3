"""Hands arrays to SLURM: all of a submission, or nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from fdllm.cluster.planned import PlannedSubmission
from fdllm.cluster.submission import Submission, write_jobs, write_map
from fdllm.config import Run
from fdllm.errors import FdllmError
from fdllm.plan import Planner
from fdllm.record.atomic import explained, make_folder, write_text
from fdllm.record.lock import locked

_PATIENCE_S = 120


@contextmanager
def submitting(root: Path) -> Iterator[None]:
    """One sweep at a time reads the queue and submits; a second waits, then sees the first's jobs.

    Args:
        root: the logs of the checkout.

    Raises:
        FdllmError: another one takes too long, or the folder cannot be written.
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
    planner: Planner, drafts: Sequence[PlannedSubmission], forced: Sequence[Run] = ()
) -> list[Submission]:
    """Hand drafts to the queue; held until their old records are out of the way.

    Args:
        planner: knows where records lie.
        drafts: what to submit.
        forced: runs whose records are moved aside once their jobs are accepted.

    Raises:
        FdllmError: SLURM does not take one. Of that one nothing stays behind; ahead of it are
            whole submissions, which the same command does not submit again.
    """
    require_sbatch()
    return [_submit(planner, one, forced) for one in drafts]


def _submit(planner: Planner, one: PlannedSubmission, forced: Sequence[Run]) -> Submission:
    submission = one.submission
    mine = [run for run in forced if any(run == item.run for item in submission.assignments)]
    for folder in one.folders:
        make_folder(folder)
    write_map(submission)
    for name, text in one.files():
        write_text(submission.folder / name, text)
    accepted: list[str] = []
    try:
        hold = ["--hold"] if mine else []
        accepted.append(_sbatch(submission.folder, "job.sh", hold))
        if one.merge is not None:
            behind = f"--dependency=afterany:{accepted[0]}"
            accepted.append(_sbatch(submission.folder, "merge.sh", [behind]))
        submission = replace(
            submission, job_id=accepted[0], merge_job_id=accepted[1] if one.merge else None
        )
        write_jobs(submission)
        for run in mine:
            paths = planner.layout.run(run)
            with locked(paths):
                paths.supersede()
        if mine:
            _slurm(["scontrol", "release", accepted[0]])
    except BaseException:
        if accepted:
            subprocess.run(["scancel", *accepted], check=False, capture_output=True)  # noqa: S603, S607
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return submission


def require_sbatch() -> None:
    """Check that jobs can be submitted from here.

    Raises:
        FdllmError: ``sbatch`` is not on the PATH.
    """
    if shutil.which("sbatch") is None:
        raise FdllmError(
            "--executor slurm needs sbatch, which is not on the PATH; run this on a login node of "
            "the cluster, or compute here with --executor local"
        )


def _sbatch(folder: Path, script: str, flags: Sequence[str]) -> str:
    """Submit a script of a submission; the job's id.

    SLURM's own words about a job, and whatever comes ahead of its log, go to ``array_N.out``.
    """
    answer = _slurm(
        [
            "sbatch",
            "--parsable",
            "--export=ALL",
            f"--chdir={folder}",
            f"--output={str(folder).replace('%', '%%')}/array_%a.out",
            *flags,
            str(folder / script),
        ]
    )
    return answer.strip().split(";")[0]


def _slurm(command: list[str]) -> str:
    """Run one of SLURM's commands.

    Raises:
        FdllmError: it fails; its own words are passed on.
    """
    try:
        done = subprocess.run(  # noqa: S603 - one of SLURM's, found by its name
            command, capture_output=True, text=True, check=False, env=_environment(), timeout=180
        )
    except subprocess.TimeoutExpired:
        raise FdllmError(f"{command[0]} did not answer; {_NOTHING}") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise FdllmError(f"{command[0]}: {said}; {_NOTHING}")
    return done.stdout


_NOTHING = (
    "of these runs nothing was submitted. 'scontrol ping' says whether slurmctld is up, fdllm.toml "
    "holds partition and account; then the same command again"
)


def _environment() -> dict[str, str]:
    """The shell's, without what a job that submits would hand down of itself."""
    kept = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
    return {
        name: value
        for name, value in os.environ.items()
        if name in kept or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
    }

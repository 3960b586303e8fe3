"""Hands arrays to SLURM: all of a submission, or nothing of it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from fdllm.cluster.cluster_config import ClusterConfig, clusters_of
from fdllm.cluster.queue import JobId, NoAnswerError, SlurmError, run_command
from fdllm.cluster.submission import Submission, kind, write_jobs, write_map
from fdllm.errors import FdllmError
from fdllm.plan import Planner
from fdllm.record.atomic import explained, make_folder, write_text
from fdllm.record.lock import LockedError, locked
from fdllm.runs import Run

_PATIENCE_S = 120
_ANSWER_S = 180
_OPTION = "#SBATCH "
_ID = re.compile(r"(?P<number>\d+)(?:;(?P<cluster>[^\s;]+))?")
_FEWER = (
    "An array task is a job, and only so many are taken at once: name fewer configs (--config), "
    "split them less (--shards), or wait until others have ended"
)
# What would help against a refusal, by what SLURM says of it; the first that fits.
_REMEDIES = (
    (r"MaxWall|MaxTime|time limit is", "Ask for less time (--time, or time_min in fdllm.toml)"),
    (r"SubmitJob|[Jj]ob array|MaxJobCount|accounting/QOS policy", _FEWER),
    ("", "'scontrol ping' says whether slurmctld is up, fdllm.toml holds partition and account"),
)


class RefusedError(SlurmError):
    """SLURM does not take a job."""


@contextmanager
def submitting(root: Path) -> Iterator[None]:
    """One sweep at a time reads the queue and submits; a second waits, then sees the first's jobs.

    Raises:
        FdllmError: another one takes too long, or the logs' folder cannot be written.
    """
    make_folder(root)
    lock = FileLock(root / ".submitting", timeout=_PATIENCE_S, fallback_to_soft=False)
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
    jobs: dict[str, JobId | None] = {}
    submission = replace(submission, jobs=jobs)
    try:
        held = _hand_over(submission, jobs, hold=bool(mine))
        for run in mine:
            paths = planner.layout.run(run)
            try:
                with locked(paths):
                    paths.supersede()
            except LockedError as error:
                raise FdllmError(
                    f"{run}: nothing was submitted, as its folder is held by {error}; wait for it, "
                    "or leave this config out"
                ) from None
        for job in held:
            run_command("scontrol", "release", job.number, cluster=job.cluster, timeout_s=_ANSWER_S)
    except BaseException:
        known = [job for job in jobs.values() if job is not None]
        if len(known) == len(jobs):  # else one may be in the queue that nobody could cancel
            with suppress(SlurmError):  # where it does not answer, the files keep what it holds
                for job in known:
                    run_command("scancel", job.number, cluster=job.cluster)
                shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    return submission


def _hand_over(submission: Submission, jobs: dict[str, JobId | None], *, hold: bool) -> list[JobId]:
    """Submit each script and keep its id in ``jobs``; those that are held."""
    held = []
    for script in submission.scripts:
        command = sbatch_command(submission, script, hold=hold)
        jobs[script] = None  # whatever ends this process from here on, nothing is sent twice
        write_jobs(submission)
        try:
            jobs[script] = job = _sbatch(submission, script, command)
        except RefusedError:
            del jobs[script]
            raise
        finally:
            write_jobs(submission)
        if "--hold" in command:
            held.append(job)
    return held


def sbatch_command(submission: Submission, script: str, *, hold: bool = False) -> list[str]:
    """What submits a script, behind those of the submission that were accepted already.

    The options of its ``#SBATCH`` lines stand in the command too, as variables of the shell
    (``SBATCH_SIGNAL``) are above those lines and below the command. SLURM's own words about a job,
    and whatever comes ahead of its log, go to ``array_N.out``. On ``hold``, what waits for no other
    array waits for ``scontrol release``.
    """
    folder = submission.folder
    options = [word for line in _options(submission, script) for word in shlex.split(line)]
    throttled = any(word.startswith("--array") and "%" in word for word in options)
    accepted = {name: job for name, job in submission.jobs.items() if job is not None}
    behind = [job for name, job in accepted.items() if throttled or kind(name) != kind(script)]
    clusters = dict.fromkeys(job.cluster for job in accepted.values() if job.cluster is not None)
    return [
        "sbatch",
        *options,
        *(f"--clusters={name}" for name in clusters),
        "--parsable",
        "--export=ALL",
        f"--chdir={folder}",
        f"--output={str(folder).replace('%', '%%')}/array_%a.out",
        *(["--hold"] if hold and not behind else []),
        *([f"--dependency=afterany:{':'.join(job.number for job in behind)}"] if behind else []),
        str(folder / script),
    ]


def _sbatch(submission: Submission, script: str, command: Sequence[str]) -> JobId:
    """Submit a script; the job's id.

    Raises:
        RefusedError: it was not accepted.
        NoAnswerError: nobody knows whether it was.
    """
    try:
        said = run_command(*command, timeout_s=_ANSWER_S)
    except NoAnswerError as error:
        lost = str(error)
    except SlurmError as error:
        raise RefusedError(
            f"{error}; of these runs nothing was submitted. {_remedy(str(error))}; then the same "
            "command again"
        ) from None
    else:
        # A site's banners and plugins print around it.
        found = [one for line in said.splitlines() if (one := _ID.fullmatch(line.strip()))]
        if found:
            asked = clusters_of(_options(submission, script)) or ""
            only = asked if re.fullmatch(r"(?!all$)[^,]+", asked) else None
            return JobId(found[-1]["number"], found[-1]["cluster"] or only)
        lost = f"sbatch printed no job's number ({' '.join(said.split())!r})"
    held = " It is held there, so cancel it." if "--hold" in command else ""
    raise NoAnswerError(f"{lost}; nothing was cancelled. {submission.unknown}.{held}")


def _options(submission: Submission, script: str) -> list[str]:
    """What its ``#SBATCH`` lines say."""
    lines = submission.scripts[script].splitlines()
    return [line.removeprefix(_OPTION) for line in lines if line.startswith(_OPTION)]


def _remedy(said: str) -> str:
    return next(remedy for pattern, remedy in _REMEDIES if re.search(pattern, said))

"""What was handed to the queue: one folder for each ``sbatch``, read back by status and by jobs.

``logs/<experiment>/<task folder>/submissions/<stamp>/`` holds ``map.json`` (which array task does
which run; frozen ahead of ``sbatch``), ``job.sh`` (what was submitted; ``merge.sh`` behind shards,
``timing.sh`` behind both for the timing study),
``jobs.json`` (the queue's ids; null from ahead of ``sbatch`` until its answer names one), and
``ended/<index>`` (a line for each life of an array task that came to an end by itself: ``JOB
RESTARTS STATUS TIME``) beside
``ended/<index>.warned-<restarts>``, which the script makes when SLURM warns it of the time limit.
``missing`` says which model or data a task of it has missed, so that the others do not begin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fdllm.cluster.queue import JobId
from fdllm.errors import FdllmError
from fdllm.outside import AbsentError, OutsideError, read_json
from fdllm.record.atomic import make_folder, write_json
from fdllm.record.paths import TIMING, Layout, RunPaths
from fdllm.runs import Run
from fdllm.shard import Shard
from fdllm.spec import first_problem
from fdllm.timing.wanted import WantedStudy
from fdllm.until_decided import UntilDecided

VERSION = 3
MAP = "map.json"
JOBS = "jobs.json"
_MOST = 64 << 20  # bytes of either
WORK, MERGE, STUDY = "job", "merge", "timing"  # what an array does


@dataclass(frozen=True)
class Assignment:
    """What one array task does."""

    index: int  # its place in the submission
    run: Run
    shard: Shard | None = None  # the part of it; None is the whole run, or its merging
    # it puts this many shards together, in a job behind theirs; None computes
    merge: int | None = None
    # it ends where its criteria are decided; None goes to the last document
    until: UntilDecided | None = None
    # the timing study that it takes, in a job behind all others; ``run`` is its baseline
    study: WantedStudy | None = None
    # the array's numbers begin behind this index, where one array cannot hold all of them
    offset: int = 0

    @property
    def name(self) -> str:
        """The folder of what it makes: a config's, or the study's."""
        return self.run.cell.name if self.study is None else TIMING

    @property
    def number(self) -> int:
        """Its number in the array."""
        return self.index - self.offset

    @property
    def script(self) -> str:
        """The job script that does it: ``job.sh``, ``job-1001.sh`` of a second array."""
        kind = STUDY if self.study is not None else WORK if self.merge is None else MERGE
        return f"{kind}-{self.offset}.sh" if self.offset else f"{kind}.sh"


_ASSIGNMENTS = TypeAdapter(tuple[Assignment, ...])


@dataclass(frozen=True)
class Submission:
    """What was submitted of one (experiment, task): up to three arrays, each behind the others.

    Of runs or of their shards; of what merges shards; of the timing study. One that is longer than
    the cluster takes is several.
    """

    folder: Path
    # by index; those that merge come behind the others, and the study last
    assignments: tuple[Assignment, ...]
    results: Path | None = None  # the folder given with ``--results``; None is the checkout's
    threads: int | None = None  # torch's
    # the queue's ids, by script; None was handed to ``sbatch``, whose answer names no job
    jobs: Mapping[str, JobId | None] = field(default_factory=dict)
    # texts of its job scripts by name; empty where it is read back
    scripts: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def submitted(self) -> datetime:
        """When, as its folder is named."""
        return datetime.fromisoformat(self.folder.name)

    @property
    def map(self) -> Path:
        """``map.json``."""
        return self.folder / MAP

    @property
    def unknown(self) -> str:
        """What to do where ``sbatch`` named no job; empty where it named all."""
        for script, job in self.jobs.items():
            if job is None:
                return (
                    f"sbatch was given {self.folder / script} and named no job. If the queue has "
                    "it (squeue --user=$USER --format='%i %o'), write its number into jobs.json "
                    f'beside it ("{script}": "NUMBER"); if not, delete that folder. Until then it '
                    "counts as queued"
                )
        return ""

    def task_id(self, index: int) -> JobId | None:
        """What the queue calls an assignment, ``12_3``; None where it named none."""
        one = self.assignments[index]
        job = self.jobs.get(one.script)
        return None if job is None else job.task(one.number)

    def log_folder(self, index: int) -> Path:
        """Where the log of an assignment lies: with the other logs of its run."""
        return self.folder.parents[1] / self.assignments[index].name

    def log(self, index: int) -> Path | None:
        """The log of an assignment, ``slurm_12_3.log``; None where its id is not known."""
        job = self.task_id(index)
        return None if job is None else self.log_folder(index) / f"slurm_{job.number}.log"

    def ended(self, index: int) -> Path:
        """Where the job script notes how each life of an assignment ended."""
        return self.folder / "ended" / str(index)

    @property
    def missing(self) -> Path:
        """What one of its tasks needed and all others need too, where it was not there."""
        return self.folder / "missing"

    def warning(self, index: int, life: str) -> Path:
        """By this file the job script warns of the time limit; ``0`` is the first life."""
        return self.folder / "ended" / f"{index}.warned-{life}"


def kind(script: str) -> str:
    """What the array of a script does: ``job``, ``merge`` or ``timing``."""
    return script.removesuffix(".sh").partition("-")[0]


def submissions_folder(paths: RunPaths) -> Path:
    """Where the submissions of a run's task lie."""
    return paths.logs.parent / "submissions"


def write_map(submission: Submission) -> None:
    """Freeze what each array task does."""
    make_folder(submission.folder)
    assignments = _ASSIGNMENTS.dump_python(submission.assignments, mode="json")
    results = None if submission.results is None else str(submission.results)
    known = {"version": VERSION, "results": results, "threads": submission.threads}
    write_json(submission.map, known | {"assignments": assignments})


def write_jobs(submission: Submission) -> None:
    """Keep what the queue calls the jobs."""
    jobs = {
        script: None if job is None else job.parsable for script, job in submission.jobs.items()
    }
    write_json(submission.folder / JOBS, jobs)


def read_submission(folder: Path) -> Submission:
    """A submission as its files tell it.

    Raises:
        FdllmError: ``map.json`` is missing or damaged, or of another version.
    """
    try:
        data = read_json(folder / MAP, most=_MOST)
        if data["version"] != VERSION:
            raise FdllmError(
                f"{folder / MAP} has version {data['version']}, this is {VERSION}; submit again"
            )
        assignments = _ASSIGNMENTS.validate_python(data["assignments"])
        return Submission(
            folder=folder,
            assignments=assignments,
            results=None if data["results"] is None else Path(data["results"]),
            threads=data["threads"],
            jobs=_read_jobs(folder / JOBS, assignments),
        )
    except OutsideError as error:
        raise FdllmError(f"{error}; submit again") from None
    except (ValueError, KeyError, TypeError) as error:
        told = first_problem(error) if isinstance(error, ValidationError) else error
        raise FdllmError(f"{folder / MAP} cannot be read: {told}; submit again") from None


def _read_jobs(path: Path, assignments: Sequence[Assignment]) -> dict[str, JobId | None]:
    """The ids that are known; none of them where the file, which a person may edit, is damaged."""
    try:
        jobs = TypeAdapter(dict[str, int | str | None]).validate_python(read_json(path, most=_MOST))
        return {name: None if job is None else JobId.read(str(job)) for name, job in jobs.items()}
    except AbsentError:  # cut off ahead of ``sbatch``
        return {}
    except (OutsideError, ValueError):
        return dict.fromkeys(one.script for one in assignments)


def read_submissions(layout: Layout, runs: Iterable[Run]) -> list[Submission]:
    """The submissions that concern any of ``runs``, oldest first.

    One that cannot be read is left out: it was cut off before anything was handed to the queue.
    """
    runs = list(runs)
    wanted = {layout.run(run).folder for run in runs}
    places = {submissions_folder(layout.run(run)) for run in runs}
    found: list[Submission] = []
    for place in sorted(places):
        for folder in sorted(place.iterdir() if place.is_dir() else ()):
            try:
                submission = read_submission(folder)
            except FdllmError:
                continue
            if wanted & {layout.run(one.run).folder for one in submission.assignments}:
                found.append(submission)
    return sorted(found, key=lambda submission: submission.folder.name)


def assign(
    runs: Sequence[Run],
    num_shards: int,
    until: Callable[[Run], UntilDecided | None] | None = None,
    study: WantedStudy | None = None,
    most: int | None = None,
) -> tuple[Assignment, ...]:
    """Number the work: run by run, shards next to each other, merging behind them, then a study.

    ``until`` says where a run ends that is not split; an array can hold so many tasks at ``most``.
    """
    work = _split(runs, num_shards, until)
    if study is not None:
        work = (*work, Assignment(len(work), study.baseline, study=study))
    return tuple(replace(one, offset=one.index - one.index % (most or len(work))) for one in work)


def _split(
    runs: Sequence[Run], num_shards: int, until: Callable[[Run], UntilDecided | None] | None
) -> tuple[Assignment, ...]:
    if num_shards == 1:
        ends = [None if until is None else until(run) for run in runs]
        return tuple(Assignment(n, run, until=ends[n]) for n, run in enumerate(runs))
    parts = [(run, shard) for run in runs for shard in Shard.all_of(num_shards)]
    split = [Assignment(index, run, shard) for index, (run, shard) in enumerate(parts)]
    merging = [Assignment(len(parts) + n, run, merge=num_shards) for n, run in enumerate(runs)]
    return (*split, *merging)

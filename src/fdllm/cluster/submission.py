"""What was handed to the queue: one folder for each ``sbatch``, read back by status and by jobs.

``logs/<experiment>/<task folder>/submissions/<stamp>/`` holds ``map.json`` (which array task does
which run; frozen ahead of ``sbatch``), ``job.sh`` (what was submitted; ``merge.sh`` behind shards,
``timing.sh`` behind both for the timing study),
``jobs.json`` (the queue's ids; written after ``sbatch``), and ``ended/<index>`` (a line for each
life of an array task that came to an end by itself: ``JOB RESTARTS STATUS TIME``) beside
``ended/<index>.warned-<restarts>``, which the script makes when SLURM warns it of the time limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from fdllm.errors import FdllmError
from fdllm.record.atomic import make_folder, write_json
from fdllm.record.paths import TIMING, Layout, RunPaths
from fdllm.runs import Run
from fdllm.shard import Shard
from fdllm.timing.wanted import WantedStudy
from fdllm.until_decided import UntilDecided

VERSION = 2
MAP = "map.json"
JOBS = "jobs.json"
JOB_SCRIPT = "job.sh"
MERGE_SCRIPT = "merge.sh"
STUDY_SCRIPT = "timing.sh"


@dataclass(frozen=True)
class Assignment:
    """What one array task does."""

    index: int  # its number in the array
    run: Run
    shard: Shard | None = None  # the part of it; None is the whole run, or its merging
    # it puts this many shards together, in a job behind theirs; None computes
    merge: int | None = None
    # it ends where its criteria are decided; None goes to the last document
    until: UntilDecided | None = None
    # the timing study that it takes, in a job behind all others; ``run`` is its baseline
    study: WantedStudy | None = None

    @property
    def name(self) -> str:
        """The folder of what it makes: a config's, or the study's."""
        return self.run.cell.name if self.study is None else TIMING

    @property
    def script(self) -> str:
        """The job script that does it."""
        if self.study is not None:
            return STUDY_SCRIPT
        return JOB_SCRIPT if self.merge is None else MERGE_SCRIPT


@dataclass(frozen=True)
class Submission:
    """What was submitted of one (experiment, task): up to three jobs, each behind the others.

    An array of runs or of their shards; one that merges shards; one that takes the timing study.
    """

    folder: Path
    # by index; those that merge come behind the others, and the study last
    assignments: tuple[Assignment, ...]
    results: Path | None = None  # the folder given with ``--results``; None is the checkout's
    threads: int | None = None  # torch's
    jobs: Mapping[str, str] = field(default_factory=dict)  # the queue's ids, by script
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

    def task_id(self, index: int) -> str | None:
        """What the queue calls an assignment, ``12_3``; None while it was not accepted."""
        job = self.jobs.get(self.assignments[index].script)
        return None if job is None else f"{job}_{index}"

    def log_folder(self, index: int) -> Path:
        """Where the log of an assignment lies: with the other logs of its run."""
        return self.folder.parents[1] / self.assignments[index].name

    def log(self, index: int) -> Path | None:
        """The log of an assignment, ``slurm_12_3.log``; None while it was not accepted."""
        job = self.task_id(index)
        return None if job is None else self.log_folder(index) / f"slurm_{job}.log"

    def ended(self, index: int) -> Path:
        """Where the job script notes how each life of an assignment ended."""
        return self.folder / "ended" / str(index)

    def warning(self, index: int, life: str) -> Path:
        """By this file the job script warns of the time limit; ``0`` is the first life."""
        return self.folder / "ended" / f"{index}.warned-{life}"


def submissions_folder(paths: RunPaths) -> Path:
    """Where the submissions of a run's task lie."""
    return paths.logs.parent / "submissions"


def write_map(submission: Submission) -> None:
    """Freeze what each array task does."""
    make_folder(submission.folder)
    data = {
        "version": VERSION,
        "results": None if submission.results is None else str(submission.results),
        "threads": submission.threads,
        "assignments": [
            {
                "index": one.index,
                "run": one.run.model_dump(mode="json"),
                "shard": None if one.shard is None else [one.shard.index, one.shard.count],
                "merge": one.merge,
                "until": None if one.until is None else one.until.model_dump(mode="json"),
                "study": None if one.study is None else one.study.as_dict(),
            }
            for one in submission.assignments
        ],
    }
    write_json(submission.map, data)


def write_jobs(submission: Submission) -> None:
    """Keep what the queue calls the jobs."""
    write_json(submission.folder / JOBS, dict(submission.jobs))


def read_submission(folder: Path) -> Submission:
    """A submission as its files tell it.

    Raises:
        FdllmError: ``map.json`` is missing or damaged, or of another version.
    """
    try:
        data = json.loads((folder / MAP).read_text(encoding="utf-8"))
        accepted = (folder / JOBS).exists()
        jobs = json.loads((folder / JOBS).read_text(encoding="utf-8")) if accepted else {}
        if data["version"] != VERSION:
            raise FdllmError(
                f"{folder / MAP} has version {data['version']}, this is {VERSION}; submit again"
            )
        return Submission(
            folder=folder,
            assignments=tuple(
                Assignment(
                    int(one["index"]),
                    Run(**one["run"]),
                    None if one["shard"] is None else Shard(*one["shard"]),
                    one["merge"],
                    None if one.get("until") is None else UntilDecided(**one["until"]),
                    None if one["study"] is None else WantedStudy.read(one["study"]),
                )
                for one in data["assignments"]
            ),
            results=None if data["results"] is None else Path(data["results"]),
            threads=data["threads"],
            jobs=jobs,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FdllmError(f"{folder / MAP} cannot be read: {error}; submit again") from None


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
) -> tuple[Assignment, ...]:
    """Number the work: run by run, shards next to each other, merging behind them, then a study.

    Args:
        runs: each a run of its own.
        num_shards: into which each is split.
        until: where each ends; None goes to the last document, as a run that is split does.
        study: of the runs' task.
    """
    work = _split(runs, num_shards, until)
    return work if study is None else (*work, Assignment(len(work), study.baseline, study=study))


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

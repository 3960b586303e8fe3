"""What would be submitted for some runs: the arrays and the texts of their scripts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fdllm.caches import hub_home
from fdllm.cluster.cluster_config import ClusterConfig
from fdllm.cluster.container import container_command, image_digest
from fdllm.cluster.render import Script, render
from fdllm.cluster.submission import Assignment, Submission, assign, submissions_folder
from fdllm.config import Run
from fdllm.errors import UsageError
from fdllm.plan import Planner
from fdllm.record.paths import utc_stamp

_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "NLTK_DATA")


@dataclass(frozen=True)
class SubmitOptions:
    """How runs are to be submitted.

    Attributes:
        site: the cluster, the flags applied.
        num_shards: array tasks that share one run's samples.
        results: folder given with ``--results``; None is the checkout's.
        threads: torch's threads, or None.
        workdir: where the command was given; relative model folders start there.
    """

    site: ClusterConfig
    num_shards: int
    results: Path | None
    threads: int | None
    workdir: Path


@dataclass(frozen=True)
class PlannedSubmission:
    """A submission that nobody has been told of yet.

    Attributes:
        submission: without ids.
        job: text of ``job.sh``.
        merge: text of ``merge.sh``, where shards are merged.
        folders: what must be there ahead of the jobs.
    """

    submission: Submission
    job: str
    merge: str | None
    folders: tuple[Path, ...]

    def files(self) -> Iterator[tuple[str, str]]:
        """The scripts by name."""
        yield "job.sh", self.job
        if self.merge is not None:
            yield "merge.sh", self.merge


def draft(planner: Planner, runs: Sequence[Run], wish: SubmitOptions) -> list[PlannedSubmission]:
    """The arrays of some runs, one for each (experiment, task); nothing is written.

    Raises:
        UsageError: the image is not there, or a number makes no sense.
    """
    image = wish.site.image
    if image is not None and not image.exists():
        raise UsageError(
            f"there is no image at {image}; build it with: nox -s container, or name another with "
            "--image or in fdllm.toml"
        )
    digest = None if image is None else image_digest(image)
    logs = str(planner.layout.logs)
    if any(character in logs for character in "\\\n"):
        raise UsageError(
            f"SLURM cannot write below {logs!r}: it reads a backslash or a line's end its own way "
            "there; give --results another folder, or move the checkout"
        )
    stamp = utc_stamp()
    return [
        _draft(planner, list(group), wish, stamp, digest)
        for _, group in groupby(runs, key=lambda run: (run.experiment, run.task))
    ]


def _draft(
    planner: Planner, runs: list[Run], wish: SubmitOptions, stamp: str, digest: str | None
) -> PlannedSubmission:
    submission = Submission(
        folder=submissions_folder(planner.layout.run(runs[0])) / stamp,
        assignments=assign(runs, wish.num_shards),
        results=wish.results,
        threads=wish.threads,
    )
    work = [one for one in submission.assignments if one.merge is None]
    merging = [one for one in submission.assignments if one.merge is not None]
    job = _render(planner, submission, wish, work, digest)
    merge = _render(planner, submission, wish, merging, digest) if merging else None
    logs = [submission.log_folder(one.index) for one in submission.assignments]
    caches = [] if wish.site.image is None else [cache(wish.site)]
    folders = tuple(dict.fromkeys([planner.layout.results, *caches, *logs]))
    return PlannedSubmission(submission, job, merge, folders)


def _render(
    planner: Planner,
    submission: Submission,
    wish: SubmitOptions,
    assignments: Sequence[Assignment],
    digest: str | None,
) -> str:
    run, site = assignments[0].run, wish.site
    resources = site.resources_of(run)
    environment = {"FDLLM_ROOT": str(planner.root)}
    if site.image is not None or site.hf_home is not None:
        environment["HF_HOME"] = str(cache(site))
    if site.offline:
        environment |= dict.fromkeys(_OFFLINE, "1")
    if digest is not None:
        environment["FDLLM_IMAGE_SHA256"] = digest
    relative = Path(run.model.name).is_dir() and not Path(run.model.name).is_absolute()
    workdir = wish.workdir if relative else planner.root
    return render(
        Script(
            name=f"fdllm-{run.experiment}-{planner.layout.task_folder(run)}",
            resources=resources,
            logs={one.index: submission.log_folder(one.index) for one in assignments},
            ended=submission.folder / "ended",
            workdir=workdir,
            command=_command(planner, submission, wish, workdir, gpu=bool(resources.gres)),
            environment=environment,
            contained=site.image is not None,
            max_jobs=site.max_jobs,
            warn_s=site.warn_s,
            setup=site.setup,
        )
    )


def _command(
    planner: Planner, submission: Submission, wish: SubmitOptions, workdir: Path, *, gpu: bool
) -> list[str]:
    """What a task runs, but for its index."""
    job = ["job", str(submission.map)]
    if wish.site.image is None:
        return [sys.executable, "-P", "-m", "fdllm.cli", *job]
    return container_command(
        wish.site.image,
        ["fdllm", *job],
        binds=[*binds(planner, wish, submission.assignments[0].run, workdir), *wish.site.binds],
        gpu=gpu,
        environment={},  # handed in by the script, from its own environment
        program=wish.site.apptainer,
    )


def binds(planner: Planner, wish: SubmitOptions, run: Run, workdir: Path) -> list[str]:
    """What a task needs to see inside an image: checkout, records, caches, and the model's folder.

    Raises:
        UsageError: a folder's name cannot be written as a bind.
    """
    layout = planner.layout
    places = [planner.root, workdir, layout.results]  # artifacts and logs lie in one of them
    others = [_expanded(os.environ.get(name)) for name in _CACHES]
    places += [cache(wish.site), *(place for place in others if place and place.exists())]
    model = Path(run.model.name).expanduser()
    if model.is_dir():
        places.append(model.resolve())
    kept: list[Path] = []
    for place in sorted(dict.fromkeys(places)):  # a folder comes ahead of what lies in it
        if not any(place.is_relative_to(other) for other in kept):
            kept.append(place)
    for place in kept:
        if ":" in str(place) or "," in str(place):
            raise UsageError(f"'{place}' holds a ':' or ',', which no bind can name; move it")
    return [str(place) for place in kept]


def cache(site: ClusterConfig) -> Path:
    """Where models and data sets are kept: the site's word, else the shell's, else the default."""
    return site.hf_home or hub_home().absolute()


def _expanded(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None

"""What would be submitted for some runs: the arrays and the texts of their scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path

from fdllm.caches import OFFLINE, token_file
from fdllm.cluster.cluster_config import ClusterConfig, clusters_of
from fdllm.cluster.queue import most_tasks
from fdllm.cluster.render import Script, container_command, render
from fdllm.cluster.submission import (
    Assignment,
    Submission,
    assign,
    submissions_folder,
)
from fdllm.cluster.visible import binds
from fdllm.errors import UsageError
from fdllm.plan import Planner
from fdllm.record.image import SHA256, image_digest
from fdllm.record.paths import TaskFolder, utc_stamp
from fdllm.runs import Run
from fdllm.timing.wanted import WantedStudy
from fdllm.until_decided import UntilDecided


def plan_submissions(
    planner: Planner,
    runs: Sequence[Run],
    cluster: ClusterConfig,
    *,
    num_shards: int,
    results: Path | None,
    threads: int | None,
    until: Callable[[Run], UntilDecided | None] | None = None,
    studies: Sequence[WantedStudy] = (),
) -> list[Submission]:
    """The jobs of some runs and studies, for each (experiment, task); nothing is written.

    Each run's samples are split over ``num_shards`` array tasks, or each ends where ``until`` says.
    An array that the cluster could not hold is several.

    Raises:
        UsageError: the image is not there, or a path cannot be written where it must stand.
    """
    image = cluster.image
    if image is not None and not image.exists():
        raise UsageError(
            f"there is no image at {image}; build it with: nox -s container, or name another with "
            "--image or in fdllm.toml"
        )
    logs = str(planner.layout.logs)
    if any(character in logs for character in "\\\n"):
        raise UsageError(
            f"SLURM cannot write below {logs!r}: it reads a backslash or a line's end its own way "
            "there; give --results another folder, or move the checkout"
        )
    fixed = {"FDLLM_ROOT": str(planner.root)}
    if image is not None or cluster.hf_home is not None:
        fixed["HF_HOME"] = str(cluster.hub_home)
        if not cluster.offline and token_file().exists():  # which a login leaves elsewhere
            fixed["HF_TOKEN_PATH"] = str(token_file().absolute())
    if cluster.offline:
        fixed |= dict.fromkeys(OFFLINE, "1")
    if image is not None:
        fixed[SHA256] = image_digest(image)
    stamp, most = utc_stamp(), cache(most_tasks)
    places: dict[tuple[str, str], list[Run]] = {}
    for run in (*runs, *(study.baseline for study in studies)):
        places.setdefault(_place(run), []).append(run)
    submissions = [
        Submission(
            folder=submissions_folder(planner.layout.run(of_task[0])) / stamp,
            assignments=assign(
                [run for run in runs if _place(run) == place],
                num_shards,
                until,
                next((study for study in studies if _place(study.baseline) == place), None),
                most(clusters_of(cluster.resources_of(of_task[0]).extra)),
            ),
            results=results,
            threads=threads,
        )
        for place, of_task in places.items()
    ]
    return [replace(one, scripts=_scripts(planner, one, cluster, fixed)) for one in submissions]


def _place(run: Run) -> tuple[str, str]:
    return run.experiment, run.task


def _scripts(
    planner: Planner, submission: Submission, cluster: ClusterConfig, fixed: dict[str, str]
) -> dict[str, str]:
    """The texts of ``job.sh``, and of ``merge.sh`` and ``timing.sh`` where there is need."""
    run = submission.assignments[0].run
    relative = Path(run.model.name).is_dir() and not Path(run.model.name).is_absolute()
    workdir = Path.cwd() if relative else planner.root
    resources = cluster.resources_of(run)
    job = ["job", str(submission.map)]
    command = [sys.executable, "-P", "-m", "fdllm.cli", *job]
    if cluster.image is not None:
        command = container_command(
            cluster.image,
            ["fdllm", *job],
            binds=[*binds(planner, cluster, run, workdir), *cluster.binds],
            gpu=resources.has_gpu,
            program=cluster.apptainer,
        )

    def text(assignments: Sequence[Assignment]) -> str:
        return render(
            Script(
                cluster=cluster,
                name=f"fdllm-{run.experiment}-{TaskFolder.of(run)}",
                resources=resources,
                logs={one.index: submission.log_folder(one.index) for one in assignments},
                ended=submission.folder / "ended",
                offset=assignments[0].offset,
                workdir=workdir,
                command=command,
                environment=fixed,
            )
        )

    # In the order of the assignments, which is that of the jobs.
    return {
        script: text(list(group))
        for script, group in groupby(submission.assignments, key=lambda one: one.script)
    }

"""The text of a job script, and the command line of its image. Pure: the same in, the same out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fdllm.caches import OFFLINE
from fdllm.cluster.cluster_config import ClusterConfig, Resources

ENDED_EARLY = 75
"""Exit status of a task that was warned of its time limit and goes on in its next life."""

# Handed into the image, where --cleanenv lets nothing else in. The token is among them by its
# name alone: its value is in the job's environment, and in no file and no command line.
PASSED_ON = (
    "HF_TOKEN",
    "HF_TOKEN_PATH",
    "FDLLM_ROOT",
    "FDLLM_IMAGE_SHA256",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "NLTK_DATA",
    *OFFLINE,
    "HF_ENDPOINT",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
)
_PREFIXES = {"apptainer": "APPTAINERENV_", "singularity": "SINGULARITYENV_"}


@dataclass(frozen=True)
class Script:
    """What a job script says."""

    cluster: ClusterConfig  # where it runs
    name: str  # the job's name in the queue
    resources: Resources  # what each array task asks for
    logs: Mapping[int, Path]  # log folder of each array task, by its index
    ended: Path  # folder where each task notes how it ended
    workdir: Path  # where tasks run
    command: Sequence[str]  # what a task runs; its index comes behind
    environment: Mapping[str, str]  # fixed variables; no secret may be among them
    offset: int = 0  # what an index is ahead of its number in the array


def render(script: Script) -> str:
    """A whole job script.

    Paths of any spelling are safe in it: each is quoted, and none stands in an ``#SBATCH`` line,
    where SLURM would read ``%`` its own way.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 - only here

    environment = Environment(  # noqa: S701 - a shell's text, quoted as a shell wants it
        loader=PackageLoader("fdllm.cluster"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    asked = script.resources
    first, last = (edge(script.logs) - script.offset for edge in (min, max))  # neighbours, always
    return environment.get_template("job.sh.j2").render(
        script=script,
        name=re.sub(r"[^A-Za-z0-9._+@-]", "-", script.name),
        indices=first if first == last else f"{first}-{last}",
        wishes={
            "partition": asked.partition,
            "account": asked.account,
            "qos": asked.qos,
            "gres": asked.gres,
            "constraint": asked.constraint,
            "mem": asked.memory_gb and f"{asked.memory_gb}G",
        },
        command=shlex.join(script.command),
        passed_on=PASSED_ON,
        handed=[f'"{one}$name=${{!name}}"' for one in prefixes(script.cluster.apptainer)],
        ended_early=ENDED_EARLY,
    )


def container_command(
    image: Path,
    argv: Sequence[str],
    *,
    binds: Sequence[str],
    gpu: bool,
    program: str = "apptainer",
) -> list[str]:
    """What starts ``argv`` inside an image, which sees only what it is given.

    ``binds`` are ``/folder`` or ``/folder:/inside[:ro]``, each visible inside; ``gpu`` brings the
    machine's driver in. Variables go in by the environment, see :func:`prefixes`, as everyone on
    the machine reads command lines.
    """
    return [
        program,
        "exec",
        *(["--nv"] if gpu else []),
        "--cleanenv",
        "--no-home",
        *(part for bind in binds for part in ("--bind", bind)),
        str(image),
        *argv,
    ]


def prefixes(program: str) -> tuple[str, ...]:
    """What is put ahead of a variable's name so that ``program`` hands it in.

    SingularityCE reads its own alone. Apptainer reads both, and complains of the other's; a command
    of another name may be either.
    """
    name = Path(program).name
    return tuple(p for known, p in _PREFIXES.items() if known in name) or (*_PREFIXES.values(),)

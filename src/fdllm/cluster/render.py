"""The text of a job script. Pure: the same submission and site give the same text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join, quote

from fdllm.cluster.cluster_config import ClusterConfig, Resources

ENDED_EARLY = 75
"""Exit status of a task that was warned of its time limit and goes on in its next life."""

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""What keeps the Hub's client and the libraries on top of it from asking for anything."""

# Handed into the image, where --cleanenv lets nothing else in. The token is among them by its
# name alone: its value is in the job's environment, and in no file and no command line.
PASSED_ON = (
    "HF_TOKEN",
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


@dataclass(frozen=True)
class Script:
    """What a job script says.

    Attributes:
        cluster: where it runs.
        name: the job's name in the queue.
        resources: what each array task asks for.
        logs: log folder of each array task, by its index.
        ended: folder where each task notes how it ended.
        workdir: where tasks run.
        command: what a task runs; its index comes behind.
        environment: fixed variables; no secret may be among them.
    """

    cluster: ClusterConfig
    name: str
    resources: Resources
    logs: Mapping[int, Path]
    ended: Path
    workdir: Path
    command: Sequence[str]
    environment: Mapping[str, str]


def render(script: Script) -> str:
    """A whole job script.

    Paths of any spelling are safe in it: each is quoted, and none stands in an ``#SBATCH`` line,
    where SLURM would read ``%`` its own way.
    """
    return "\n".join(
        [
            "#!/bin/bash",
            "# Written by `fdllm sweep`; map.json beside it says which run each array task does.",
            *(f"#SBATCH {option}" for option in _options(script)),
            "# shellcheck disable=SC2016 # a folder's name is meant as it is spelled",
            "set -euo pipefail",
            "",
            *_log(script),
            "",
            *_setup(script),
            *_environment(script),
            "",
            *_step(script),
            "",
        ]
    )


def _options(script: Script) -> list[str]:
    asked = script.resources
    max_jobs = script.cluster.max_jobs
    throttle = "" if max_jobs is None else f"%{max_jobs}"
    wishes = {
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "gres": asked.gres,
        "constraint": asked.constraint,
        "mem": None if asked.memory_gb is None else f"{asked.memory_gb}G",
    }
    return [
        f"--job-name={re.sub(r'[^A-Za-z0-9._+@-]', '-', script.name)}",
        f"--array={_ranges(sorted(script.logs))}{throttle}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={asked.cpus}",
        f"--time={asked.time_min}",
        *(f"--{name}={value}" for name, value in wishes.items() if value),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{script.cluster.warn_s}",
        *asked.extra,
    ]


def _ranges(indices: Sequence[int]) -> str:
    """``0-8`` for neighbours, which they always are."""
    first, last = indices[0], indices[-1]
    return str(first) if first == last else f"{first}-{last}"


def _log(script: Script) -> list[str]:
    """Each task writes to the log of its own run, whose name SLURM alone could not spell."""
    return [
        "index=$SLURM_ARRAY_TASK_ID",
        "job=${SLURM_ARRAY_JOB_ID}_$index",
        "life=${SLURM_RESTART_COUNT:-0}",
        "case $index in",
        *(f"{index}) logs={quote(str(folder))} ;;" for index, folder in script.logs.items()),
        '*) echo "array task $index is not in map.json" >&2 && exit 2 ;;',
        "esac",
        'mkdir -p "$logs"',
        'exec >>"$logs/slurm_$job.log" 2>&1',
        'echo "== job $job on $(hostname), restarts: $life, $(date -u +%FT%TZ)"',
    ]


def _setup(script: Script) -> list[str]:
    """The site's lines; what `module` sources often reads variables that are not set."""
    setup = script.cluster.setup
    return ["# setup of fdllm.toml", "set +u", *setup, "set -u", ""] if setup else []


def _environment(script: Script) -> list[str]:
    lines = [f"cd -- {quote(str(script.workdir))}"]
    lines += [f"export {name}={quote(value)}" for name, value in script.environment.items()]
    lines += [f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{script.resources.cpus}}}"']
    if script.cluster.image is not None:
        lines += [
            "# What is handed into the image, the token too: by environment, never by argument.",
            f"for name in {' '.join(PASSED_ON)}; do",
            '    [ -z "${!name:-}" ] || export "APPTAINERENV_$name=${!name}"',
            "done",
        ]
    return lines


def _step(script: Script) -> list[str]:
    srun = ["srun", "--ntasks=1", f"--cpus-per-task={script.resources.cpus}", "--input=none"]
    return [
        "# Warned of the time limit, the step ends its batch and exits with",
        f"# {ENDED_EARLY}; it goes on where it stopped in its next life. It is warned by a file:",
        "# a signal would reach every process of the step, and end the one that mounts an image.",
        f"ended={quote(str(script.ended))}",
        "caught=0",
        "# shellcheck disable=SC2317 # called by the traps",
        "catch() {",
        "    caught=1",
        '    echo "== SIG$1, $(date -u +%FT%TZ)"',
        '    [ "$1" != USR1 ] || { mkdir -p "$ended" && : >"$ended/$index.warned-$life"; } || true',
        "}",
        "trap 'catch USR1' USR1",
        "# SLURM tells the step by itself; this script stays to note how that ended.",
        "trap 'catch TERM' TERM",
        f'{join([*srun, *script.command])} "$index" &',
        "step=$!",
        "while",
        "    caught=0 status=0",
        '    wait "$step" || status=$?',
        '    [ "$caught" -eq 1 ]',
        "do :; done",
        "",
        'echo "== ended with $status, $(date -u +%FT%TZ)"',
        'mkdir -p "$ended" || true',
        'echo "$job $life $status $(date -u +%FT%TZ)" >>"$ended/$index" || true',
        f'if [ "$status" -eq {ENDED_EARLY} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" && exit 0',
        '    echo "== it could not be requeued; the same sweep goes on where it stopped"',
        "fi",
        'exit "$status"',
    ]

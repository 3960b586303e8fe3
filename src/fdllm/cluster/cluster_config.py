"""What differs from one cluster to the next: ``fdllm.toml``, described in ``fdllm.toml.example``.

Nothing here can change an output, so nothing of it is part of a fingerprint.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from fdllm.caches import hub_home
from fdllm.errors import UsageError
from fdllm.runs import TINY_MODEL, Run
from fdllm.spec import Spec, read_toml

_GPU = "gpu:1"


_NOT_EXTRA = (
    *("--array", "-a", "--output", "-o", "--signal", "--dependency", "-d", "--hold", "-H"),
    *("--parsable", "--test-only", "--wait", "-W", "--wrap"),
)
_CLUSTERS = re.compile(r"(?:--clusters?[= ]|-M[= ]?)\s*(\S+)")
# What a shell may hold as its user's defaults for ``sbatch``.
_DEFAULTS = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
}


def clusters_of(options: Iterable[str]) -> str | None:
    """The clusters that options of ``sbatch`` name, ``a,b``, the last word counting; or None."""
    found = [match[1] for line in options if (match := _CLUSTERS.fullmatch(line))]
    return found[-1] if found else None


class Resources(Spec):
    """What one array task asks SLURM for; an empty text asks for nothing of the kind.

    GPUs may be asked for by ``extra`` instead of ``gres``: ``gres = ""`` and ``--gpus-per-node=1``.
    """

    partition: str | None = None  # None takes the cluster's default
    account: str | None = None  # who pays
    qos: str | None = None  # quality of service
    # generic resources, ``gpu:1``; None is one GPU, or none for the embedded model
    gres: str | None = None
    cpus: int | None = Field(None, ge=1)  # processors; None is 4, or 1 for the embedded model
    memory_gb: int | None = Field(None, ge=1)  # GiB; None takes the partition's default
    # minutes one life of a task may take; a run that needs more is requeued
    time_min: int = Field(24 * 60, ge=1)
    constraint: str | None = None  # features a node must have
    # options of ``sbatch`` as they are, ``--exclude=node7``: a line each
    extra: tuple[str, ...] = ()

    @property
    def has_gpu(self) -> bool:
        """Whether a task has a GPU, whose driver an image must see."""
        return bool(self.gres) or any(line.startswith(("--gpus", "-G")) for line in self.extra)

    @field_validator("partition", "account", "qos", "gres", "constraint")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and any(c.isspace() or c in "'\"\\`$" for c in value):
            raise ValueError("must be one word, without quotes or spaces")
        return value

    @field_validator("extra")
    @classmethod
    def _options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for line in value:
            if not line.startswith("-") or "\n" in line:
                raise ValueError(f"'{line}' is no option of sbatch, such as '--exclude=node7'")
            try:
                name = shlex.split(line)[0].partition("=")[0]
            except ValueError as error:
                raise ValueError(f"'{line}' is no option of sbatch: {error}") from None
            if name in _NOT_EXTRA or (name[1] != "-" and name[:2] in _NOT_EXTRA):
                raise ValueError(f"'{name}' is set for each submission")
        return value


class ClusterConfig(Spec):
    """A cluster."""

    resources: Resources = Resources()  # what a task asks for
    # by task, what differs from ``resources``
    tasks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    # the Apptainer image that tasks run in; None is the environment that submits
    image: Path | None = None
    # the command that runs it, or its path: ``singularity`` serves as well
    apptainer: str = Field("apptainer", min_length=1)
    # folders that are visible in the image besides checkout, results and caches: ``/data`` or
    # ``/data:/inside:ro``
    binds: tuple[str, ...] = ()
    # cache of models and data sets, as nodes see it; None takes ``HF_HOME`` as the submitting shell
    # has it
    hf_home: Path | None = None
    # nodes have no network: the Hub is not asked, and what is missing fails at once
    offline: bool = True
    # tasks of one array that run at the same time; None is no throttle
    max_jobs: int | None = Field(None, ge=1)
    # seconds ahead of the time limit at which a run is asked to end and is requeued; longer than a
    # batch takes
    warn_s: int = Field(300, ge=10, le=65535)
    # shell lines ahead of everything else in a job, ``module load apptainer``
    setup: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for task in ("", *self.tasks):
            resources = self._of(task)
            if self.warn_s >= resources.time_min * 60:
                raise ValueError(
                    f"warn_s is {self.warn_s} s, but {f'task {task}' if task else 'a job'} has "
                    f"only {resources.time_min} min (time_min): nothing would be computed"
                )
        return self

    def _of(self, task: str) -> Resources:
        own = self.tasks.get(task, {})
        return Resources.read(
            self.resources.model_dump(exclude_unset=True) | own, f"[tasks.{task}]"
        )

    @property
    def hub_home(self) -> Path:
        """Where models and data sets are kept: the file's word, else this process's."""
        return self.hf_home or hub_home().absolute()

    def resources_of(self, run: Run) -> Resources:
        """What a run's task asks for, GPU and processors decided.

        What neither the file nor a flag says is as the shell has it for ``sbatch``.

        Raises:
            UsageError: a variable of the shell cannot be an option.
        """
        resources = self._of(run.task)
        usual: dict[str, Any] = {"gres": _GPU, "cpus": 4}
        if run.model.name == TINY_MODEL:
            usual = {"cpus": 1}
        usual |= {name: os.environ[key] for name, key in _DEFAULTS.items() if os.environ.get(key)}
        clusters = os.environ.get("SBATCH_CLUSTERS") or os.environ.get("SLURM_CLUSTERS")
        if clusters and clusters_of(resources.extra) is None:
            resources = resources.model_copy(
                update={"extra": (*resources.extra, f"--clusters={clusters}")}
            )
        unsaid = {name: v for name, v in usual.items() if getattr(resources, name) is None}
        return Resources.read(resources.model_dump() | unsaid, "fdllm.toml and SBATCH_* together")

    def changed(self, resources: Mapping[str, Any], **others: Any) -> ClusterConfig:  # noqa: ANN401
        """The same with the flags of one command on top; None leaves a value as it is.

        A flag is meant for every task, so it also stands above a task's own table.

        Raises:
            UsageError: a value is wrong.
        """
        given = {name: value for name, value in resources.items() if value is not None}
        data = self.model_dump(exclude_unset=True)
        data["resources"] = data.get("resources", {}) | given
        data["tasks"] = {task: own | given for task, own in self.tasks.items()}
        data |= {name: value for name, value in others.items() if value is not None}
        return ClusterConfig.read(data, "the flags and the site file together")


def load_cluster_config(root: Path) -> ClusterConfig:
    """The site file, ``$FDLLM_SITE`` or ``fdllm.toml``, checked; the defaults where there is none.

    Relative paths in it start at its own folder, and ``~`` and ``$NAME`` are filled in.

    Raises:
        UsageError: ``FDLLM_SITE`` names no file, it cannot be read, or a key or value is wrong.
    """
    named = os.environ.get("FDLLM_SITE")
    path = Path(named).expanduser().absolute() if named else root / "fdllm.toml"
    if not path.exists():
        if named:
            raise UsageError(f"FDLLM_SITE names '{path}', which does not exist; set it or unset it")
        return ClusterConfig()
    data = read_toml(path)
    if isinstance(data.get("resources"), dict):
        data["resources"] = Resources.read(data["resources"], f"{path}, [resources]")
    site = ClusterConfig.read(data, str(path))
    given = {"image": site.image, "hf_home": site.hf_home}

    # An absolute path stays what it is behind a folder.
    def place(value: str | Path) -> Path:
        return path.parent / Path(os.path.expandvars(value)).expanduser()

    places: dict[str, Any] = {name: place(value) for name, value in given.items() if value}
    if "/" in site.apptainer:  # a command's name is looked for on the PATH
        places["apptainer"] = str(place(site.apptainer))
    return site.model_copy(update=places)

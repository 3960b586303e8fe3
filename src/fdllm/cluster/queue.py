"""The one place that starts SLURM's commands, and what its queue says, all of it in one call."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from fdllm.errors import FdllmError

# Where the cluster is and who asks. All else of these names changes what SLURM's commands do or
# print (SQUEUE_FORMAT, SLURM_CLUSTERS), or is what a job that calls would hand down of itself.
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
_NOT_KEPT = ("SLURM_", "SLURMD_", "SRUN_", "SQUEUE_", "SCANCEL_", "SCONTROL_", "SINFO_")
# Defaults of ``sbatch`` that a submission decides itself, or that change its answer (WAIT).
_DECIDED = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ACCOUNT", "ARRAY_INX", "CLUSTERS", "CONSTRAINT", "CONTAINER", "CONTAINER_ID", "DEBUG"),
        *("ERROR", "EXPORT", "GET_USER_ENV", "GRES", "INPUT", "JOB_NAME", "NO_REQUEUE"),
        *("OPEN_MODE", "OUTPUT", "PARTITION", "QOS", "REQUEUE", "SIGNAL", "TIMELIMIT", "WAIT"),
    )
)
# What tells of a request whose answer got lost: it may have been heard.
_LOST = re.compile(r"timed out|Zero Bytes")

_FORMAT = "%i|%T|%M|%L|%N|%r"  # job id, state, time used, time left, nodes, reason
_NUM_FIELDS = _FORMAT.count("|") + 1
_TIME = re.compile(r"^(?:(?P<d>\d+)-)?(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)$")
_AT_WORK = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
)
# Indices lie below the first, however many there are of them; the second limits their number.
_ARRAY_SIZE = re.compile(r"(?:MaxArraySize\s*=\s*|\bmax_array_tasks=)(\d+)")
_CLUSTER_NAME = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_NEVER = "DependencyNeverSatisfied"


class SlurmError(FdllmError):
    """One of SLURM's commands fails, does not answer, or answers in another form."""


class NoAnswerError(SlurmError):
    """One of SLURM's commands may have been heard, and nobody knows."""


@dataclass(frozen=True)
class JobId:
    """What a queue calls a job, and whose queue it is."""

    number: str  # ``12``, or ``12_3`` for a task of an array
    cluster: str | None = None  # None is the cluster of the machine that asks

    @classmethod
    def read(cls, text: str) -> JobId:
        """From ``12`` or ``12;name``, as ``sbatch --parsable`` prints it."""
        number, _, cluster = text.partition(";")
        return cls(number, cluster or None)

    @property
    def parsable(self) -> str:
        """What :meth:`read` reads."""
        return f"{self.number};{self.cluster}" if self.cluster else self.number

    @property
    def array(self) -> JobId:
        """The array that a task belongs to."""
        return replace(self, number=self.number.partition("_")[0])

    def task(self, number: int) -> JobId:
        """A task of an array."""
        return replace(self, number=f"{self.number}_{number}")

    def __str__(self) -> str:
        return f"{self.number} on {self.cluster}" if self.cluster else self.number


def environment() -> dict[str, str]:
    """What SLURM's commands are given: the shell's, without what changes what they do."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not (name.startswith(_NOT_KEPT) or name in _DECIDED)
    }


def run_command(
    *command: str, cluster: str | None = None, timeout_s: float = 60, told: str = "{}"
) -> str:
    """What one of SLURM's commands prints.

    Args:
        command: its name, found on the PATH, and its arguments.
        cluster: which one is asked; None is this machine's own.
        timeout_s: seconds that it may take.
        told: the sentence of an error; ``{}`` is what the command itself said.

    Raises:
        NoAnswerError: it does not end in time, or says that it lost the answer.
        SlurmError: it fails, with its own words.
    """
    name, *arguments = command
    where = [] if cluster is None else ["-M", cluster]
    lost = False
    try:
        done = subprocess.run(  # noqa: S603 - one of SLURM's, no shell
            [name, *where, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=environment(),
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        lost, said = True, f"{name} did not answer within {timeout_s:.0f} s"
    except OSError as error:
        said = f"{name} did not answer: {error}"
    else:
        if not done.returncode:
            return done.stdout
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        lost, said = _LOST.search(words) is not None, f"{name}: {words}"
    raise (NoAnswerError if lost else SlurmError)(told.replace("{}", said))


@dataclass(frozen=True)
class QueueEntry:
    """A job, or one task of an array."""

    job_id: JobId
    state: str  # SLURM's word, ``PENDING`` or ``RUNNING``, say
    node: str | None  # where it runs; None while it waits
    elapsed_s: int  # seconds it has run
    time_left_s: int | None  # seconds until its time limit; None where it has none
    reason: str  # why it waits, in SLURM's word; empty where it does not

    @property
    def is_running(self) -> bool:
        """Whether it has a machine."""
        return self.state in _AT_WORK

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for a job that has failed, and so for ever."""
        return self.reason == _NEVER


Queue = Mapping[JobId, QueueEntry]


def why_no_cluster() -> str | None:
    """Why nothing can be submitted from this machine at all; None where there is a cluster.

    A cluster whose controller does not answer is still one: that is for ``sbatch`` to say.
    """
    if shutil.which("sbatch") is None:
        return "no sbatch on the PATH"
    try:
        run_command("scontrol", "ping")
    except SlurmError as error:
        if "Could not establish a configuration source" in str(error):
            return "sbatch is there and belongs to no cluster: there is no slurm.conf"
    return None


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


def read_queue(clusters: Iterable[str | None] = (None,)) -> dict[JobId, QueueEntry] | None:
    """Every job of some clusters' queues by its id, arrays expanded; None without ``squeue``.

    Raises:
        SlurmError: a queue does not answer.
    """
    if shutil.which("squeue") is None:
        return None
    told = (
        "the queue cannot be asked ({}); is slurmctld up? 'scontrol ping' says so; "
        "nothing was changed"
    )
    command = ("squeue", "--noheader", "--array", f"--format={_FORMAT}")
    entries: dict[JobId, QueueEntry] = {}
    for cluster in sorted(set(clusters), key=str):
        entries |= parse_queue(run_command(*command, cluster=cluster, told=told), cluster)
    return entries


def is_listed(number: str, cluster: str | None = None) -> bool | None:
    """Whether a job still waits or runs; None where nobody can say.

    Args:
        number: its ``SLURM_JOB_ID``.
        cluster: its ``SLURM_CLUSTER_NAME``; None takes it for one of this machine's own.
    """
    if shutil.which("squeue") is None:
        return None
    command = ("squeue", "--noheader", "--array", "--format=%A")
    try:  # all of them: asked for one that it has forgotten, squeue fails
        if cluster is not None:  # by its name squeue finds its own through a database alone
            own = _CLUSTER_NAME.search(run_command("scontrol", "show", "config"))
            cluster = None if own and own[1] == cluster else cluster
        return number in run_command(*command, cluster=cluster).split()
    except SlurmError:
        return None


def parse_queue(text: str, cluster: str | None = None) -> dict[JobId, QueueEntry]:
    """The entries of ``squeue``'s lines.

    Raises:
        SlurmError: a line has another form.
    """
    entries = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("CLUSTER:"):  # ahead of a named cluster's jobs, before SLURM 20.02
            continue
        fields = line.split("|", _NUM_FIELDS - 1)
        if len(fields) != _NUM_FIELDS:
            raise SlurmError(f"squeue printed a line of another form: {line!r}")
        number, state, used, left, node, reason = fields
        job_id = JobId(number, cluster)
        entries[job_id] = QueueEntry(
            job_id=job_id,
            state=state,
            node=node or None,
            elapsed_s=parse_time(used) or 0,
            time_left_s=parse_time(left),
            reason="" if reason == "None" else reason,
        )
    return entries


def most_tasks(clusters: str | None) -> int | None:
    """The array tasks that a cluster takes at once (``MaxArraySize``); None where it says nothing.

    Args:
        clusters: as ``--clusters`` has them; of several the least counts.
    """
    found: list[str] = []
    for cluster in clusters.split(",") if clusters else (None,):
        with suppress(SlurmError):
            found += _ARRAY_SIZE.findall(run_command("scontrol", "show", "config", cluster=cluster))
    return min(map(int, found), default=None) or None


def parse_time(text: str) -> int | None:
    """Seconds of SLURM's ``[days-][hours:]minutes:seconds``; None for UNLIMITED and its like."""
    match = _TIME.match(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(match[unit] or 0) for unit in "dhms")
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

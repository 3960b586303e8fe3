"""The one place that starts SLURM's commands, and what its queue says, all of it in one call."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from fdllm.errors import FdllmError

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")

_FORMAT = "%i|%T|%M|%L|%N|%r"  # job id, state, time used, time left, nodes, reason
_NUM_FIELDS = _FORMAT.count("|") + 1
_TIME = re.compile(r"^(?:(?P<d>\d+)-)?(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)$")
_AT_WORK = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
)
_NEVER = "DependencyNeverSatisfied"


class SlurmError(FdllmError):
    """One of SLURM's commands fails, does not answer, or answers in another form."""


def run_command(*command: str, timeout_s: float = 60, told: str = "{}") -> str:
    """What one of SLURM's commands prints.

    Args:
        command: its name, found on the PATH, and its arguments.
        timeout_s: seconds that it may take.
        told: the sentence of an error; ``{}`` is what the command itself said.

    Raises:
        SlurmError: it fails, with its own words, or does not end.
    """
    # The shell's environment, without what a job that calls would hand down of itself.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
    }
    try:
        done = subprocess.run(  # noqa: S603 - one of SLURM's, no shell
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        said = f"{command[0]} did not answer within {timeout_s:.0f} s"
    except OSError as error:
        said = f"{command[0]} did not answer: {error}"
    else:
        if not done.returncode:
            return done.stdout
        words = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        said = f"{command[0]}: {words}"
    raise SlurmError(told.format(said))


@dataclass(frozen=True)
class QueueEntry:
    """A job, or one task of an array."""

    job_id: str  # ``12``, or ``12_3`` for a task of an array
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


Queue = Mapping[str, QueueEntry]


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


def read_queue() -> dict[str, QueueEntry] | None:
    """Every job of the queue by its id, arrays expanded; None where there is no ``squeue``.

    Raises:
        SlurmError: the queue does not answer.
    """
    if shutil.which("squeue") is None:
        return None
    told = (
        "the queue cannot be asked ({}); is slurmctld up? 'scontrol ping' says so; "
        "nothing was changed"
    )
    command = ("squeue", "--noheader", "--array", f"--format={_FORMAT}")
    return parse_queue(run_command(*command, told=told))


def parse_queue(text: str) -> dict[str, QueueEntry]:
    """The entries of ``squeue``'s lines.

    Raises:
        SlurmError: a line has another form.
    """
    entries = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|", _NUM_FIELDS - 1)
        if len(fields) != _NUM_FIELDS:
            raise SlurmError(f"squeue printed a line of another form: {line!r}")
        job_id, state, used, left, node, reason = fields
        entries[job_id] = QueueEntry(
            job_id=job_id,
            state=state,
            node=node or None,
            elapsed_s=parse_time(used) or 0,
            time_left_s=parse_time(left),
            reason="" if reason == "None" else reason,
        )
    return entries


def parse_time(text: str) -> int | None:
    """Seconds of SLURM's ``[days-][hours:]minutes:seconds``; None for UNLIMITED and its like."""
    match = _TIME.match(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(match[unit] or 0) for unit in "dhms")
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds

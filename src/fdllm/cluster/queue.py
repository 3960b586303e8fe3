"""What SLURM's queue says, all of it in one call."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from fdllm.cluster.client import SlurmError, run_command
from fdllm.errors import FdllmError

_FORMAT = "%i|%T|%M|%L|%N|%r"  # job id, state, time used, time left, nodes, reason
_NUM_FIELDS = _FORMAT.count("|") + 1
_TIME = re.compile(r"^(?:(?P<d>\d+)-)?(?:(?P<h>\d+):)?(?P<m>\d+):(?P<s>\d+)$")
_AT_WORK = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"}
)
_NEVER = "DependencyNeverSatisfied"


class QueueError(FdllmError):
    """There is a queue, and it does not answer."""


@dataclass(frozen=True)
class QueueEntry:
    """A job, or one task of an array.

    Attributes:
        job_id: ``12``, or ``12_3`` for a task of an array.
        state: SLURM's word, ``PENDING`` or ``RUNNING``, say.
        node: where it runs; None while it waits.
        elapsed_s: seconds it has run.
        time_left_s: seconds until its time limit; None where it has none.
        reason: why it waits, in SLURM's word; empty where it does not.
    """

    job_id: str
    state: str
    node: str | None
    elapsed_s: int
    time_left_s: int | None
    reason: str

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


def has_queue() -> bool:
    """Whether this machine can ask a SLURM."""
    return shutil.which("squeue") is not None


def read_queue() -> dict[str, QueueEntry] | None:
    """Every job of the queue by its id, arrays expanded; None where there is no ``squeue``.

    Raises:
        QueueError: the queue does not answer.
    """
    if not has_queue():
        return None
    return parse_queue(ask("squeue", "--noheader", "--array", f"--format={_FORMAT}"))


def ask(*command: str) -> str:
    """What one of SLURM's commands says of the queue.

    Raises:
        QueueError: it fails or does not end.
    """
    try:
        return run_command(*command)
    except SlurmError as error:
        raise QueueError(
            f"the queue cannot be asked ({error}); is slurmctld up? 'scontrol ping' says so; "
            "nothing was changed"
        ) from None


def parse_queue(text: str) -> dict[str, QueueEntry]:
    """The entries of ``squeue``'s lines.

    Raises:
        QueueError: a line has another form.
    """
    entries = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        fields = line.split("|", _NUM_FIELDS - 1)
        if len(fields) != _NUM_FIELDS:
            raise QueueError(f"squeue printed a line of another form: {line!r}")
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

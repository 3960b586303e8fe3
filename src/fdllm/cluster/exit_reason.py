"""Why a job is gone: from SLURM while it remembers, else from what the job script noted."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fdllm.cluster.queue import JobId, SlurmError, run_command

_FIELD = re.compile(r"(?:^|\s)(?P<name>[A-Z][\w/:]*)=(?P<value>\S*)")
_SIGNAL_OFFSET = 128  # a shell's status of a command that a signal ended
LOCKED = 76
"""Exit status of a task that did nothing, as another process works in its run's folder."""
_WORDS = {
    "TIMEOUT": "time limit of {limit} reached",
    "DEADLINE": "deadline reached",
    "NODE_FAIL": "node {node} failed",
    "BOOT_FAIL": "node {node} did not start",
    "OUT_OF_MEMORY": "out of memory",
    "PREEMPTED": "preempted by another job",
    "CANCELLED": "cancelled",
    "REVOKED": "revoked",
}
TERMINATED = "cancelled: SIGTERM (scancel, preemption, time limit)"
"""What a run says that was sent SIGTERM; SLURM knows why it sent it."""
_UNKNOWN = "ended without a record and without a word (SIGKILL, a node failure, out of memory)"


@dataclass(frozen=True)
class ExitReason:
    """How a job ended."""

    reason: str  # in a few words
    by_itself: bool = False  # it ran to its end and said that nothing was wrong
    by_slurm: bool = False  # SLURM ended it, and the reason is why


def remembered(arrays: Iterable[JobId]) -> dict[JobId, ExitReason]:
    """What SLURM still knows of jobs that are gone from its queue, by id.

    It forgets them after a few minutes (``MinJobAge``), and where it does not answer it knows
    nothing: neither is an error. Whole jobs or arrays (``12``) are asked for, one call each.
    """
    found: dict[JobId, ExitReason] = {}
    for one in sorted(set(arrays), key=str):
        asked = ("scontrol", "--oneliner", "show", "job", one.number)
        with suppress(SlurmError):
            found |= parse_jobs(run_command(*asked, cluster=one.cluster), one.cluster)
    return found


def parse_jobs(text: str, cluster: str | None = None) -> dict[JobId, ExitReason]:
    """The ended jobs of ``scontrol --oneliner show job``, by the id that ``squeue`` gives them."""
    found = {}
    for line in text.splitlines():
        fields = {match["name"]: match["value"] for match in _FIELD.finditer(line)}
        if "JobState" not in fields:
            continue
        array, task = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
        name = fields["JobId"] if array is None else f"{array}_{task}"
        if fields["JobState"] not in ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING"):
            found[JobId(name, cluster)] = _ended(fields)
    return found


def _ended(fields: dict[str, str]) -> ExitReason:
    state = fields["JobState"]
    status, _, number = fields.get("ExitCode", "0:0").partition(":")
    if state in _WORDS:
        words = _WORDS[state].format(
            limit=fields.get("TimeLimit", "?"), node=fields.get("NodeList") or "?"
        )
        return ExitReason(words, by_slurm=True)
    if number not in ("", "0"):
        return ExitReason(signal_words(int(number)))
    return from_status(int(status))


def from_status(status: int) -> ExitReason:
    """What a shell's exit status says."""
    if status == 0:
        return ExitReason("the job ended by itself and left no record", by_itself=True)
    if status == LOCKED:
        return ExitReason("another process held its folder; the log says which")
    if status > _SIGNAL_OFFSET:
        return ExitReason(signal_words(status - _SIGNAL_OFFSET))
    return ExitReason(f"the job ended with exit code {status}")


def signal_words(number: int) -> str:
    """A signal's name, and what sends it."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    likely: dict[int, str] = {
        signal.SIGKILL: " (out of memory, or by hand)",
        signal.SIGTERM: " (scancel, preemption or the time limit)",
    }
    return f"killed by {name}{likely.get(number, '')}"


def noted(path: Path) -> ExitReason | None:
    """How the job script said that its last life ended, in ``ended/<index>``; None: not at all."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return from_status(int(lines[-1].split()[2]))
    except (OSError, ValueError, IndexError):
        return None


def explain(task_id: JobId | None, notes: Path, memory: Mapping[JobId, ExitReason]) -> ExitReason:
    """How a task of an array ended, as far as anybody knows; None where nobody knows its id."""
    known = None if task_id is None else memory.get(task_id)
    return known or noted(notes) or ExitReason(_UNKNOWN)

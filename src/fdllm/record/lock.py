"""One process at a time works in a run's folder; the system lets go when it dies."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from filelock import FileLock, Timeout

from fdllm.outside import OutsideError, read_json
from fdllm.record.atomic import explained, make_folder, write_json
from fdllm.record.paths import RunPaths

# A reader that asks for the state holds the lock for an instant; a runner waits that long.
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Holder:
    """Who works in a run's folder."""

    host: str  # the machine
    pid: int  # the process
    since: str  # UTC time
    job: str | None = None  # the queue's id of the job, or None
    cluster: str | None = None  # whose queue that is, where it said so

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class LockedError(Exception):
    """Another process works in this folder; the message says which, where that is known."""


@contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """Hold a run's folder.

    Raises:
        LockedError: somebody else does.
        FdllmError: the folder cannot be written.
    """
    make_folder(paths.folder)
    # Where the system cannot lock, a file in place of a lock would outlive whoever is killed.
    lock = FileLock(paths.lock, timeout=_PATIENCE_S, fallback_to_soft=False)
    with explained(paths.lock):
        try:
            lock.acquire()
        except Timeout:  # an OSError too, but nothing is wrong with the file
            raise LockedError(_read_holder(paths) or "another process") from None
    try:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        job, cluster = map(os.environ.get, ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME"))
        me = Holder(socket.gethostname(), os.getpid(), now, job, cluster)
        write_json(paths.holder, asdict(me))
        yield
    finally:
        paths.holder.unlink(missing_ok=True)
        lock.release()


def holder_of(paths: RunPaths) -> Holder | None:
    """Who works in a run's folder now; None where nobody does.

    A process that was killed leaves its card, and the system has let go of its lock.
    """
    holder = _read_holder(paths)
    if holder is None or not paths.lock.exists():
        return None
    lock = FileLock(paths.lock, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError:  # a timeout; read-only for us, or not to be locked: believe the card
        return holder
    lock.release()
    return None


def _read_holder(paths: RunPaths) -> Holder | None:
    try:
        return Holder(**read_json(paths.holder, most=1 << 16))
    except (OutsideError, TypeError):
        return None

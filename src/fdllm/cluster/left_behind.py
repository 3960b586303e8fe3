"""Whether the lock of a run may be that of a process that is gone: by the queue, or by age."""

from __future__ import annotations

from datetime import UTC, datetime

from fdllm.cluster.queue import is_listed
from fdllm.record.lock import Holder, holder_of
from fdllm.record.paths import RunPaths

_LONG_DAYS = 7  # what few jobs may take


def left_behind(paths: RunPaths) -> str:
    """What to do where a run is held by what may be gone, as after a node's death; else empty.

    A file system without recovery keeps a dead machine's lock, and only people know what is dead.
    """
    holder = holder_of(paths)
    why = "" if holder is None else _doubt(holder)
    return why and f"held by {holder}; {why}: if that process is gone, delete {paths.lock}"


def _doubt(holder: Holder) -> str:
    listed = None if holder.job is None else is_listed(holder.job, holder.cluster)
    if listed is False:
        return "the queue no longer lists that job"
    try:
        since = datetime.strptime(holder.since, "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC)
    except ValueError:
        return "nobody knows since when"
    days = (datetime.now(UTC) - since).days
    return f"that is {days} days" if listed is None and days >= _LONG_DAYS else ""

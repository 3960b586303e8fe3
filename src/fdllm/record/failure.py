"""``failed.json``: why the last attempt at a run, or at a shard of it, ended without a record."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from fdllm import strictjson
from fdllm.errors import FdllmError
from fdllm.record.atomic import write_json
from fdllm.record.paths import RunPaths
from fdllm.record.provenance import utc_now


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended.

    Attributes:
        reason: in a line.
        log: the file that says more, or None.
        time: when, UTC, ISO 8601; empty where that is unknown.
    """

    reason: str
    log: str | None
    time: str = ""


def write_failure(paths: RunPaths, reason: str, log: str | None) -> Failure:
    """Keep why an attempt ended, as far as the disk still takes it.

    The runner does so for whatever it can catch; who catches a signal calls it for himself.
    """
    failure = Failure(reason, log, utc_now())
    with suppress(FdllmError):
        content = {"reason": failure.reason, "log": failure.log, "time": failure.time}
        write_json(paths.failed, content)
    return failure


def read_failure(paths: RunPaths) -> Failure | None:
    """Why the last attempt ended; None where it left no such file.

    Raises:
        FdllmError: the file cannot be read.
    """
    if not paths.failed.exists():
        return None
    try:
        data = strictjson.loads(paths.failed.read_text(encoding="utf-8"))
        return Failure(str(data["reason"]), data.get("log"), str(data.get("time", "")))
    except FileNotFoundError:  # the next attempt has just begun
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FdllmError(f"{paths.failed.name} cannot be read") from None

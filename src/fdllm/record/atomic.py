"""Writing files so that a reader, or a crash, never sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.caches import own_cache
from fdllm.errors import FdllmError
from fdllm.outside import OutsideError, read_json

_MOST_CACHED = 16 << 20  # bytes of a file that is remembered
_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EFBIG: "the file would be larger than this process may write; raise the limit (ulimit)",
    errno.EACCES: "permission denied; choose another place with --results, or fix its permissions",
    errno.EPERM: "permission denied; choose another place with --results, or fix its permissions",
    errno.EROFS: "the file system is read-only; choose another place with --results",
    errno.ENOTDIR: "something on this path is a file where a folder is needed; move it away",
    errno.EEXIST: "something of this name is in the way; move it away",
    errno.ESTALE: "its server lost track of it (a stale handle); see that the folder is there",
    **dict.fromkeys(
        (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP),
        "files cannot be locked there, so two processes could write one record; choose a place on "
        "another file system with --results, or ask the site to mount this one with flock",
    ),
    errno.EISDIR: "there is a folder where a file is needed; move it away",
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusals to write ``path`` into one line with the way out.

    Raises:
        FdllmError: the block raised an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise FdllmError(
            f"cannot write {path}: {_reason(error)}. What was there before is intact; the same "
            "command goes on where it stopped"
        ) from error


def _reason(error: OSError) -> str:
    link = Path(os.fsdecode(error.filename)) if error.filename else None
    if link is not None and link.is_symlink() and not link.exists():
        return f"{link} is a link to {os.path.realpath(link)}, which is not there; make that folder"
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
        FdllmError: it cannot be made.
    """
    with explained(path):
        path.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Put ``text`` under ``path``; see :func:`write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` under ``path``, whole or not at all, and durable when this returns.

    Raises:
        FdllmError: the disk is full or the place cannot be written; an old file stays as it was.
    """
    make_folder(path.parent)
    with explained(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_json(path: Path, data: Any) -> None:  # noqa: ANN401 - any JSON value
    """Put ``data`` under ``path`` as indented JSON; see :func:`write_text` and ``strictjson``."""
    write_text(path, strictjson.dumps(data, indent=2) + "\n")


def read_cache(name: str) -> dict[str, Any]:
    """What :func:`write_cache` kept; empty where that cannot be read."""
    try:
        data = read_json(own_cache() / name, most=_MOST_CACHED)
    except OutsideError:
        return {}
    return data if isinstance(data, dict) else {}


def write_cache(name: str, data: dict[str, Any]) -> None:
    """Remember ``data`` on this machine, for other processes; see :func:`write_text`."""
    write_json(own_cache() / name, data)


def sync_folder(path: Path) -> None:
    """Make a renaming in ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    """The process's mask; reading it means setting it for an instant."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask

"""Files that somebody else wrote, or a disk has damaged: read whole and bounded, or refused.

Whatever stands in the place of a file (a pipe, a folder, a device, a link that leads nowhere) and
in it ends as one :class:`OutsideError` of one line: nothing waits for the other end of a pipe,
and nothing is read that no such file would be large enough to hold.
"""

from __future__ import annotations

import errno
import lzma
import os
import stat
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.errors import FdllmError, first_line

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_XZ_MEMORY = 256 << 20  # bytes that unpacking may take; the strongest packing asks for 65 MiB


class OutsideError(FdllmError):
    """A file cannot be read, or holds what it must not.

    Args:
        path: the file, or what to call it.
        wrong: what is wrong with it, as the end of a sentence, and what to do where that is known.
    """

    def __init__(self, path: Path | str, wrong: str) -> None:
        super().__init__(f"{path} {wrong}")
        self.path, self.wrong = path, wrong


class AbsentError(OutsideError):
    """There is no such file; a link that leads nowhere is one that cannot be read."""


def read_bytes(path: Path, *, most: int) -> bytes:
    """The content of a regular file; of one behind a link too.

    Args:
        path: the file.
        most: bytes that it may hold.

    Raises:
        AbsentError: nothing is there.
        OutsideError: it is no regular file, holds more, or cannot be read.
    """
    try:
        # Opening a pipe would wait for whoever writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            kind = stat.S_IFMT(found.st_mode)
            if kind != stat.S_IFREG:
                raise OutsideError(path, f"is {_KINDS.get(kind, 'something')}, not a file")
            if found.st_size > most:
                raise OutsideError(path, f"holds more than {most:,} bytes, which no such file does")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read()
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError as error:  # a zero byte in a name
        raise OutsideError(path, f"cannot be read: {error}") from None


def read_text(path: Path, *, most: int) -> str:
    """The text of a regular file; see :func:`read_bytes`.

    Raises:
        AbsentError: nothing is there.
        OutsideError: it cannot be read, or is no UTF-8.
    """
    data = read_bytes(path, most=most)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = f"byte {error.start + 1} of {len(data)}"
        raise OutsideError(
            path, f"is no UTF-8 text: {place} is 0x{data[error.start]:02x}"
        ) from None


def unpack_xz(data: bytes, path: Path | str = "the data", *, most: int) -> bytes:
    """What an xz stream holds.

    Args:
        data: the stream.
        path: where it stood, or what to call it in an error.
        most: bytes that it may hold; the packed ones say nothing of them.

    Raises:
        OutsideError: it is no xz stream, is cut, or holds more.
    """
    try:
        unpacking = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        text = unpacking.decompress(data, most + 1)
    except lzma.LZMAError as error:
        raise OutsideError(path, f"is no xz stream: {error}") from None
    if len(text) > most:
        raise OutsideError(path, f"unpacks to more than {most:,} bytes, which no such file does")
    if not unpacking.eof:
        raise OutsideError(path, "is no whole xz stream: it was cut")
    if unpacking.unused_data:
        raise OutsideError(path, "is no xz stream alone: something follows it")
    return text


def parse_json(text: str | bytes, path: Path | str = "the text") -> Any:  # noqa: ANN401 - any JSON
    """The data of a JSON text, as :func:`fdllm.strictjson.loads` reads it.

    Args:
        text: what to read.
        path: where it stood, or what to call it in an error.

    Raises:
        OutsideError: it is no JSON; it says where.
    """
    try:
        return strictjson.loads(text)
    except ValueError as error:
        said = "it is empty" if not text.strip() else first_line(error)
        raise OutsideError(path, f"is no JSON: {said}") from None


def read_json(path: Path, *, most: int) -> Any:  # noqa: ANN401 - any JSON value
    """The data of a JSON file: :func:`read_text`, then :func:`parse_json`.

    Raises:
        AbsentError: nothing is there.
        OutsideError: it cannot be read, or is no JSON.
    """
    return parse_json(read_text(path, most=most), path)


def _unreadable(path: Path, error: OSError) -> OutsideError:
    match error.errno:
        case errno.ENOENT if not path.is_symlink():
            return AbsentError(path, "is absent")
        case errno.ENOENT:
            return OutsideError(path, "is a link that leads nowhere")
        case errno.ELOOP:
            return OutsideError(path, "is a link in a circle")
        case errno.ENOTDIR:
            return OutsideError(path, "cannot be read: a file stands where its folder should")
        case errno.ENXIO:
            return OutsideError(path, "is a socket, not a file")
        case _:
            return OutsideError(path, f"cannot be read: {error.strerror}")

"""One thing wrong in a results tree or a release: a byte, a value, or what a file is."""

from __future__ import annotations

import json
import lzma
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from fdllm.report.leaves import walk

PLACES = ("results", "artifacts", "experiments", "release")
LEFT_ALONE = {".lock", "generation_functions.py", "proposal.md", "tasks.md", "README.md"}
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "\x1b[31m",
    0,
    -1,
    3.5,
    1e308,
    [],
    {},
    [[]],
    {"a": 1},
)
ODD_TEXTS = ("NaN", "-Infinity", "1e999", str(2**70), "1" * 5000, '"\\ud800"', "[" * 9999, "")


def edit_json(text: str, draw: random.Random) -> tuple[str, str]:
    """A JSON text with one value changed, and what was done."""
    data = json.loads(text)
    found = [place for place, _ in walk(data) if place]
    if not found:
        return "[]", "emptied"
    *way, last = draw.choice(found)
    holder = data
    for key in way:
        holder = holder[key]
    old, what = holder[last], ".".join(map(str, (*way, last)))
    kind = draw.choice(("value", "text", "remove", "near", "near", "twice", "rename"))
    mark = "<here>"
    if kind == "value":
        holder[last] = draw.choice(ODD_VALUES)
    elif kind == "text":
        raw = draw.choice(ODD_TEXTS)
        holder[last] = mark
        changed = json.dumps(data, ensure_ascii=False).replace(f'"{mark}"', raw)
        return changed, f"{what} is {raw[:12]}"
    elif kind == "near" and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[last] = old + draw.choice((1, -1, 0.25, old))
    elif kind == "near" and isinstance(old, str):
        holder[last] = old[:-1] + ("0" if old[-1:] != "0" else "1")
    elif kind == "near" and isinstance(old, list) and len(old) > 1:
        holder[last] = old[::-1]
    elif kind == "twice" and isinstance(last, str):
        holder[mark] = draw.choice(ODD_VALUES)
        return json.dumps(data).replace(f'"{mark}"', json.dumps(last)), f"{what} stands twice"
    elif kind == "rename" and isinstance(last, str):
        holder[f"{last}_"] = holder.pop(last)
    else:
        del holder[last]
    return json.dumps(data, ensure_ascii=False), f"{what}: {kind}"


def edit_bytes(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """A file's content with one thing wrong, and what was done."""
    at = draw.randrange(len(data) + 1)
    lines = data.splitlines(keepends=True)
    line = draw.randrange(len(lines)) if lines else 0
    return draw.choice(
        [
            (b"", "empty"),
            (data[:at], f"cut at {at}"),
            (bytes(len(data)), "zeros"),
            (data[:at] + bytes(len(data) - at), f"zeros from {at}"),
            (data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :], f"byte {at}"),
            (data[:at] + b"\xff\xfe" + data[at:], "no UTF-8"),
            (b"\xef\xbb\xbf" + data, "BOM"),
            (data.replace(b"\n", b"\r\n"), "CRLF"),
            (data + data, "twice"),
            (data + b"{}\n", "a line more"),
            (b"".join(lines[:line] + lines[line + 1 :]), f"without line {line + 1}"),
            (b"".join([*lines[: line + 1], *lines[line:]]), f"line {line + 1} twice"),
            (b"".join(reversed(lines)), "lines reversed"),
            (b"[" * 100_000, "deep"),
            (b"{}", "an empty table"),
            (b"null\n", "null"),
        ]
    )


def edit_columns(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Columns with one value changed, or that unpack to 512 MiB."""
    if draw.random() < 0.1:  # noqa: PLR2004 - one in ten
        return bomb(), "unpacks to 512 MiB"
    text, what = edit_json(lzma.decompress(data).decode(), draw)
    return lzma.compress(text.encode("utf-8", "surrogatepass")), what


@cache
def bomb() -> bytes:
    """Half a gigabyte of nothing, packed."""
    packer = lzma.LZMACompressor(preset=0)
    return b"".join([*(packer.compress(bytes(1 << 26)) for _ in range(8)), packer.flush()])


def edit_line(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """A file of JSON lines with one line changed."""
    lines = data.decode().splitlines()
    number = draw.randrange(len(lines))
    lines[number], what = edit_json(lines[number], draw)
    return "".join(f"{one}\n" for one in lines).encode("utf-8", "surrogatepass"), (
        f"line {number + 1}: {what}"
    )


def put(content: bytes) -> Callable[[Path], object]:
    """Something that writes a file."""
    return lambda path: path.write_bytes(content)


KINDS: dict[str, Callable[[Path], object]] = {
    "absent": Path.resolve,  # nothing comes in its place
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nowhere": lambda path: path.symlink_to("gone"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a file": put(b"text\n"),
}


def damage(root: Path, draw: random.Random) -> tuple[Path, str]:
    """Damage one thing below a root; which, and what was done."""
    found = [path for place in PLACES for path in sorted((root / place).rglob("*"))]
    files = [path for path in found if path.is_file() and path.name not in LEFT_ALONE]
    chance = draw.random()
    if chance < 0.05:  # noqa: PLR2004 - a folder, one in twenty
        path = draw.choice([path for path in found if path.is_dir()])
        kind = draw.choice([name for name in KINDS if name != "a folder"])
        shutil.rmtree(path)
        KINDS[kind](path)
        return path, f"is {kind}"
    path = draw.choice(files)
    if chance < 0.08:  # noqa: PLR2004 - something beside it
        other = path.with_name(
            draw.choice((".nfs01", "journal-2-of-9.jsonl", "a\nb", "failed.json"))
        )
        KINDS[kind := draw.choice([name for name in KINDS if name != "absent"])](other)
        return other, f"is {kind}, and new"
    if chance < 0.25:  # noqa: PLR2004 - another kind of thing
        kind = draw.choice([name for name in KINDS if name != "a file"])
        path.unlink()
        KINDS[kind](path)
        return path, f"is {kind}"
    data = path.read_bytes()
    edit = edit_bytes
    if chance > 0.5:  # noqa: PLR2004 - half of all are edits of a value
        kinds = {".xz": edit_columns, ".jsonl": edit_line}
        edit = kinds.get(path.suffix, edit)
        if path.suffix == ".json":
            text, what = edit_json(data.decode(), draw)
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            return path, what
    content, what = edit(data, draw)
    path.write_bytes(content)
    return path, what

"""Files of a release: copied whole, or scrubbed on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from markupsafe import escape

from fdllm import strictjson
from fdllm.outside import read_bytes, read_json, read_text, unpack_xz
from fdllm.plain import escaped, one_line
from fdllm.record.atomic import write_bytes, write_json, write_text
from fdllm.record.identity import code_files
from fdllm.record.journal import read_journal, sealed
from fdllm.record.paths import COLUMNS, SAMPLES
from fdllm.record.per_document import MOST
from fdllm.release.scrub import scrub_session, scrub_summary
from fdllm.report.html import script_json

_WHOLE = (SAMPLES, "results.json", COLUMNS)
_PAGES = ("*.py", "*.toml", "*.md")


def copy_record(source: Path, target: Path) -> dict[str, str]:
    """Copy a record without the names of machines and folders.

    Files that its summary vouches for with a hash stay as they are.

    Returns:
        The model's name as it was, and as it is now, where that is another one.
    """
    for name in _WHOLE:
        if (source / name).is_file():
            copy(source / name, target / name)
    journal = source / "journal.jsonl"
    if journal.is_file():
        write_bytes(target / journal.name, b"".join(_scrubbed_journal(journal)))
    summary = read_json(source / "summary.json", most=MOST)
    scrubbed = scrub_summary(summary)
    write_json(target / "summary.json", scrubbed)
    old, new = str(summary["model"]), str(scrubbed["model"])
    return {} if old == new else {old: new}


def _scrubbed_journal(path: Path) -> Iterator[bytes]:
    """The journal's lines; who computed is scrubbed, answers are not touched."""
    seal = read_journal(path).seal
    for line in read_bytes(path, most=MOST).splitlines(keepends=True):
        if line.startswith(b'{"session"'):
            session = scrub_session(strictjson.loads(line)["session"])
            yield from sealed([{"session": session}], seal)
        else:
            yield line


def copy_pages(source: Path, target: Path, renamed: Mapping[str, str]) -> None:
    """Copy an experiment's code, settings and pages; its pages call models by their new names."""
    for path in code_files(source, *_PAGES):
        place = target / path.relative_to(source)
        if path.suffix == ".md":
            write_text(place, rename(read_text(path, most=MOST), renamed))
        else:
            copy(path, place)


def rename(text: str, renamed: Mapping[str, str]) -> str:
    """A text with its models under their new names, whatever page it is."""
    for old, new in renamed.items():
        line = one_line(old)
        for form in (old, line, escaped(old), escape(line), script_json(old)[1:-1]):
            text = text.replace(str(form), new)
    return text


def text_of(path: Path) -> str:
    """A file's text, unpacked where it is packed.

    Raises:
        OutsideError: it is no text.
    """
    if path.suffix != ".xz":
        return read_text(path, most=MOST)
    return unpack_xz(read_bytes(path, most=MOST), path, most=MOST).decode("utf-8")


def names_in(folder: Path) -> list[str]:
    """Names of all files, relative, sorted."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def copy(source: Path, target: Path) -> None:
    """Copy a file's content; its folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)

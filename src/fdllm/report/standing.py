"""The rows that a written report shows, so that a new one takes none of them away unasked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from fdllm.errors import FdllmError, few
from fdllm.outside import AbsentError, read_text
from fdllm.report.build import Report
from fdllm.report.recheck import embedded_tables

_MOST = 1 << 26  # bytes; a page of nine configs has 100 KB
_SHOWN = 4  # tasks


def keep_rows(markdown: Path, text: str) -> None:
    """See that a page of Markdown has every row of the one that it is to replace.

    Raises:
        FdllmError: rows would go; it names them, and the flag. Or a file cannot be read.
    """
    try:
        written = read_text(markdown, most=_MOST)
    except AbsentError:
        written = ""
    _keep(markdown, _rows(written), _rows(text))


def keep_cells(page: Path, report: Report) -> None:
    """The same of an HTML report."""
    drawn = embedded_tables(page) if page.exists() else []
    fresh = [(table.folder, [cell.name for cell in table.cells]) for table in report.tables]
    _keep(page, _cells(drawn), _cells(fresh))


def _keep(path: Path, then: Iterable[tuple[str, str]], now: Iterable[tuple[str, str]]) -> None:
    have = set(now)
    going: dict[str, dict[str, None]] = {}
    for task, name in then:
        if (task, name) not in have:
            going.setdefault(task, {})[name] = None
    if going:
        named = [f"{task} ({', '.join(names)})" for task, names in going.items()]
        raise FdllmError(
            f"nothing was written: {path} shows rows that the new one would not: "
            f"{few(named, _SHOWN)}. Select them too; fdllm status says what "
            "became of them; --replace writes it all the same"
        )


def _cells(tables: Iterable[tuple[str, Iterable[str]]]) -> Iterator[tuple[str, str]]:
    return ((folder, name) for folder, names in tables for name in names)


def _rows(text: str) -> Iterator[tuple[str, str]]:
    """Section and config of each row of a page; of a config there are several."""
    section, is_table = "", False
    for line in text.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        name = line.removeprefix("| ").partition(" |")[0]
        starts = line.startswith("| Config |")
        if is_table and line.startswith("| ") and name != "---":
            yield section, name
        is_table = starts or (is_table and line.startswith("| "))

"""``fdllm report --check``: every figure once more, from what it is computed from.

What a record's summary and a written report say is compared with what the columns show. Where the
run was, all of its files are compared with each other and with the copies for git, and made anew
from the journal; a clone has the copies alone. Nothing is trusted because it was written by the
tool.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.errors import FdllmError
from fdllm.outside import AbsentError, OutsideError, parse_json, read_text
from fdllm.plan import Planner
from fdllm.record.paths import Layout
from fdllm.report.asked_again import AskedAgain
from fdllm.report.build import Section, report_of
from fdllm.report.leaves import Figure, compared, same
from fdllm.report.own_files import copy_figures, own_figures
from fdllm.report.records import Record, load_record
from fdllm.runs import Run

_MOST = 1 << 26  # bytes of a page; one of nine configs has 100 KB
_EMBEDDED = re.compile(
    r'<script type="application/json" id="figures">(?P<json>.*?)</script>', re.DOTALL
)

Again = Callable[[Record, list[str]], Iterable[Figure]]
_OF_ANOTHER_FORM = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)


@dataclass(frozen=True)
class Mismatch:
    """A figure that what it is computed from does not bear out."""

    where: str  # the file
    figure: str  # its name
    written: str  # what stands there
    found: str  # what it is computed from gives

    def __str__(self) -> str:
        return f"{self.where}: {self.figure} is {self.written}; computed anew it is {self.found}"


@dataclass(frozen=True)
class Recheck:
    """What a check found."""

    num_records: int = 0  # records compared
    num_figures: int = 0  # figures compared
    differences: tuple[Mismatch, ...] = ()  # those that differ
    notes: tuple[str, ...] = ()  # what could not be compared, and why

    @classmethod
    def of(cls, figures: Iterable[Figure], notes: Iterable[str] = ()) -> Recheck:
        """Compare what is written with what follows from elsewhere."""
        every = list(figures)
        differences = dict.fromkeys(
            Mismatch(file, place, _show(written), _show(found))
            for file, place, written, found in every
            if not same(written, found)
        )
        return cls(0, len(every), tuple(differences), tuple(notes))

    @classmethod
    def wrong(cls, where: str, figure: str, written: str, found: str) -> Recheck:
        """One difference, which is no figure's: a file that cannot be read, say."""
        return cls(differences=(Mismatch(where, figure, written, found),))

    def __add__(self, other: Recheck) -> Recheck:
        return Recheck(
            self.num_records + other.num_records,
            self.num_figures + other.num_figures,
            self.differences + other.differences,
            self.notes + other.notes,
        )


def recheck(
    planner: Planner,
    experiment: str,
    folders: Sequence[Path],
    written: Path,
    runs: Iterable[Run] = (),
) -> Recheck:
    """Compute every figure of the records in some folders, and of the written HTML report, anew.

    ``runs`` is what they are records of, so far as that is known: their documents are asked and
    graded once more, and no model is loaded for that.
    """
    found = recheck_records(planner, folders, runs)
    if not written.exists():
        return found + Recheck(notes=(f"{written} is not there, so it was not compared",))
    at = {planner.layout.part(one).as_posix(): one for one in folders}
    place = planner.layout.results / experiment
    named = [
        [f"{experiment}/{folder}/{name}" for name in names]
        for folder, names in embedded_tables(written)
    ]
    try:
        sections = [
            Section(tuple(load_record(at.get(part, place.parent / part)) for part in parts))
            for parts in named
        ]
        report = report_of(planner, experiment, sections)
    except FdllmError as error:
        return found + Recheck.wrong(
            written.name, "a record behind it", "gone or broken", str(error)
        )
    shown = {part for parts in named for part in parts}
    later = [part.removeprefix(f"{experiment}/") for part in at if part not in shown]
    notes = (f"not in {written.name}: {', '.join(later)}",) if later else ()
    return found + check_page(written, report.figures()) + Recheck(notes=notes)


def recheck_records(planner: Planner, folders: Sequence[Path], runs: Iterable[Run]) -> Recheck:
    """Compute every figure of some records anew; arguments as those of :func:`recheck`."""
    asked, known = AskedAgain(planner), {planner.layout.run(run).folder: run for run in runs}

    def again(cell: Record, notes: list[str]) -> Iterator[Figure]:
        run = known.get(cell.folder)
        if run is None:
            notes.append("not asked again: which run it is of is not known here")
        else:
            yield from asked.figures(cell, run, notes)

    return check_records(planner.layout, folders, again)


def check_records(
    layout: Layout, folders: Sequence[Path], again: Again = lambda _cell, _notes: ()
) -> Recheck:
    """Compare each record's files with each other, with their copies, and with what ``again`` says.

    Whatever is wrong with a file is a difference.
    """
    found = Recheck(num_records=len(folders))
    for folder in folders:
        name = layout.part(folder).as_posix()
        notes: list[str] = []
        figures: list[Figure] = []
        wrong = ""
        try:
            cell = load_record(folder)
            figures.extend(own_figures(cell, notes))
            if not cell.is_published:
                figures.extend(copy_figures(cell, layout.artifacts / name, notes))
                figures.extend(again(cell, notes))
        except (FdllmError, OSError) as error:
            wrong = str(error)
        except _OF_ANOTHER_FORM as error:
            wrong = f"{type(error).__name__}: {error}"
        named = ((f"{name}/{file}", *figure) for file, *figure in figures)
        found += Recheck.of(named, (f"{name}: {note}" for note in notes))
        if wrong:
            found += Recheck.wrong(name, "the record", "not readable", wrong)
    return found


def _embedded(path: Path) -> Any:  # noqa: ANN401 - any JSON
    """The figures that a written report holds; None where it holds none.

    Raises:
        OutsideError: it cannot be read, or they are no JSON.
    """
    match = _EMBEDDED.search(read_text(path, most=_MOST))
    return None if match is None else parse_json(match["json"], path)


def embedded_tables(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Task folder and configs of each table of a written report; empty where none can be read."""
    try:
        return [
            (str(table["folder"]), tuple(str(cell["name"]) for cell in table["cells"]))
            for table in _embedded(path)["tables"]
        ]
    except (OutsideError, KeyError, TypeError):
        return []


def check_page(path: Path, fresh: Mapping[str, Any]) -> Recheck:
    """Compare the figures in a written HTML report with fresh ones."""
    try:
        figures = _embedded(path)
    except OutsideError as error:
        return Recheck.wrong(path.name, "its figures", "not readable", str(error))
    if figures is None:
        return Recheck.wrong(path.name, "its figures", "absent", "a report of fdllm holds them")
    found = strictjson.loads(strictjson.dumps(fresh))
    return Recheck.of(compared(path.name, figures, found))


def check_file(path: Path, fresh: str, name: str = "") -> Recheck:
    """Compare a written page with a fresh one; lines with digits count as figures.

    HTML may be absent: git keeps none.
    """
    name = name or path.name
    try:
        lines, found = read_text(path, most=_MOST).splitlines(), fresh.splitlines()
    except OutsideError as error:
        if isinstance(error, AbsentError) and path.suffix == ".html":
            return Recheck(notes=(f"{path} is not there, so it was not compared",))
        return Recheck.wrong(name, "the file", "not readable", str(error))
    matcher = difflib.SequenceMatcher(None, lines, found, autojunk=False)
    differences = tuple(
        Mismatch(
            name,
            f"line {start + 1}",
            repr("\n".join(lines[start:stop])),
            repr("\n".join(found[first:last])),
        )
        for kind, start, stop, first, last in matcher.get_opcodes()
        if kind != "equal"
    )
    return Recheck(0, sum(any(map(str.isdigit, line)) for line in found), differences)


def _show(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = strictjson.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= 70 else f"{text[:67]}…"  # noqa: PLR2004 - a line's worth

"""What git keeps of an experiment, held to what was published and to what it says itself.

``artifacts/<experiment>/SHA256SUMS`` lists the copies that a written report stands on.

Figures are held to the columns, and these by a hash to their summary; what else a summary or a
timing study says is held by this list, in a clone and whatever the code has become since.
``sha256sum --check`` reads it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fdllm.errors import FdllmError, first_line
from fdllm.outside import read_json, read_text
from fdllm.profiling.profile_page import pages_beside
from fdllm.record.atomic import write_text
from fdllm.record.paths import COLUMNS, TIMING, Layout
from fdllm.record.per_document import digest_of_answer
from fdllm.record.study import Study, read_study
from fdllm.report.leaves import ABSENT, Figure
from fdllm.report.recheck import Recheck, check_file
from fdllm.report.records import Record, SampleKey, load_record
from fdllm.report.times import changed

SUMS, CRATE = "SHA256SUMS", "ro-crate-metadata.json"
_MOST = 64 << 20  # bytes of a list
_COPY = "SHA-256 of the copy under artifacts"


def write_sums(layout: Layout, experiment: str, records: Iterable[Record]) -> Path:
    """List the copies of some records, of the timing studies beside them and of their profiles."""
    place = layout.artifacts / experiment
    kept = [layout.artifacts / layout.part(record.folder) for record in records]
    files = {folder / name for folder in kept for name in ("summary.json", COLUMNS)}
    files |= {folder.parent / TIMING / "study.json" for folder in kept}
    files |= {layout.profile_beside(folder.parent.name)[1] for folder in kept}
    names = {path: Path(os.path.relpath(path, place)).as_posix() for path in sorted(files)}
    lines = [f"{_digest(path)}  {name}\n" for path, name in names.items()]
    write_text(place / SUMS, "".join(line for line in lines if not line.startswith(ABSENT)))
    return place / SUMS


def check_sums(layout: Layout, experiment: str) -> Recheck:
    """Compare the copies with the list, where a report wrote one."""
    place = layout.artifacts / experiment
    if not (place / SUMS).is_file():
        return Recheck(notes=(f"no {place / SUMS}: fdllm report writes it",))
    try:
        listed = dict(_listed(place / SUMS))
    except FdllmError as error:
        where = f"artifacts/{experiment}/{SUMS}"
        return Recheck.wrong(where, "the list", "not readable", str(error))
    return Recheck.of(
        (f"artifacts/{experiment}/{name}", "SHA-256", written, _digest(place / name))
        for name, written in listed.items()
    )


def check_release(root: Path) -> Recheck:
    """Hold an exported folder to its own list, and its metadata to its records.

    Every file that is listed is there and is the one listed, and no other is there. Where ``root``
    is no such folder there is nothing to compare.
    """
    if not (root / CRATE).is_file():
        return Recheck()
    try:
        listed = dict(_listed(root / SUMS))
        there = {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if not path.is_dir() and "__pycache__" not in path.parts
        }
        names = sorted((listed.keys() | there) - {SUMS})
        files = [
            (name, "SHA-256", listed.get(name, "not listed"), _digest(root / name))
            for name in names
        ]
        return Recheck.of([*files, *_times(root)])
    except (FdllmError, LookupError, TypeError, AttributeError) as error:
        return Recheck.wrong(SUMS, "the release's lists", "not readable", first_line(error))


def _listed(path: Path) -> Iterator[tuple[str, str]]:
    """Names and hashes of a list that ``sha256sum`` reads."""
    for line in read_text(path, most=_MOST).splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest


def _times(root: Path) -> Iterator[Figure]:
    """When each run began and ended, in the metadata and in its record."""
    for entity in read_json(root / CRATE, most=_MOST)["@graph"]:
        if entity["@type"] != "CreateAction":
            continue
        place = str(entity["@id"]).removeprefix("#")
        told = read_json(root / place / "summary.json", most=_MOST)["provenance"]
        yield CRATE, f"endTime of {place}", entity["endTime"], told["finished"]
        yield CRATE, f"startTime of {place}", entity["startTime"], told["sessions"][0]["started"]


def check_studies(layout: Layout, folders: Sequence[Path]) -> Recheck:
    """Compare the timing studies beside some records with their copies and with the records."""
    found = Recheck()
    for task in dict.fromkeys(folder.parent for folder in folders):
        path, part = task / TIMING / "study.json", layout.part(task) / TIMING / "study.json"
        copy = layout.artifacts / part
        if not path.is_file():
            continue
        if copy.is_file():
            found += Recheck.of([(part.as_posix(), _COPY, _digest(copy), _digest(path))])
        else:
            found += Recheck(notes=(f"{part}: no copy under artifacts",))
        try:
            study = read_study(path)
            cells = [load_record(folder) for folder in folders if folder.parent == task]
            found += Recheck.of(() if study is None else _agreements(part.as_posix(), study, cells))
        except FdllmError as error:
            found += Recheck.wrong(part.as_posix(), "the study", "not readable", str(error))
    return found


def check_profiles(layout: Layout, folders: Sequence[Path]) -> Recheck:
    """Compare the profiles that stand beside some records with their copies and their pages."""
    found = Recheck()
    for name in dict.fromkeys(folder.parent.name for folder in folders):
        path, copy = layout.profile_beside(name)
        part = copy.relative_to(layout.artifacts).as_posix()
        if path.is_file() and copy.is_file():
            found += Recheck.of([(part, _COPY, _digest(copy), _digest(path))])
        try:
            pages = pages_beside(layout, name)
        except FdllmError as error:
            found += Recheck.wrong(part, "the profile", "not readable", str(error))
            continue
        for place, fresh in pages.items():
            if place.exists():
                found += check_file(place, fresh, f"{name}/{place.name}")
    return found


def _agreements(part: str, study: Study, cells: Sequence[Record]) -> Iterator[Figure]:
    """How many answers of a study are its records': what it says, and what the two show."""
    for cell in cells:
        timed = study.configs.get(cell.name)
        if timed is None or timed.agrees is None or changed(study, cell):
            continue
        given = dict(zip(study.documents, timed.answers, strict=True))
        both = [key for key in given if key in cell.by_key]
        equal = sum(_answer(cell, key) == given[key] for key in both)
        # The first round's answers are kept; on a GPU a later one may have been another.
        equal = min(equal, timed.agrees.equal)
        says = f"{timed.agrees.equal} of {timed.agrees.compared}"
        yield part, f"answers of {cell.name} equal to its record's", says, f"{equal} of {len(both)}"


def _answer(cell: Record, key: SampleKey) -> str:
    said = cell.by_key[key]["output"]
    return said if isinstance(said, str) else digest_of_answer(said)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ABSENT

"""Finished records, read strictly: what every figure of a report starts from.

A record is read where its run left it, and in a clone, where no run was, from what git keeps of it:
its summary and its columns. Every figure is computed from the columns in both places; texts are
read where somebody asks for them, and a clone has none.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fdllm.errors import FdllmError
from fdllm.outside import OutsideError, parse_json, read_bytes
from fdllm.plan import RECORDED, CellState
from fdllm.record.paths import COLUMNS, SAMPLES, Layout, TaskFolder
from fdllm.record.per_document import MOST, checked, unpack
from fdllm.record.summary import InvalidRecordError, Summary, is_published, read_summary

SampleKey = tuple[str, int]
"""A document of a run: its leaf task and its number there."""

_AGAIN = "move the folder away and sweep again"


class RecordError(FdllmError):
    """A record cannot be read, or is not what a finished run leaves."""


class NotComparableError(FdllmError):
    """Two records must not be compared: nobody can tell which is better.

    Exit code 2, that of "cannot tell".
    """

    exit_code = 2


@dataclass(frozen=True)
class Record:
    """One finished run with its documents."""

    folder: Path  # where it lies
    summary: Summary  # ``summary.json``
    # its documents, where they are in memory already
    read: Sequence[dict[str, Any]] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The config, ``k2_middle`` say."""
        return self.summary.config

    @property
    def task(self) -> str:
        """The task."""
        return self.summary.task

    @property
    def limit(self) -> int | None:
        """Documents of each leaf task at most; None is all."""
        return self.summary.limit

    @cached_property
    def samples(self) -> Sequence[dict[str, Any]]:
        """Its documents, sorted by leaf task and number: all that a figure needs of each.

        See :func:`fdllm.record.per_document.rows_of`.

        Raises:
            RecordError: the file is damaged, or not the one its summary describes.
        """
        return _read_columns(self.folder, self.summary) if self.read is None else self.read

    @cached_property
    def by_key(self) -> dict[SampleKey, dict[str, Any]]:
        """Documents by leaf task and number."""
        return {sample_key(sample): sample for sample in self.samples}

    @property
    def is_published(self) -> bool:
        """Whether this is what git keeps of a run, which has no texts."""
        return self.read is None and is_published(self.folder)

    @cached_property
    def texts(self) -> dict[SampleKey, dict[str, Any]]:
        """Lines of ``samples.jsonl``, which hold prompts and answers too; empty in a clone.

        Raises:
            RecordError: the file is damaged, or not the one its summary describes.
        """
        if self.is_published:
            return {}
        if self.read is not None and all("prompt" in sample for sample in self.read):
            return self.by_key
        return {sample_key(one): one for one in _read_texts(self.folder, self.summary)}

    def value(self, sample: dict[str, Any]) -> float:
        """The headline metric of one document.

        Raises:
            RecordError: the sample has no such figure.
        """
        metric = self.summary.headline.metric
        value = sample["metrics"].get(metric)
        if not isinstance(value, (bool, int, float)):
            raise RecordError(
                f"{self.folder}: {sample['task']} row {sample['doc_id']} has no '{metric}' figure; "
                "what is compared is the headline metric of each document"
            )
        return float(value)


def sample_key(sample: dict[str, Any]) -> SampleKey:
    """What names a sample inside its run."""
    return str(sample["task"]), int(sample["doc_id"])


def load_record(folder: Path) -> Record:
    """Read a finished run, or what git keeps of one.

    Raises:
        RecordError: a file is missing, damaged, or not the one its summary describes; or a document
            lacks a fact or stands there twice.
    """
    if not os.path.lexists(folder / "summary.json"):
        what = "holds no summary.json: that run is not finished" if folder.is_dir() else "is absent"
        raise RecordError(f"{folder} {what}; fdllm status shows what there is")
    try:
        summary = read_summary(folder / "summary.json", published=is_published(folder))
    except InvalidRecordError as error:
        raise RecordError(f"{folder}: {error}; move it away and sweep again") from None
    record = Record(folder, summary)
    _ = record.samples
    return record


def finished(cells: Sequence[CellState]) -> list[Record]:
    """The records of cells that are done or decided; documents are read when asked for."""
    return [
        Record(cell.paths.folder, cell.summary)
        for cell in cells
        if cell.state in RECORDED and cell.summary is not None
    ]


def record_folders(
    layout: Layout, experiment: str, tasks: Sequence[str] = (), limit: int | None = None
) -> list[Path]:
    """Folders of an experiment that hold a summary, whatever is in it.

    What git keeps of a run counts where the run's own folder is absent. No task is all of them, and
    no limit is every limit and none.
    """
    found: dict[Path, Path] = {}
    for root in (layout.results, layout.artifacts):
        for path in (root / experiment).glob("*/*/summary.json"):
            place, part = TaskFolder.parse(path.parent.parent.name), path.parent.relative_to(root)
            # Superseded records are hidden.
            if place is None or part.name.startswith(".") or part in found:
                continue
            if root == layout.artifacts and (layout.results / part).exists():
                continue
            if (not tasks or place.task in tasks) and limit in (None, place.limit):
                found[part] = path.parent
    return [found[part] for part in sorted(found)]


def html_path(layout: Layout, experiment: str) -> Path:
    """Where the report of an experiment lies unless somebody says otherwise."""
    return layout.results / experiment / "report.html"


def load_records(
    layout: Layout,
    experiment: str,
    task: str | None = None,
    limit: int | None = None,
    *,
    left_out: list[str] | None = None,
) -> list[Record]:
    """Read the finished runs of an experiment; unfinished ones are passed over.

    They come by task folder, then by config; limits and models, where all are asked for, are told
    apart by their summaries. ``left_out`` takes a line for each record that is broken; without it,
    one stops everything.

    Raises:
        RecordError: a record is broken, or lies in the folder of another run.
    """
    records = []
    for folder in record_folders(layout, experiment, () if task is None else (task,), limit):
        try:
            records.append(_in_its_place(folder, experiment))
        except RecordError as error:
            if left_out is None:
                raise
            left_out.append(str(error).replace(str(folder), layout.part(folder).as_posix()))
    return records


def _in_its_place(folder: Path, experiment: str) -> Record:
    place = TaskFolder.parse(folder.parent.name)
    record = load_record(folder)
    own = record.summary
    named = place is not None and (experiment, place.task, place.limit, folder.name)
    if (own.experiment, own.task, own.limit, own.config) != named:
        raise RecordError(
            f"{folder} holds the record of {own.experiment} / {own.task} (limit {own.limit}) / "
            f"{own.config}: it was copied there; move it away"
        )
    return record


def _read_columns(folder: Path, summary: Summary) -> list[dict[str, Any]]:
    data = _read(folder, COLUMNS, summary)
    try:
        rows = unpack(data)
    except ValueError as error:
        raise RecordError(f"{folder / COLUMNS}: {error}; {_AGAIN}") from None
    return _whole(folder / COLUMNS, rows, summary)


def _read_texts(folder: Path, summary: Summary) -> list[dict[str, Any]]:
    path = folder / SAMPLES
    samples: list[dict[str, Any]] = []
    data = _read(folder, SAMPLES, summary)
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n"), 1):
        where = f"{path}, line {number}"
        try:
            samples.append(checked(parse_json(line, where)))
        except OutsideError as error:
            raise RecordError(f"{error}; {_AGAIN}") from None
        except ValueError as error:
            raise RecordError(f"{where}: {error}; {_AGAIN}") from None
    return _whole(path, samples, summary)


def _read(folder: Path, name: str, summary: Summary) -> bytes:
    """A file's content, which must be the one that its summary describes."""
    path = folder / name
    if name not in summary.files:
        raise RecordError(f"{folder}: summary.json names no {name}; {_AGAIN}")
    try:
        data = read_bytes(path, most=MOST)
    except OutsideError as error:
        raise RecordError(f"{error}; sweep again") from None
    if hashlib.sha256(data).hexdigest() != summary.files[name].sha256:
        raise RecordError(
            f"{path} was changed after its run: its SHA-256 is not the one in summary.json; "
            f"{_AGAIN}"
        )
    return data


def _whole(path: Path, rows: list[dict[str, Any]], summary: Summary) -> list[dict[str, Any]]:
    """The rows, each of a document of its own, as many as the summary counts."""
    seen: set[SampleKey] = set()
    for number, row in enumerate(rows, 1):
        key = sample_key(row)
        if key in seen:
            raise RecordError(f"{path}, line {number}: {key[0]} row {key[1]} stands there twice")
        seen.add(key)
    if len(rows) != summary.headline.num_samples:
        raise RecordError(
            f"{path} holds {len(rows)} samples, summary.json counts "
            f"{summary.headline.num_samples}; {_AGAIN}"
        )
    return rows

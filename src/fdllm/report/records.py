"""Finished records with their samples, read strictly: what every figure of a report starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fdllm import strictjson
from fdllm.errors import FdllmError
from fdllm.plan import CellState, State
from fdllm.record.paths import Layout, TaskFolder
from fdllm.record.summary import InvalidRecordError, Summary, read_summary

SampleKey = tuple[str, int]
"""A document of a run: its leaf task and its number there."""

_FIELDS = ("task", "doc_id", "doc_hash", "prompt_hash", "output", "metrics", "tokens", "seconds")


class RecordError(FdllmError):
    """A record cannot be read, or is not what a finished run leaves."""


class NotComparableError(FdllmError):
    """Two records must not be compared: nobody can tell which is better.

    Exit code 2, that of "cannot tell".
    """

    exit_code = 2


@dataclass(frozen=True)
class Record:
    """One finished run with its samples."""

    folder: Path  # where it lies
    summary: Summary  # ``summary.json``
    # its samples, where they are in memory already
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
        """Lines of ``samples.jsonl``, sorted by leaf task and document.

        Raises:
            RecordError: the file is damaged, or not the one its summary describes.
        """
        return _read_samples(self.folder, self.summary) if self.read is None else self.read

    @cached_property
    def by_key(self) -> dict[SampleKey, dict[str, Any]]:
        """Samples by leaf task and document."""
        return {sample_key(sample): sample for sample in self.samples}

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
    """Read a finished run.

    Raises:
        RecordError: a file is missing, damaged, or not the one its summary describes; or a sample
            lacks a field or stands there twice.
    """
    if not (folder / "summary.json").is_file():
        what = "holds no summary.json: that run is not finished" if folder.is_dir() else "is absent"
        raise RecordError(f"{folder} {what}; fdllm status shows what there is")
    try:
        summary = read_summary(folder / "summary.json")
    except InvalidRecordError as error:
        raise RecordError(f"{folder}: {error}; move it away and sweep again") from None
    return Record(folder, summary, _read_samples(folder, summary))


def finished(cells: Sequence[CellState]) -> list[Record]:
    """The records of those cells that are done; samples are read where they are asked for."""
    return [
        Record(cell.paths.folder, cell.summary)
        for cell in cells
        if cell.state is State.DONE and cell.summary is not None
    ]


def record_folders(
    results: Path, experiment: str, tasks: Sequence[str] = (), limit: int | None = None
) -> list[Path]:
    """Folders of an experiment that hold a summary, whatever is in it.

    Args:
        results: folder of all records.
        experiment: its name.
        tasks: only these; empty is all.
        limit: only records cut to this many documents; None is all.
    """
    found = []
    for path in sorted((results / experiment).glob("*/*/summary.json")):
        place = TaskFolder.parse(path.parent.parent.name)
        if place is None or path.parent.name.startswith("."):  # superseded records are hidden
            continue
        if (not tasks or place.task in tasks) and limit in (None, place.limit):
            found.append(path.parent)
    return found


def html_path(layout: Layout, experiment: str) -> Path:
    """Where the report of an experiment lies unless somebody says otherwise."""
    return layout.results / experiment / "report.html"


def load_records(
    results_root: Path, experiment: str, task: str | None = None, limit: int | None = None
) -> list[Record]:
    """Read the finished runs of an experiment; unfinished ones are passed over.

    Args:
        results_root: the folder that holds ``<experiment>/<task>…/<config>/``.
        experiment: its name.
        task: only this one; None is all of them.
        limit: only records cut to this many documents; None is every limit and none, which
            their summaries tell apart.

    Returns:
        Records by task folder, then by config; several models where there are several.

    Raises:
        RecordError: a record is broken, or lies in the folder of another run.
    """
    records = []
    for folder in record_folders(results_root, experiment, () if task is None else (task,), limit):
        place = TaskFolder.parse(folder.parent.name)
        record = load_record(folder)
        own = record.summary
        named = place is not None and (experiment, place.task, place.limit, folder.name)
        if (own.experiment, own.task, own.limit, own.config) != named:
            raise RecordError(
                f"{folder} holds the record of {own.experiment} / {own.task} (limit {own.limit}) / "
                f"{own.config}: it was copied there; move it away"
            )
        records.append(record)
    return records


def _read_samples(folder: Path, summary: Summary) -> list[dict[str, Any]]:
    path = folder / "samples.jsonl"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}; sweep again") from None
    if hashlib.sha256(data).hexdigest() != summary.files[path.name].sha256:
        raise RecordError(
            f"{path} was changed after its run: its SHA-256 is not the one in summary.json; move "
            "the folder away and sweep again"
        )
    samples: list[dict[str, Any]] = []
    seen: set[SampleKey] = set()
    for number, line in enumerate(data.decode("utf-8").removesuffix("\n").split("\n"), 1):
        try:
            sample = strictjson.loads(line)
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: this is no JSON ({error})") from None
        lacking = [f for f in _FIELDS if not isinstance(sample, dict) or f not in sample]
        if lacking:
            raise RecordError(f"{path}, line {number}: the sample lacks {', '.join(lacking)}")
        key = sample_key(sample)
        if key in seen:
            raise RecordError(f"{path}, line {number}: {key[0]} row {key[1]} stands there twice")
        seen.add(key)
        samples.append(sample)
    if len(samples) != summary.headline.num_samples:
        raise RecordError(
            f"{path} holds {len(samples)} samples, summary.json counts "
            f"{summary.headline.num_samples}; move the folder away and sweep again"
        )
    return samples

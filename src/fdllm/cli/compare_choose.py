"""Which records ``fdllm compare`` is about: two folders, or two configs of an experiment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fdllm.cli.options import CompareOptions
from fdllm.errors import UsageError
from fdllm.presets.load import load_preset
from fdllm.record.paths import Layout, find_root, model_slug
from fdllm.record.summary import InvalidRecordError, read_summary
from fdllm.report.grid import check_grid
from fdllm.report.records import Record, RecordError, load_record
from fdllm.runs import home_model


@dataclass(frozen=True)
class Choice:
    """Two records of one task.

    Attributes:
        a: the record to compare with.
        b: the record in question.
        grid: both, and the finished cells beside them that reuse nothing: A/A cells among them
            tell the noise.
    """

    a: Record
    b: Record
    grid: tuple[Record, ...]


def choose(options: CompareOptions) -> list[Choice]:
    """The records that were named, a pair for each task.

    Raises:
        UsageError: there are none, or several models fit.
        NotComparableError: two configs of one experiment were computed by different code, on
            different machines, …: their difference would not be that of the configs.
        RecordError: a record is broken.
    """
    folders = [_is_folder(options.a), _is_folder(options.b)]
    if all(folders):
        return [_of_folders(Path(options.a).expanduser(), Path(options.b).expanduser())]
    if any(folders):
        raise UsageError(
            f"'{options.a}' and '{options.b}': one is a folder and one a config; give two "
            "folders of records, or two configs of one experiment"
        )
    return _of_configs(options)


def choose_one(options: CompareOptions) -> list[Record]:
    """The records of A alone, one for each task.

    Raises:
        UsageError: there are none.
        RecordError: a record is broken.
    """
    if _is_folder(options.a):
        return [load_record(Path(options.a).expanduser())]
    layout = _layout(options)
    place = layout.results / options.experiment
    found = [place / folder / options.a for folder in _task_folders(options, layout)]
    cells = [load_record(folder) for folder in found if (folder / "summary.json").is_file()]
    if not cells:
        raise UsageError(_nothing(options, layout, f"'{options.a}'"))
    return cells


def _layout(options: CompareOptions) -> Layout:
    return Layout.of(find_root(), options.results)


def _is_folder(name: str) -> bool:
    """A path is written as one; a folder of the current directory counts where it is a record."""
    return os.sep in name or (Path(name) / "summary.json").is_file()


def _of_folders(one: Path, other: Path) -> Choice:
    named = [one.resolve(), other.resolve()]
    beside = [*_records(named[0].parent), *_records(named[1].parent)]
    cells = {folder: load_record(folder) for folder in [*named, *filter(_is_plain, beside)]}
    return Choice(cells[named[0]], cells[named[1]], tuple(cells.values()))


def _of_configs(options: CompareOptions) -> list[Choice]:
    layout = _layout(options)
    place = layout.results / options.experiment
    chosen: dict[str, Choice] = {}
    for folder in _task_folders(options, layout):
        records = {path.name: path for path in _records(place / folder)}
        if not {options.a, options.b} <= records.keys():
            continue
        cells = {
            name: load_record(path)
            for name, path in records.items()
            if name in (options.a, options.b) or _is_plain(path)
        }
        a, b = cells[options.a], cells[options.b]
        if a.task in chosen:
            raise UsageError(
                f"several models have records of {a.task}: {chosen[a.task].a.summary.model} and "
                f"{a.summary.model}; "
                "name one with --model"
            )
        check_grid([a, b])
        chosen[a.task] = Choice(a, b, tuple(cells.values()))
    if not chosen:
        raise UsageError(_nothing(options, layout, f"both '{options.a}' and '{options.b}'"))
    return list(chosen.values())


def _task_folders(options: CompareOptions, layout: Layout) -> list[str]:
    """Names of the task folders that fit task, limit and model."""
    model = options.model or os.environ.get("FDLLM_MODEL")
    preset = None if options.preset is None else load_preset(options.preset).name
    names = []
    for folder in layout.task_folders(options.experiment):
        own = None if model is None or model == home_model(folder.task) else model_slug(model)
        fits = (folder.limit, folder.preset) == (options.limit, preset)
        fits = fits and options.task in (None, folder.task)
        if fits and (model is None or folder.model == own):
            names.append(str(folder))
    return names


def _nothing(options: CompareOptions, layout: Layout, what: str) -> str:
    """What was asked for and what there is."""
    place = layout.results / options.experiment
    there = sorted(
        f"{p.parent.parent.name}/{p.parent.name}" for p in place.glob("*/*/summary.json")
    )
    limit = "without a limit" if options.limit is None else f"of limit {options.limit}"
    if options.preset is not None:
        limit += f" under preset {options.preset}"
    task = "" if options.task is None else f" of {options.task}"
    shown = ", ".join(there[:12]) + (" …" if len(there) > 12 else "")  # noqa: PLR2004 - a few lines
    return (
        f"no finished records{task} {limit} of {what} in {place}; there "
        f"are {shown or 'none: sweep first'}"
    )


def _records(folder: Path) -> list[Path]:
    """Finished cells of a task folder."""
    return [path.parent for path in sorted(folder.glob("*/summary.json"))]


def _is_plain(folder: Path) -> bool:
    """Whether a cell reuses nothing, so that it may be one of several A/A cells."""
    try:
        return not read_summary(folder / "summary.json").strategy.reuses
    except InvalidRecordError as error:
        raise RecordError(f"{folder}: {error}; move it away and sweep again") from None

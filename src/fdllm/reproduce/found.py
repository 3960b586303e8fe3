"""The figures of records by name: those of the experiment's own report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial

from fdllm.criteria import Criteria
from fdllm.errors import FdllmError
from fdllm.plan import RECORDED, CellState, State
from fdllm.record.paths import TIMING, Layout
from fdllm.record.study import Study, read_study
from fdllm.report.agreement import agree, tolerance_of
from fdllm.report.build import Section, TablePage, build_report
from fdllm.report.drafts import Drafts
from fdllm.report.records import Record
from fdllm.report.stats import Estimate


class NoFigureError(FdllmError):
    """Records do not have a figure; why."""


@dataclass(frozen=True)
class TaskFigures:
    """What an experiment's records of one task have."""

    experiment: str
    task: str
    cells: Sequence[CellState]  # of the grid
    criteria: Criteria | None  # which name the baseline
    layout: Layout

    @cached_property
    def records(self) -> dict[str, Record]:
        """Records by config, stale ones too: :meth:`stale` tells."""
        return {
            one.run.cell.name: Record(one.paths.folder, one.summary)
            for one in self.cells
            if one.summary is not None and one.state in {*RECORDED, State.STALE}
        }

    @cached_property
    def table(self) -> TablePage:
        """The report's own figures of them."""
        if not self.records:
            raise NoFigureError(f"{self.experiment} has no records of {self.task}")
        section = Section(tuple(self.records.values()))
        [table] = build_report(self.experiment, "", self.criteria, [section], self.layout).tables
        return table

    @cached_property
    def study(self) -> Study | None:
        """The timing study beside them."""
        folder = next(iter(self.records.values())).folder.parent
        return read_study(folder / TIMING / "study.json")

    def configs(self, patterns: str) -> list[str]:
        """Names of records that fit, in the order of the patterns.

        Raises:
            NoFigureError: one has none.
        """
        names = list[str]()
        for pattern in patterns.split():
            fitting = [name for name in self.records if fnmatchcase(name, pattern)]
            if not fitting:
                raise NoFigureError(f"{self.experiment} has no record of {self.task} / {pattern}")
            names += fitting
        return list(dict.fromkeys(names))

    def why_stale(self, name: str) -> str:
        """Why a record is not what the code here would make; empty where it is."""
        stale = (one for one in self.cells if one.run.cell.name == name)
        return next((one.reason for one in stale if one.state is State.STALE), "")

    def figure(self, name: str, field: str, beside: Record | None = None) -> Estimate:
        """A config's figure; its two ends are the value where it has no interval.

        Args:
            name: the config.
            field: one of :data:`FIELDS`, with a suffix of :data:`SUFFIXES` or none.
            beside: another record, for ``equal_answers``.

        Raises:
            NoFigureError: its record does not have it.
        """
        if field == "equal_answers":
            return certain(self._equal_answers(name, beside))
        suffix = next((one for one in SUFFIXES if field.endswith(one)), "")
        read = FIELDS.get(field.removesuffix(suffix))
        if read is None:
            known = ", ".join([*FIELDS, "equal_answers"])
            raise NoFigureError(f"no figure is called '{field}'; there are {known}")
        found = read(self, name)
        if found is None:
            why = self.table.times.sentence if field.startswith("time") else "it has none"
            raise NoFigureError(f"{self.experiment} / {self.task} / {name}: no {field}: {why}")
        value = found if isinstance(found, Estimate) else certain(found)
        return SUFFIXES[suffix](value) if suffix else value

    def _equal_answers(self, name: str, beside: Record | None) -> int:
        own = self.records[name]
        other = beside or self.records[self.table.baseline or name]
        tolerance = tolerance_of((own.summary, other.summary))
        shared = own.by_key.keys() & other.by_key.keys()
        return sum(agree(own.by_key[key], other.by_key[key], tolerance) for key in shared)


def certain(value: float) -> Estimate:
    """A figure that is counted, so that it is its own interval."""
    return Estimate(value, value, value)


def _scaled(one: Estimate, factor: float, plus: float = 0.0) -> Estimate:
    ends = sorted(factor * end + plus for end in (one.low, one.high))
    return Estimate(factor * one.value + plus, *ends)


def _made(of: TaskFigures, config: str, name: str) -> float | None:
    found = of.table.against.get(config)
    return 1.0 if found is None else getattr(found.made, name)


def _accuracy(of: TaskFigures, name: str) -> Estimate:
    [cell] = [one for one in of.table.cells if one.name == name]
    return _scaled(cell.interval or certain(cell.accuracy), 100)


def _change(of: TaskFigures, name: str) -> Estimate | None:
    found = of.table.against.get(name)
    return None if found is None else _scaled(found.difference, 100)


def _time(of: TaskFigures, name: str) -> Estimate | None:
    found = of.table.times.pairs.get(name)
    return None if found is None else found.ratio


def _gain(of: TaskFigures, name: str) -> float | None:
    found = Drafts.of(of.records[name])
    return None if found is None else found.gain


def _cell(of: TaskFigures, config: str, name: str, factor: float = 1.0) -> float:
    [cell] = [one for one in of.table.cells if one.name == config]
    return factor * float(getattr(cell, name))


def _decoding(of: TaskFigures, config: str, name: str) -> float | None:
    words = of.records[config].summary.fingerprint.fields.get("decoding") or ""
    values = dict(one.partition("=")[::2] for one in words.split(", "))
    return float(values[name]) if name in values else None


def _timed(of: TaskFigures, _name: str) -> int | None:
    return None if of.study is None else len(of.study.documents)


FIELDS: Mapping[str, Callable[[TaskFigures, str], Estimate | float | None]] = {
    "accuracy": _accuracy,  # % of the documents right
    "change": _change,  # points, by k = 1's
    "time": _time,  # by k = 1's, of the timing study
    "layer_calls": partial(_made, name="layer_calls"),  # by k = 1's
    "flops": partial(_made, name="flops"),  # the same
    "bytes": partial(_made, name="bytes"),  # the same
    "reused": partial(_cell, name="saved_share", factor=100),  # % of the layer calls
    "gain": _gain,  # of verified drafts, were a device bound by memory
    "tokens_per_forward": partial(_cell, name="tokens_per_forward"),
    "documents": partial(_cell, name="num_samples"),
    "timed_documents": _timed,
    "layers": lambda of, _: of.table.n_layers,
    "subset": lambda of, name: len(of.records[name].summary.strategy.layers),
    "threshold": partial(_decoding, name="threshold"),
    "block_size": partial(_decoding, name="block_size"),
    "small_block_size": partial(_decoding, name="small_block_size"),
}
"""Figures that a sentence may state, beside ``equal_answers``, whose other record is the baseline
or ``beside``."""
SUFFIXES: Mapping[str, Callable[[Estimate], Estimate]] = {
    "_low": lambda one: certain(one.low),
    "_high": lambda one: certain(one.high),
    "_lost": lambda one: _scaled(one, -1),
    "_saved": lambda one: _scaled(one, -100, 100),  # % less than k = 1
    "_added": lambda one: _scaled(one, 100, -100),  # % more
}
"""What may stand behind a field: an end of its interval, or the same told otherwise."""

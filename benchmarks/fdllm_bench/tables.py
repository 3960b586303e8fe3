"""Tables of measurements: no figure without what it is held against and its spread."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import truediv
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.benchmark import Compare, Measurement
from torch.utils.benchmark.utils.common import TaskSpec

from fdllm_bench.models import BenchModel

Sample = tuple[float, ...]
"""A number each round, at least one; of two samples those of one round belong together."""
Figure = float | int | str | Sample


def ratio(a: Sample, b: Sample) -> Sample:
    """``a`` by ``b``, round by round."""
    return tuple(map(truediv, a, b))


def times(sample: Sample, factor: float) -> Sample:
    """Every value multiplied."""
    return tuple(value * factor for value in sample)


def spread(sample: Sample) -> dict[str, object]:
    """JSON form."""
    ends = {"median": statistics.median(sample), "low": min(sample), "high": max(sample)}
    return {**ends, "values": list(sample)}


@dataclass(frozen=True)
class Line:
    """One measurement, in seconds, or in bytes where its section says so."""

    label: str
    measured: Sample
    floor: Sample  # of the same work, measured next to it; bytes by formula
    baseline: Sample | None = None  # what it is compared with beside the floor
    extra: Mapping[str, Figure] = field(default_factory=dict)  # in the unit that its name states

    @property
    def ratios(self) -> dict[str, Sample]:
        """What the times come to, by name."""
        over = {"over_floor": ratio(self.measured, self.floor)}
        if self.baseline is None:
            return over
        return over | {"speed_up": ratio(self.baseline, self.measured)}

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        samples = {"measured": self.measured, "floor": self.floor, **self.ratios}
        return {
            "label": self.label,
            "baseline": None if self.baseline is None else spread(self.baseline),
            "speed_up": None,
            **{name: spread(sample) for name, sample in samples.items()},
            "extra": {n: spread(v) if isinstance(v, tuple) else v for n, v in self.extra.items()},
        }


@dataclass(frozen=True)
class Section:
    """A table."""

    topic: str
    shape: str
    dtype: str
    title: str
    lines: Sequence[Line]
    baseline: str | None = None  # what the lines' baseline is, in words
    notes: Sequence[str] = ()
    unit: Literal["s", "B"] = "s"  # of the lines

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        lines = [line.as_dict() for line in self.lines]
        return {**vars(self), "lines": lines, "notes": list(self.notes)}

    def show(self, console: Console) -> None:
        """Print the times, and under them the ratios and further figures."""
        title = f"{self.shape}, {self.dtype}: {self.title}"
        if self.unit == "s":
            compare = Compare([m for line in self.lines for m in _measurements(title, line)])
            compare.trim_significant_figures()
            console.print(str(compare), highlight=False, markup=False)
        extras = dict.fromkeys(name for line in self.lines for name in line.extra)
        gain = [] if self.baseline is None else ["speed-up"]
        memory = ["MB", "formula MB"] if self.unit == "B" else []
        over_floor = "x formula" if memory else "x floor"
        table = Table("", *memory, over_floor, *gain, *extras, title=title if memory else None)
        for line in self.lines:
            held = [times(s, 1e-6) for s in (line.measured, line.floor)] if memory else []
            figures = [*held, *line.ratios.values(), *(line.extra.get(n, "") for n in extras)]
            table.add_row(line.label, *map(text, figures))
        console.print(table)
        over = () if self.baseline is None else (f"speed-up: over {self.baseline}",)
        first = "median [least, most] of the repeats; ratios are taken repeat by repeat"
        for note in (first, *over, *self.notes):
            console.print(f"  {note}", highlight=False, markup=False)


def section(
    bench: BenchModel,
    topic: str,
    title: str,
    lines: Sequence[Line],
    *notes: str,
    baseline: str | None = None,
) -> Section:
    """A table of a model's times."""
    return Section(topic, bench.name, bench.dtype, title, lines, baseline, notes)


def text(figure: Figure) -> str:
    """A cell: ``1.07 [1.05, 1.12]`` of a sample, three digits that matter of a number."""
    if isinstance(figure, tuple):
        low, high = text(min(figure)), text(max(figure))
        return f"{text(statistics.median(figure))} [{low}, {high}]"
    if isinstance(figure, float):
        return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"  # noqa: PLR2004
    return str(figure)


def _measurements(title: str, line: Line) -> list[Measurement]:
    columns = {"measured": line.measured, "floor": line.floor, "baseline": line.baseline}
    threads = torch.get_num_threads()
    return [
        Measurement(1, list(sample), TaskSpec("", "", "", title, line.label, name, None, threads))
        for name, sample in columns.items()
        if sample is not None
    ]

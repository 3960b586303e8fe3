"""What a bench found, as plain data: tables, no figure without what it is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fdllm.bench.timing import Spread
from fdllm.core.checkpoint import Model

SCHEMA = 1
Extra = float | int | str | Spread


def dtype_of(model: Model) -> str:
    """The name of a model's type."""
    return str(model.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Line:
    """One measurement.

    Attributes:
        label: what was measured.
        measured: seconds, or bytes where the section says so.
        floor: the floor's seconds for the same work, measured next to it; bytes by formula.
        baseline: what it is compared with beside the floor; None where there is nothing.
        extra: further figures by the column's name, in the unit that the name states.
    """

    label: str
    measured: Spread
    floor: Spread
    baseline: Spread | None = None
    extra: Mapping[str, Extra] = field(default_factory=dict)

    @property
    def over_floor(self) -> Spread:
        """Measured by floor, repeat by repeat."""
        return self.measured.over(self.floor)

    @property
    def speed_up(self) -> Spread | None:
        """Baseline by measured, repeat by repeat."""
        return None if self.baseline is None else self.baseline.over(self.measured)

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        gain = self.speed_up
        return {
            "label": self.label,
            "measured": self.measured.as_dict(),
            "floor": self.floor.as_dict(),
            "over_floor": self.over_floor.as_dict(),
            "baseline": None if self.baseline is None else self.baseline.as_dict(),
            "speed_up": None if gain is None else gain.as_dict(),
            "extra": {
                name: value.as_dict() if isinstance(value, Spread) else value
                for name, value in self.extra.items()
            },
        }


@dataclass(frozen=True)
class Curve:
    """A table as a drawing.

    Attributes:
        axis: what runs along the bottom.
        at: where it was measured.
        series: seconds there, by the curve's name.
    """

    axis: str
    at: tuple[float, ...]
    series: Mapping[str, tuple[float, ...]]

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        series = {name: list(values) for name, values in self.series.items()}
        return {"axis": self.axis, "at": list(self.at), "series_s": series}


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        topic: which part of the bench it belongs to.
        shape: the model's shape.
        dtype: its type.
        title: what the table shows.
        lines: its measurements.
        baseline: what :attr:`Line.baseline` is, in words; None where no line has one.
        notes: sentences under the table.
        curve: the table as a drawing; None where there is nothing to draw.
        unit: ``ms`` where the lines are of seconds, ``MB`` where they are of bytes.
    """

    topic: str
    shape: str
    dtype: str
    title: str
    lines: tuple[Line, ...]
    baseline: str | None = None
    notes: tuple[str, ...] = ()
    curve: Curve | None = None
    unit: Literal["ms", "MB"] = "ms"

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "topic": self.topic,
            "shape": self.shape,
            "dtype": self.dtype,
            "title": self.title,
            "baseline": self.baseline,
            "unit": {"ms": "s", "MB": "B"}[self.unit],
            "lines": [line.as_dict() for line in self.lines],
            "curve": None if self.curve is None else self.curve.as_dict(),
            "notes": list(self.notes),
        }


def document(machine: Mapping[str, str | float], sections: Sequence[Section]) -> dict[str, object]:
    """Everything as JSON.

    Args:
        machine: what it was measured on.
        sections: the tables.
    """
    return {
        "schema": SCHEMA,
        "machine": dict(machine),
        "sections": [section.as_dict() for section in sections],
    }

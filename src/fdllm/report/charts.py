"""The report's drawings: each a pure function from plain values to an inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from markupsafe import Markup

from fdllm.report.svg import CHARACTER, Drawing, decimals, ticks

_ROW = 24.0
_TOP = 8.0


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart.

    Attributes:
        name: of the row.
        parts: length and class of each piece, from the left.
        label: behind the bar.
        marks: position, shape and class of further marks on the row.
        interval: a whisker; None where there is none.
    """

    name: str
    parts: Sequence[tuple[float, str]] = ()
    label: str = ""
    marks: Sequence[tuple[float, str, str]] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class BarChart:
    """Rows of bars, marks and whiskers over one axis.

    Attributes:
        key: of the drawing.
        title: what it shows.
        bars: the rows.
        axis: what the axis counts.
        description: what can be read from it.
        start: value at the left end.
        reference: a value that gets a line through all rows.
        legend: class, shape (or "" for a box) and text of each entry.
        width: units.
        band: a shaded range around the reference.
    """

    key: str
    title: str
    bars: Sequence[Bar]
    axis: str
    description: str
    start: float = 0.0
    reference: float | None = None
    legend: Sequence[tuple[str, str, str]] = ()
    width: float = 400.0
    band: tuple[float, float] | None = None

    def render(self) -> Markup:
        """The drawing."""
        lines = _flow(self.legend, self.width)
        top = _TOP + 18 * len(lines)
        bottom = top + _ROW * len(self.bars)
        drawing = Drawing(self.key, self.width, bottom + 38, self.title, self.description)
        for number, entries in enumerate(lines):
            for x, (kind, shape, text) in entries:
                y = 10.0 + 18 * number
                if shape:
                    drawing.mark(x + 5, y, shape, kind)
                else:
                    drawing.rectangle(x, y - 5, 10, 10, kind)
                drawing.text(x + 15, y + 4, text)
        self._axis(drawing, top, bottom)
        for i, bar in enumerate(self.bars):
            self._row(drawing, bar, top + i * _ROW)
        return drawing.render()

    @cached_property
    def _left(self) -> float:
        return max((len(bar.name) for bar in self.bars), default=0) * CHARACTER + 12

    @cached_property
    def _right(self) -> float:
        return max((len(bar.label) for bar in self.bars), default=0) * CHARACTER + 10

    @cached_property
    def _high(self) -> float:
        return self._largest()

    @cached_property
    def _scale(self) -> float:
        room = self.width - self._left - max(self._right, 14)
        return room / (self._high - self.start) if self._high > self.start else 0.0

    def _at(self, value: float) -> float:
        """Where a value lies; what is beyond the axis lies at its end."""
        inside = min(max(value, self.start), self._high)
        return self._left + (inside - self.start) * self._scale

    def _axis(self, drawing: Drawing, top: float, bottom: float) -> None:
        if self.band is not None:
            low, high = (self._at(end) for end in self.band)
            drawing.rectangle(low, top, high - low, bottom - top, "band")
        marks = ticks(self.start, self._high)
        for value in marks:
            drawing.line(self._at(value), top, self._at(value), bottom, "grid")
            label = f"{value:,.{decimals(marks)}f}"
            drawing.text(self._at(value), bottom + 15, label, "label soft", "middle")
        middle = (self._at(self.start) + self._at(self._high)) / 2
        drawing.text(middle, bottom + 32, self.axis, "label soft", "middle")
        if self.reference is not None:
            x = self._at(self.reference)
            drawing.line(x, top, x, bottom, "reference")

    def _row(self, drawing: Drawing, bar: Bar, y: float) -> None:
        middle = y + _ROW / 2
        drawing.text(self._left - 8, middle + 4, bar.name, "label", "end")
        x = self.start
        for length, kind in bar.parts:
            drawing.rectangle(self._at(x), y + 5, length * self._scale, _ROW - 10, kind)
            x += length
        if bar.interval is not None:
            low, high = (self._at(end) for end in bar.interval)
            drawing.line(low, middle, high, middle, "whisker")
            for end in (low, high):
                drawing.line(end, middle - 3, end, middle + 3, "whisker")
        for value, shape, kind in bar.marks:
            drawing.mark(self._at(value), middle, shape, kind)
        if bar.label:
            drawing.text(self.width - self._right + 10, middle + 4, bar.label, "figures")

    def _largest(self) -> float:
        ends = [sum(length for length, _ in bar.parts) + self.start for bar in self.bars]
        ends += [value for bar in self.bars for value, _, _ in bar.marks]
        ends += [bar.interval[1] for bar in self.bars if bar.interval is not None]
        ends += [self.reference] if self.reference is not None else []
        high = max(ends, default=1.0)
        return high + 0.04 * (high - self.start)


def _flow(
    legend: Sequence[tuple[str, str, str]], width: float
) -> list[list[tuple[float, tuple[str, str, str]]]]:
    """Legend entries on lines that fit, each with its place."""
    lines: list[list[tuple[float, tuple[str, str, str]]]] = []
    x = width
    for entry in legend:
        need = 15 + len(entry[2]) * CHARACTER + 16
        if x + need > width:
            lines.append([])
            x = 4.0
        lines[-1].append((x, entry))
        x += need
    return lines

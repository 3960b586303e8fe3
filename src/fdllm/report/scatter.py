"""Accuracy against speed: points with intervals, a frontier, and a curve to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from fdllm.report.build import TablePage
from fdllm.report.figures import CellFigures
from fdllm.report.svg import CHARACTER, Drawing, decimals, ticks
from fdllm.runs import CONFIG_NAME

_SUBSETS = ("first", "middle", "last")
_SHAPES = {1: ("circle", "●"), 2: ("square", "■"), 3: ("triangle", "▲")}
_OTHER = ("diamond", "◆")
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 40.0
_HEIGHT = 11.0  # of a label
# Where a label may stand, the nicest place first: its anchor, and how far that is from the point.
_NEAR = (
    ("start", 8.0, 4.0), ("end", -8.0, 4.0), ("middle", 0.0, -8.0), ("middle", 0.0, 16.0),
    ("start", 6.0, -6.0), ("start", 6.0, 14.0), ("end", -6.0, -6.0), ("end", -6.0, 14.0),
)  # fmt: skip
_JOINED = tuple(  # to the point, by a line
    (anchor, right, 4.0 + up * ring * 14)
    for ring in range(1, 7)
    for up in (-1, 1)
    for anchor, right in (("start", 12.0), ("end", -12.0), ("middle", 0.0))
)
_BEFORE = {"start": 0.0, "middle": 0.5, "end": 1.0}  # share of a label that lies before its anchor

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """A cell."""

    name: str  # its label
    x: float  # speed
    y: float  # accuracy in percent
    low: float | None  # lower end of its interval; None where there is none
    high: float | None  # upper end
    shape: str  # of the mark
    kind: str  # class of the mark

    @property
    def interval(self) -> tuple[float, float]:
        """The ends of its interval, or the point itself."""
        return self.y if self.low is None else self.low, self.y if self.high is None else self.high


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both speed and accuracy, the slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best[::-1]


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` along a drawing, from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


@dataclass(frozen=True)
class Scatter:
    """The figure, at the width it is drawn for."""

    key: str  # of the drawing
    title: str  # what it shows
    points: Sequence[Point]  # the experiment's cells
    curve: Sequence[Point]  # cells of the alternative, joined by a line; empty where there is none
    axis: str  # what the horizontal axis counts
    description: str  # what can be read from it
    width: float
    height: float

    def render(self) -> Markup:
        """The drawing."""
        drawing = Drawing(self.key, self.width, self.height, self.title, self.description)
        every = [*self.curve, *self.points]
        xs, ends = [p.x for p in every], [end for p in every for end in p.interval]
        room = max(max(xs) - min(xs), 0.05 * max(xs)) * 0.12
        over = max(max(ends) - min(ends), 2.0) * 0.07
        across = Axis(max(min(xs) - room, 0.0), max(xs) + room * 1.8, _LEFT, self.width - _RIGHT)
        low, high = max(min(ends) - over, 0.0), min(max(ends) + over, 100.0 + over)
        up = Axis(low, high, self.height - _BOTTOM, _TOP)
        at = {point: (across.at(point.x), up.at(point.y)) for point in every}
        self._axes(drawing, across, up)
        for one, other in pairwise(sorted(self.curve, key=lambda p: p.x)):
            drawing.line(*at[one], *at[other], "curve")
        best = frontier([*self.points, *self.curve])
        if len(best) > 1:
            drawing.path([at[point] for point in best], "frontier")
        for point in every:
            if point.low is not None and point.high is not None:
                x = across.at(point.x)
                drawing.line(x, up.at(point.low), x, up.at(point.high), "whisker")
        for point in every:
            drawing.mark(*at[point], point.shape, point.kind)
        self._labels(drawing, at)
        return drawing.render()

    def _axes(self, drawing: Drawing, across: Axis, up: Axis) -> None:
        marks = ticks(across.low, across.high, count=6 if self.width > 500 else 4)  # noqa: PLR2004
        for value in marks:
            x, label = across.at(value), f"{value:.{decimals(marks)}f}"
            drawing.line(x, up.end, x, up.start, "grid")
            drawing.text(x, up.start + 15, label, "label soft", "middle")
        marks = ticks(up.low, up.high)
        for value in marks:
            y, label = up.at(value), f"{value:.{decimals(marks)}f}"
            drawing.line(across.start, y, across.end, y, "grid")
            drawing.text(across.start - 6, y + 4, label, "label soft", "end")
        drawing.line(across.start, up.start, across.end, up.start, "axis")
        drawing.line(across.start, up.end, across.start, up.start, "axis")
        middle = (across.start + across.end) / 2
        drawing.text(middle, up.start + 33, self.axis, "label soft", "middle")

    def _labels(self, drawing: Drawing, at: dict[Point, tuple[float, float]]) -> None:
        """Names beside their points, where they cover neither a point nor each other."""
        taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
        for point, (x, y) in at.items():
            width = len(point.name) * CHARACTER
            for place in (*_NEAR, *_JOINED):
                anchor, right, down = place
                left, base = x + right - _BEFORE[anchor] * width, y + down
                box = (left, base - _HEIGHT + 1, left + width, base + 2)
                if not self._inside(box) or any(_overlap(box, other) for other in taken):
                    continue
                taken.append(box)
                if place in _JOINED:
                    drawing.line(x, y, left + width / 2, base - _HEIGHT / 2, "leader")
                drawing.text(x + right, base, point.name, "label halo", anchor)
                break

    def _inside(self, box: Box) -> bool:
        left, top, right, bottom = box
        return (
            left > _LEFT and right < self.width - 2 and top > 0 and bottom < self.height - _BOTTOM
        )


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# --- of a table -----------------------------------------------------------------------------------


def draw_scatter(table: TablePage, width: float, height: float, suffix: str) -> Markup:
    """Accuracy against speed, at one width."""
    points, curve = _points(table)
    listed = "; ".join(f"{p.name} {p.y:.1f} % at {p.x:.1f} {table.unit}" for p in [*points, *curve])
    return Scatter(
        f"{table.key}-scatter-{suffix}",
        "Accuracy against speed, with 95 % intervals",
        points,
        curve,
        f"{table.unit} (model time)",
        f"{listed}. On the frontier: {', '.join(frontier_names(table))}.",
        width,
        height,
    ).render()


def frontier_names(table: TablePage) -> list[str]:
    """Configs, and thresholds beside them, that nothing beats in both speed and accuracy."""
    points, curve = _points(table)
    return [point.name for point in frontier([*points, *curve])]


def _points(table: TablePage) -> tuple[list[Point], list[Point]]:
    """The experiment's cells, and those of the alternative."""
    cells = [_point(cell, *_look(cell)) for cell in table.cells]
    return cells, [_point(cell, "cross", "s4") for cell in table.alternative.cells]


def _look(cell: CellFigures) -> tuple[str, str]:
    """Shape by period, colour by subset; what reuses nothing is plain."""
    if not cell.reuses:
        return "circle", "s0"
    kind = f"s{_SUBSETS.index(cell.subset) + 1}" if CONFIG_NAME.match(cell.name) else "s1"
    return _SHAPES.get(cell.k, _OTHER)[0], kind


def _point(cell: CellFigures, shape: str, kind: str) -> Point:
    ends = (None, None) if cell.interval is None else (cell.interval.low, cell.interval.high)
    low, high = (None if end is None else 100 * end for end in ends)
    return Point(cell.name, cell.speed, 100 * cell.accuracy, low, high, shape, kind)


def legend(table: TablePage) -> list[tuple[str, str, str]]:
    """Class, sign and text of the marks."""
    entries = []
    if any(not cell.reuses for cell in table.cells):
        entries.append(("s0", "●", "no reuse"))
    reusing = [cell for cell in table.cells if cell.reuses]
    if reusing and all(CONFIG_NAME.match(cell.name) for cell in reusing):
        subsets = {cell.subset for cell in reusing}
        names = enumerate(_SUBSETS, 1)
        entries += [(f"s{i}", "▬", name) for i, name in names if name in subsets]
    elif reusing:
        entries.append(("s1", "▬", "reuse"))
    periods = sorted({cell.k for cell in reusing if cell.k > 1})
    entries += [("soft", _SHAPES.get(k, _OTHER)[1], f"k = {k}") for k in periods]
    if table.alternative.cells:
        entries.append(("s4", "\N{MULTIPLICATION SIGN}", "threshold lowered instead"))
    return entries

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


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both speed and accuracy, the slowest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best[::-1]


@dataclass(frozen=True)
class Scatter:
    """The figure, at the width it is drawn for."""

    key: str  # of the drawing
    title: str  # what it shows
    points: Sequence[Point]  # the experiment's cells
    curve: Sequence[Point]  # cells of the alternative, joined by a line; empty where there is none
    axis: str  # what the horizontal axis counts
    description: str  # what can be read from it
    width: float  # units
    height: float  # units

    def render(self) -> Markup:
        """The drawing."""
        drawing = Drawing(self.key, self.width, self.height, self.title, self.description)
        self._axes(drawing)
        for one, other in pairwise(sorted(self.curve, key=lambda p: p.x)):
            drawing.line(*self._at(one), *self._at(other), "curve")
        best = frontier([*self.points, *self.curve])
        if len(best) > 1:
            drawing.path([self._at(p) for p in best], "frontier")
        every = [*self.curve, *self.points]
        for point in every:
            x = self._x(point.x)
            if point.low is not None and point.high is not None:
                drawing.line(x, self._y(point.low), x, self._y(point.high), "whisker")
        for point in every:
            drawing.mark(*self._at(point), point.shape, point.kind)
        self._labels(drawing, every)
        return drawing.render()

    def _range_x(self) -> tuple[float, float]:
        values = [p.x for p in (*self.points, *self.curve)]
        room = max(max(values) - min(values), 0.05 * max(values)) * 0.12
        return max(min(values) - room, 0.0), max(values) + room * 1.8

    def _range_y(self) -> tuple[float, float]:
        every = [*self.points, *self.curve]
        low = min(p.y if p.low is None else p.low for p in every)
        high = max(p.y if p.high is None else p.high for p in every)
        room = max(high - low, 2.0) * 0.07
        return max(low - room, 0.0), min(high + room, 100.0 + room)

    def _x(self, value: float) -> float:
        low, high = self._range_x()
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self._range_y()
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)

    def _at(self, point: Point) -> tuple[float, float]:
        return self._x(point.x), self._y(point.y)

    def _axes(self, drawing: Drawing) -> None:
        bottom, right = self.height - _BOTTOM, self.width - _RIGHT
        across = ticks(*self._range_x(), count=6 if self.width > 500 else 4)  # noqa: PLR2004
        for value in across:
            x = self._x(value)
            drawing.line(x, _TOP, x, bottom, "grid")
            drawing.text(x, bottom + 15, f"{value:.{decimals(across)}f}", "label soft", "middle")
        upward = ticks(*self._range_y())
        for value in upward:
            y = self._y(value)
            drawing.line(_LEFT, y, right, y, "grid")
            drawing.text(_LEFT - 6, y + 4, f"{value:.{decimals(upward)}f}", "label soft", "end")
        drawing.line(_LEFT, bottom, right, bottom, "axis")
        drawing.line(_LEFT, _TOP, _LEFT, bottom, "axis")
        drawing.text((_LEFT + right) / 2, bottom + 33, self.axis, "label soft", "middle")

    def _labels(self, drawing: Drawing, points: Sequence[Point]) -> None:
        """Names beside their points, where they cover neither a point nor each other."""
        taken: list[Box] = []
        for point in points:
            x, y = self._at(point)
            taken.append((x - 5, y - 5, x + 5, y + 5))
        for point in points:
            x, y = self._at(point)
            width = len(point.name) * CHARACTER
            for anchor, left, base, joined in _places(x, y, width):
                box = (left, base - _HEIGHT + 1, left + width, base + 2)
                inside = (
                    left > _LEFT
                    and box[2] < self.width - 2
                    and box[1] > 0
                    and base < self.height - _BOTTOM - 2
                )
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    if joined:
                        drawing.line(x, y, left + width / 2, base - _HEIGHT / 2, "leader")
                    middle = {"start": left, "end": left + width, "middle": left + width / 2}
                    drawing.text(middle[anchor], base, point.name, "label halo", anchor)
                    break


def _places(x: float, y: float, width: float) -> list[tuple[str, float, float, bool]]:
    """Where a label may stand, the nicest place first: anchor, left end, base line, joined."""
    places = [
        ("start", x + 8, y + 4, False),
        ("end", x - 8 - width, y + 4, False),
        ("middle", x - width / 2, y - 8, False),
        ("middle", x - width / 2, y + 16, False),
        ("start", x + 6, y - 6, False),
        ("start", x + 6, y + 14, False),
        ("end", x - 6 - width, y - 6, False),
        ("end", x - 6 - width, y + 14, False),
    ]
    for ring in range(1, 7):
        for up in (-1, 1):
            base = y + 4 + up * ring * 14
            places += [
                ("start", x + 12, base, True),
                ("end", x - 12 - width, base, True),
                ("middle", x - width / 2, base, True),
            ]
    return places


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

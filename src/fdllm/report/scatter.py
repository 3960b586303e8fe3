"""Accuracy change against time ratio: points with both intervals, the noise band, the criteria."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from fdllm.criteria import Criteria
from fdllm.report.alternative import ControlCell
from fdllm.report.build import TablePage
from fdllm.report.figures import CellFigures
from fdllm.report.stats import Estimate
from fdllm.report.svg import CHARACTER, Drawing, decimals, ratio_ticks, ticks
from fdllm.report.times import shown
from fdllm.runs import CONFIG_NAME

_SUBSETS = ("first", "middle", "last")
_SHAPES = {1: ("circle", "●"), 2: ("square", "■"), 3: ("triangle", "▲")}
_OTHER = ("diamond", "◆")
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 12.0, 10.0, 40.0
_HEIGHT = 11.0  # of a label
_LINE = 13.0  # from one label of the column to the next
_COLUMN = 0.35  # share of the width that it may take
_ANY = 1e6
_FAR = 1.5  # a threshold so many times outside the other cells' times is not drawn
# Where a label may stand, the nicest place first: its anchor, and how far that is from the point.
_NEAR = (
    ("start", 8.0, 4.0), ("end", -8.0, 4.0), ("middle", 0.0, -8.0), ("middle", 0.0, 16.0),
    ("start", 6.0, -6.0), ("start", 6.0, 14.0), ("end", -6.0, -6.0), ("end", -6.0, 14.0),
)  # fmt: skip
_BEFORE = {"start": 0.0, "middle": 0.5, "end": 1.0}  # share of a label that lies before its anchor

Box = tuple[float, float, float, float]
Place = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A cell, both figures with their intervals."""

    name: str  # its label
    x: Estimate  # time by the baseline's
    y: Estimate  # accuracy less the baseline's, in points
    shape: str  # of the mark
    kind: str  # class of the mark
    is_minor: bool = False  # named only where there is room beside it

    @classmethod
    def of(cls, cell: ControlCell) -> Point:
        """A lowered threshold."""
        change = percent_points(cell.change)
        return cls(cell.name, cell.cost, change, "cross", "s4", is_minor=True)

    @property
    def words(self) -> str:
        """Its figures, as they stand in the tables."""
        return f"{self.name}: {self.y.shown(1, '+.1f', ' points')} at {shown(self.x)} of the time"


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` along a drawing, from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    ratios: bool = False  # whether equal ratios, not equal differences, are equally long

    def at(self, value: float) -> float:
        """Where a value lies; at an end of the axis where it lies beyond."""
        scaled = math.log if self.ratios else float
        low, high = scaled(self.low), scaled(self.high)
        share = (scaled(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Aim:
    """What the criteria ask for: the corner of the picture in which a cell meets them."""

    change: float | None  # least change of accuracy, in points
    ratio: float | None  # most time, by the baseline's

    @classmethod
    def of(cls, criteria: Criteria | None, task: str) -> Aim:
        """The corner that the criteria leave on a task."""
        asked = criteria is not None and task in (criteria.tasks or (task,))
        if criteria is None or not asked or criteria.rivals:  # those stand elsewhere
            return cls(None, None)
        drop, speedup = criteria.max_accuracy_drop, criteria.min_speedup
        return cls(None if drop is None else -100 * drop, None if speedup is None else 1 / speedup)


@dataclass(frozen=True)
class _Layout:
    """Where everything stands."""

    across: Axis
    up: Axis
    at: Mapping[Point, Place]  # each point that is drawn
    crosses: Sequence[Box]  # their intervals, as lines
    labels: Mapping[Point, tuple[float, float, str]]  # names beside points, with their anchors
    unnamed: Sequence[Point]  # points that found no place for their name


@dataclass(frozen=True)
class Scatter:
    """The figure, at the width it is drawn for."""

    key: str  # of the drawing
    title: str  # what it shows
    points: Sequence[Point]  # the experiment's cells
    curve: Sequence[Point]  # cells of the alternative, joined by a line; empty where there is none
    floor: float | None  # the noise floor of the times
    aim: Aim  # the criteria's corner
    baseline: str  # the cell that stands at no change and once the time
    description: str  # what can be read from it
    width: float
    height: float

    def render(self) -> Markup:
        """The drawing."""
        laid = self._lay_out(_RIGHT)
        room = max((len(one.name) for one in laid.unnamed), default=0) * CHARACTER + 30
        if laid.unnamed and room < _COLUMN * self.width:
            laid = self._lay_out(room)
        drawing = Drawing(self.key, self.width, self.height, self.title, self.description)
        self._ground(drawing, laid.across, laid.up)
        self._axes(drawing, laid.across, laid.up)
        curve = sorted((one for one in laid.at if one in self.curve), key=lambda p: p.x.value)
        for one, other in pairwise(curve):
            drawing.line(*laid.at[one], *laid.at[other], "curve")
        for cross in laid.crosses:
            drawing.line(*cross, "whisker")
        for one, place in laid.at.items():
            with drawing.point(*place, one.words):
                drawing.mark(*place, one.shape, one.kind)
        for one, (x, base, anchor) in laid.labels.items():
            drawing.text(x, base, one.name, "label halo", anchor)
        self._column(drawing, laid)
        return drawing.render()

    @property
    def outside(self) -> list[str]:
        """Thresholds that lie too far outside to be drawn."""
        across = self._across(_RIGHT)
        return [one.name for one in self.curve if not across.low < one.x.value < across.high]

    def _lay_out(self, right: float) -> _Layout:
        """Where everything goes if so much is left free at the right."""
        across = self._across(right)
        curve = [one for one in self.curve if across.low < one.x.value < across.high]
        every = [*self.points, *curve]
        up = self._up(every)
        at = {one: (across.at(one.x.value), up.at(one.y.value)) for one in every}
        crosses = [cross for one in every for cross in _whiskers(one, across, up)]
        labels = self._near(at, crosses, across.end)
        unnamed = [one for one in at if one not in labels and not one.is_minor]
        return _Layout(across, up, at, crosses, labels, unnamed)

    def _across(self, right: float) -> Axis:
        ends = [end for one in self.points for end in (one.x.low, one.x.value, one.x.high)]
        ends += [1.0] if self.floor is None else [1 / (1 + self.floor), 1.0, 1 + self.floor]
        # The interval of too few documents is everything.
        ends = [end for end in ends if 1 / _ANY < end < _ANY]
        ends += [] if self.aim.ratio is None else [self.aim.ratio]
        low, high = min(ends) / _FAR, max(ends) * _FAR
        ends += [one.x.value for one in self.curve if low < one.x.value < high]
        room = max(max(ends) / min(ends), 1.05) ** 0.1
        return Axis(min(ends) / room, max(ends) * room, _LEFT, self.width - right, ratios=True)

    def _up(self, every: Sequence[Point]) -> Axis:
        ends = [0.0, *(end for point in every for end in (point.y.low, point.y.high))]
        ends += [] if self.aim.change is None else [self.aim.change]
        room = max(max(ends) - min(ends), 2.0) * 0.09
        return Axis(min(ends) - room, max(ends) + room, self.height - _BOTTOM, _TOP)

    def _ground(self, drawing: Drawing, across: Axis, up: Axis) -> None:
        """What the points lie on: the criteria's corner, and the band that twins may lie in."""
        if self.aim != Aim(None, None):
            least = up.low if self.aim.change is None else self.aim.change
            most = across.high if self.aim.ratio is None else self.aim.ratio
            drawing.area(across.start, up.end, across.at(most), up.at(least), "aim")
        if self.floor is not None:
            low, high = across.at(1 / (1 + self.floor)), across.at(1 + self.floor)
            drawing.area(low, up.end, high, up.start, "noise")

    def _axes(self, drawing: Drawing, across: Axis, up: Axis) -> None:
        count = 6 if self.width > 500 else 4  # noqa: PLR2004
        for axis, marks in (
            (across, ratio_ticks(across.low, across.high, count)),
            (up, ticks(up.low, up.high)),
        ):
            sign = "" if axis is across else "+"
            for value in marks:
                label = f"{value:{sign if abs(value) > 1e-9 else ''}.{decimals(marks)}f}"  # noqa: PLR2004 - not zero
                if axis is across:
                    x = across.at(value)
                    drawing.line(x, up.end, x, up.start, "grid")
                    drawing.text(x, up.start + 15, label, "label soft", "middle")
                else:
                    y = up.at(value)
                    drawing.line(across.start, y, across.end, y, "grid")
                    drawing.text(across.start - 6, y + 4, label, "label soft", "end")
        drawing.line(across.start, up.start, across.end, up.start, "axis")
        drawing.line(across.start, up.end, across.start, up.start, "axis")
        middle = (across.start + across.end) / 2
        title = f"time by {self.baseline}'s (log scale; left is faster)"
        drawing.text(middle, up.start + 33, title, "label soft", "middle")
        title = "accuracy change, points"
        drawing.upright(12, (up.start + up.end) / 2, title, "label soft")

    def _near(
        self, at: Mapping[Point, Place], crosses: Sequence[Box], right: float
    ) -> dict[Point, tuple[float, float, str]]:
        """Where names stand beside their points, covering nothing; some find no place."""
        taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in at.values()]
        taken += [
            (min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)
            for x1, y1, x2, y2 in crosses
        ]
        labels: dict[Point, tuple[float, float, str]] = {}
        for point, (x, y) in sorted(at.items(), key=lambda one: one[0].is_minor):
            width = len(point.name) * CHARACTER
            for anchor, aside, down in _NEAR:
                left, base = x + aside - _BEFORE[anchor] * width, y + down
                box = (left, base - _HEIGHT + 1, left + width, base + 2)
                inside = left > _LEFT and left + width < right + _RIGHT - 2
                inside = inside and box[1] > 0 and box[3] < self.height - _BOTTOM
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    labels[point] = (x + aside, base, anchor)
                    break
        return labels

    def _column(self, drawing: Drawing, laid: _Layout) -> None:
        """The other names one below the other, in the order of their points and joined to them.

        Where it has no room, names stand in the tables alone.
        """
        at, left = laid.at, laid.across.end + 18
        fit = [p for p in laid.unnamed if left + len(p.name) * CHARACTER < self.width]
        fit = sorted(fit, key=lambda p: (at[p][1], -at[p][0]))[
            : int((self.height - _BOTTOM - _TOP) / _LINE)
        ]
        middle = sum(at[point][1] for point in fit) / max(len(fit), 1)
        half = len(fit) * _LINE / 2
        top = min(max(middle - half, _TOP), self.height - _BOTTOM - 2 * half) + _HEIGHT
        for number, point in enumerate(fit):
            base = top + number * _LINE
            drawing.line(*at[point], left - 3, base - 4, "leader")
            drawing.text(left, base, point.name, "label halo")


def _whiskers(point: Point, across: Axis, up: Axis) -> tuple[Box, Box]:
    """The two intervals as lines."""
    x, y = across.at(point.x.value), up.at(point.y.value)
    tall = (x, up.at(point.y.low), x, up.at(point.y.high))
    return tall, (across.at(point.x.low), y, across.at(point.x.high), y)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# --- of a table -----------------------------------------------------------------------------------


def make_scatter(
    table: TablePage, criteria: Criteria | None, width: float, height: float, suffix: str
) -> Scatter | None:
    """Accuracy change against time ratio, at one width; None where no time was measured."""
    points = timed_points(table)
    if len(points) < 2:  # noqa: PLR2004 - the baseline alone says nothing
        return None
    curve = [Point.of(one) for one in table.alternative.cells]
    floor = table.times.floor
    noise = "" if floor is None else f" Noise floor {100 * floor:.1f} %."
    return Scatter(
        f"{table.key}-scatter-{suffix}",
        "Accuracy change against time, with 95 % intervals",
        points,
        curve,
        floor,
        Aim.of(criteria, table.task),
        str(table.baseline),
        f"{'; '.join(point.words for point in [*points, *curve])}.{noise}",
        width,
        height,
    )


def percent_points(share: Estimate) -> Estimate:
    """A change of shares, in points."""
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high)


def timed_points(table: TablePage) -> list[Point]:
    """The cells that were timed, the baseline among them."""
    points = []
    for cell in table.cells:
        pair, against = table.times.pairs.get(cell.name), table.against.get(cell.name)
        shape, kind = _look(cell)
        if cell.name == table.baseline:
            points.append(Point(cell.name, Estimate(1, 1, 1), Estimate(0, 0, 0), shape, kind))
        elif pair is not None and against is not None:
            change = percent_points(against.difference)
            points.append(Point(cell.name, pair.ratio, change, shape, kind, pair.twins))
    return points


def _look(cell: CellFigures) -> tuple[str, str]:
    """Shape by period, colour by subset; what reuses nothing is plain."""
    if not cell.reuses:
        return "circle", "s0"
    kind = f"s{_SUBSETS.index(cell.subset) + 1}" if CONFIG_NAME.match(cell.name) else "s1"
    return _SHAPES.get(cell.k, _OTHER)[0], kind


def legend(table: TablePage, outside: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """Class, sign and text of the marks; thresholds ``outside`` are named."""
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
        left_out = f" ({', '.join(outside)}: outside)" if outside else ""
        text = f"threshold lowered instead{left_out}"
        entries.append(("s4", "\N{MULTIPLICATION SIGN}", text))
    return entries

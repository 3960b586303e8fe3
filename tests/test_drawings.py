"""The report's drawings, measured: whatever is drawn lies where its axis says it does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from fdllm.report.charts import Bar, BarChart, HeatMap
from fdllm.report.scatter import Point, Scatter
from fdllm.report.svg import Drawing, decimals, escaped, number, ticks

CLOSE = 0.02  # units; coordinates are rounded to hundredths


class Parsed:
    """A drawing's elements by tag and class."""

    def __init__(self, svg: str) -> None:
        self.root = ET.fromstring(svg)  # noqa: S314 - our own text
        _, _, width, height = map(float, self.root.attrib["viewBox"].split())
        self.width, self.height = width, height

    def all(self, tag: str, kind: str) -> list[dict[str, float]]:
        return [
            {k: float(v) for k, v in one.attrib.items() if k not in ("class", "text-anchor")}
            for one in self.root.iter(tag)
            if one.attrib["class"] == kind
        ]

    def texts(self, kind: str) -> list[tuple[str, float, float]]:
        return [
            (one.text or "", float(one.attrib["x"]), float(one.attrib["y"]))
            for one in self.root.iter("text")
            if one.attrib["class"] == kind
        ]

    @property
    def description(self) -> str:
        found = self.root.find("desc")
        assert found is not None
        return str(found.text)

    def across(self, value: float) -> float:
        """Where the horizontal axis, read from its labelled grid lines, puts a value."""
        lines = sorted(
            {line["x1"] for line in self.all("line", "grid") if line["x1"] == line["x2"]}
        )
        return self._along(lines, value, upward=False)

    def up(self, value: float) -> float:
        """The same of the vertical axis."""
        lines = {line["y1"] for line in self.all("line", "grid") if line["y1"] == line["y2"]}
        return self._along(sorted(lines, reverse=True), value, upward=True)

    def _along(self, lines: Sequence[float], value: float, *, upward: bool) -> float:
        named = {}
        for text, x, y in self.texts("label soft"):
            for line in lines:
                if abs((y - 4 if upward else x) - line) < CLOSE and is_number(text):
                    named[line] = float(text.replace(",", ""))
        assert list(named) == list(lines), "each grid line has its figure"
        (x1, v1), *_, (x2, v2) = named.items()
        return x1 + (value - v1) * (x2 - x1) / (v2 - v1)


def is_number(text: str) -> bool:
    return text.replace(".", "").replace(",", "").isdigit()


def near(value: float) -> object:
    return pytest.approx(value, abs=0.15)


# --- axes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "count", "found"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0, 100, 4, [0, 25, 50, 75, 100]),
        (0.9, 1.4, 5, [0.9, 1.0, 1.1, 1.2, 1.3, 1.4]),
        (37.2, 53.9, 5, [40, 45, 50]),
        (0, 1, 1, [0, 1]),
        (3, 3, 5, [3]),
        (4, 3, 5, [4]),
    ],
)
def test_ticks_are_round_and_inside(
    low: float, high: float, count: int, found: list[float]
) -> None:
    assert ticks(low, high, count) == pytest.approx(found)


@pytest.mark.parametrize(
    ("values", "places"),
    [([0, 2, 4], 0), ([0.5, 1.0], 1), ([0, 0.25], 2), ([0, 0.125], 3), ([0, 1e-5], 4), ([7], 0)],
)
def test_figures_of_an_axis_are_told_apart(values: list[float], places: int) -> None:
    assert decimals(values) == places


def test_coordinates_are_short() -> None:
    assert [number(x) for x in (1.0, 1.5, 1.25, 1.001, 100.0, 0.0)] == [
        "1", "1.5", "1.25", "1", "100", "0",
    ]  # fmt: skip


def test_texts_are_escaped() -> None:
    drawing = Drawing("k", 10, 20, "a <b>", 'c & "d"')
    drawing.text(1, 2, "<i>")
    svg = drawing.render()
    assert "<b>" not in svg
    assert "<i>" not in svg
    assert Parsed(svg).description == 'c & "d"'
    assert escaped("<&>") == "&lt;&amp;&gt;"


@pytest.mark.parametrize(("shape", "corners"), [("square", 4), ("triangle", 3), ("diamond", 4)])
def test_marks_lie_around_their_point(shape: str, corners: int) -> None:
    drawing = Drawing("k", 100, 100, "t", "d")
    drawing.mark(50, 40, shape, "s1")
    (polygon,) = Parsed(drawing.render()).root.iter("polygon")
    points = [tuple(map(float, p.split(","))) for p in polygon.attrib["points"].split()]
    assert len(points) == corners
    assert sum(x for x, _ in points) / corners == near(50)
    assert sum(y for _, y in points) / corners == near(40)
    reach = {((x - 50) ** 2 + (y - 40) ** 2) ** 0.5 for x, y in points}
    assert max(reach) == near(min(reach))
    top = min(y for _, y in points)
    assert sum(abs(y - top) < CLOSE for _, y in points) == (2 if shape == "square" else 1)


# --- heat map -------------------------------------------------------------------------------------


def heat(**changes: object) -> Parsed:
    values: dict[str, object] = {
        "key": "k",
        "title": "t",
        "rows": ["k = 1", "k = 2"],
        "columns": ["first", "last"],
        "values": [[1.0, 3.0], [None, 5.0]],
        "unit": "Percent",
    }
    return Parsed(HeatMap(**(values | changes)).render())  # type: ignore[arg-type]


def test_a_heat_map_says_its_figures() -> None:
    assert heat().description == "Percent. k = 1: first 1.0, last 3.0; k = 2: first none, last 5.0."
    assert heat(digits=0).description.startswith("Percent. k = 1: first 1, last 3;")
    bare = heat(columns=[""], rows=["a"], values=[[2.0]])
    assert bare.description == "Percent. a: 2.0."


@pytest.mark.parametrize(
    ("changes", "strength"),
    [
        ({}, {"1.0": 0.0, "3.0": 0.5, "5.0": 1.0}),
        ({"low": 0.0}, {"1.0": 0.2, "3.0": 0.6, "5.0": 1.0}),
        ({"low": 2.0, "high": 4.0}, {"1.0": 0.0, "3.0": 0.5, "5.0": 1.0}),
        ({"least_span": 8.0}, {"1.0": 0.0, "3.0": 0.25, "5.0": 0.5}),
        ({"least_span": 1.0}, {"1.0": 0.0, "3.0": 0.5, "5.0": 1.0}),
    ],
)
def test_the_larger_a_figure_the_stronger_its_colour(
    changes: dict[str, object], strength: dict[str, float]
) -> None:
    drawn = heat(**changes)
    boxes = drawn.all("rect", "heat")
    figures = drawn.texts("figures")
    assert [text for text, _, _ in figures] == list(strength)
    for box, (text, x, y), share in zip(boxes, figures, strength.values(), strict=True):
        assert box["x"] + box["width"] / 2 == near(x), text
        assert box["y"] < y < box["y"] + box["height"]
        assert box["fill-opacity"] == pytest.approx(0.04 + 0.58 * share, abs=0.006)


def test_equal_figures_have_no_colour() -> None:
    boxes = heat(values=[[2.0, 2.0], [2.0, 2.0]]).all("rect", "heat")
    assert [box["fill-opacity"] for box in boxes] == [0.04] * 4


def test_cells_stand_under_their_column_and_beside_their_row() -> None:
    drawn = heat(span="subsets")
    names = {text: (x, y) for text, x, y in drawn.texts("label")}
    figures = {text: (x, y) for text, x, y in drawn.texts("figures")}
    assert figures["1.0"][0] == near(names["first"][0])
    assert figures["3.0"][0] == near(names["last"][0])
    assert figures["5.0"][0] == near(names["last"][0])
    assert figures["3.0"][1] == near(names["k = 1"][1])
    assert figures["5.0"][1] == near(names["k = 2"][1])
    ((blank, x, y), (span, middle, high)) = sorted(drawn.texts("label soft"))
    assert (blank, span) == ("-", "subsets")
    assert x == near(names["first"][0])
    assert y == near(names["k = 2"][1])
    assert middle == near((names["first"][0] + names["last"][0]) / 2)
    assert high < names["first"][1] < figures["1.0"][1]
    (box,) = drawn.all("rect", "none")
    assert box["x"] + box["width"] / 2 == near(x)
    every = [*drawn.all("rect", "heat"), box]
    assert max(b["x"] + b["width"] for b in every) <= drawn.width
    assert max(b["y"] + b["height"] for b in every) <= drawn.height
    apart = sorted((b["y"], b["x"]) for b in every)
    assert apart[1][1] - apart[0][1] == near(74)
    assert apart[2][0] - apart[0][0] == near(34)
    many = heat(rows=list("abcde"), values=[[1.0, 2.0]] * 5).all("rect", "heat")
    assert many[2]["y"] - many[0]["y"] == near(24)


# --- bars -----------------------------------------------------------------------------------------

BARS = [
    Bar("k2", [(3.0, "denoise"), (1.5, "commit")], "4.5"),
    Bar(
        "k3_last",
        [(2.0, "denoise"), (6.0, "commit")],
        "8.0",
        [(5.0, "circle", "mean")],
        (4.0, 7.0),
    ),
]


def bars(**changes: object) -> Parsed:
    values: dict[str, object] = {
        "key": "k",
        "title": "t",
        "bars": BARS,
        "axis": "calls",
        "description": "d",
        "legend": [("denoise", "", "denoise"), ("mean", "circle", "mean")],
    }
    return Parsed(BarChart(**(values | changes)).render())  # type: ignore[arg-type]


def test_pieces_of_a_bar_follow_each_other_at_the_axis_scale() -> None:
    drawn = bars()
    first, second = drawn.all("rect", "denoise")[1:], drawn.all("rect", "commit")
    for row, (one, other) in enumerate(zip(first, second, strict=True)):
        lengths = [length for length, _ in BARS[row].parts]
        assert one["x"] == near(drawn.across(0))
        assert one["x"] + one["width"] == near(drawn.across(lengths[0]))
        assert other["x"] == near(drawn.across(lengths[0]))
        assert other["x"] + other["width"] == near(drawn.across(sum(lengths)))
        assert one["y"] == other["y"]
    assert first[1]["y"] - first[0]["y"] == near(24)
    labels = drawn.texts("figures")
    assert [text for text, _, _ in labels] == ["4.5", "8.0"]
    assert all(x > drawn.across(8.0) for _, x, _ in labels)
    names = [one for one in drawn.texts("label") if one[0].startswith("k")]
    for (_, x, y), box, (_, _, label) in zip(names, first, labels, strict=True):
        assert x < box["x"]
        assert box["y"] < y < box["y"] + box["height"]
        assert y == label


def test_marks_and_whiskers_lie_on_the_axis() -> None:
    drawn = bars()
    mark = drawn.all("circle", "mean")[1]  # the first is the legend's
    assert mark["cx"] == near(drawn.across(5.0))
    rule, *caps = drawn.all("line", "whisker")
    assert (rule["x1"], rule["x2"]) == (near(drawn.across(4.0)), near(drawn.across(7.0)))
    assert rule["y1"] == rule["y2"] == mark["cy"]
    assert [cap["x1"] for cap in caps] == [rule["x1"], rule["x2"]]
    assert all(cap["x1"] == cap["x2"] and cap["y1"] < mark["cy"] < cap["y2"] for cap in caps)


def test_an_axis_may_start_elsewhere_and_what_is_outside_lies_at_its_end() -> None:
    marked = [Bar("a", (), "", [(1.5, "circle", "s"), (0.2, "square", "s")], (0.1, 2.0))]
    drawn = bars(bars=marked, start=0.8, reference=1.0, band=(0.95, 1.05), legend=())
    (circle,) = drawn.all("circle", "s")
    assert circle["cx"] == near(drawn.across(1.5))
    rule = drawn.all("line", "whisker")[0]
    assert (rule["x1"], rule["x2"]) == (near(drawn.across(0.8)), near(drawn.across(2.0)))
    (reference,) = drawn.all("line", "reference")
    assert reference["x1"] == reference["x2"] == near(drawn.across(1.0))
    (band,) = drawn.all("rect", "band")
    assert band["x"] == near(drawn.across(0.95))
    assert band["x"] + band["width"] == near(drawn.across(1.05))
    assert drawn.across(2.0) < drawn.width
    assert not bars().all("rect", "band")
    assert not bars().all("line", "reference")


def test_the_reference_is_always_in_sight() -> None:
    drawn = bars(bars=[Bar("a", (), "", [(0.5, "circle", "s")])], reference=1.0)
    (reference,) = drawn.all("line", "reference")
    assert reference["x1"] == near(drawn.across(1.0))


def test_a_long_legend_takes_several_lines() -> None:
    entries = [(f"c{i}", "", f"entry number {i}") for i in range(7)]
    drawn, short = bars(legend=entries), bars()
    boxes = [drawn.all("rect", kind)[0] for kind, _, _ in entries]
    texts = {text: (x, y) for text, x, y in drawn.texts("label")}
    rows = sorted({box["y"] for box in boxes})
    assert len(rows) > 1
    assert {b - a for a, b in pairwise(rows)} == {18.0}
    assert drawn.height - short.height == near(18 * (len(rows) - 1))
    for box, (_, _, text) in zip(boxes, entries, strict=True):
        x, y = texts[text]
        assert box["x"] + box["width"] < x < box["x"] + 30
        assert box["y"] < y < box["y"] + 15
        assert x + 7.1 * len(text) < drawn.width + 1
    for y in rows:
        line = sorted(box["x"] for box in boxes if box["y"] == y)
        assert all(b - a > 7.1 * 14 for a, b in pairwise(line))


# --- scatter --------------------------------------------------------------------------------------

POINTS = [
    Point("k1_first", 40.0, 80.0, 76.0, 84.0, "circle", "s0"),
    Point("k2_last", 48.0, 70.0, 65.0, 75.0, "square", "s3"),
    Point("k3_last", 44.0, 60.0, None, None, "triangle", "s3"),
]
CURVE = [
    Point("t0.5", 52.0, 62.0, None, None, "cross", "s4"),
    Point("t1", 38.0, 81.0, None, None, "cross", "s4"),
    Point("t0.7", 45.0, 74.0, None, None, "cross", "s4"),
]


def scatter(width: float = 860, height: float = 400, **changes: object) -> Parsed:
    values: dict[str, object] = {
        "key": "k", "title": "t", "points": POINTS, "curve": CURVE, "axis": "tokens/s",
        "description": "d",
    }  # fmt: skip
    made = Scatter(width=width, height=height, **(values | changes))  # type: ignore[arg-type]
    return Parsed(made.render())


@pytest.mark.parametrize(("width", "height"), [(860, 400), (360, 320)])
def test_points_and_intervals_lie_where_the_axes_say(width: float, height: float) -> None:
    drawn = scatter(width, height)
    (circle,) = drawn.all("circle", "s0")
    assert circle["cx"] == near(drawn.across(40.0))
    assert circle["cy"] == near(drawn.up(80.0))
    whiskers = drawn.all("line", "whisker")
    known = [point for point in POINTS if point.low is not None]
    for line, point in zip(whiskers, known, strict=True):
        assert line["x1"] == line["x2"] == near(drawn.across(point.x))
        ends = {line["y1"], line["y2"]}
        assert point.high is not None
        assert point.low is not None
        assert max(ends) == near(drawn.up(point.low))
        assert min(ends) == near(drawn.up(point.high))


def test_the_curve_joins_its_cells_by_speed() -> None:
    drawn = scatter()
    lines = drawn.all("line", "curve")
    order = sorted(CURVE, key=lambda point: point.x)
    for line, one, other in zip(lines, order, order[1:], strict=False):
        assert (line["x1"], line["y1"]) == (near(drawn.across(one.x)), near(drawn.up(one.y)))
        assert (line["x2"], line["y2"]) == (near(drawn.across(other.x)), near(drawn.up(other.y)))
    assert len(lines) == 2
    crosses = drawn.all("line", "s4 stroke")
    assert len(crosses) == 6
    assert not scatter(curve=[]).all("line", "curve")


def test_the_frontier_runs_through_what_nothing_beats() -> None:
    drawn = scatter()
    (path,) = (p for p in drawn.root.iter("path") if p.attrib["class"] == "frontier")
    steps = path.attrib["d"].removeprefix("M ").split(" L ")
    at = [tuple(map(float, step.split())) for step in steps]
    best = [(38.0, 81.0), (40.0, 80.0), (45.0, 74.0), (48.0, 70.0), (52.0, 62.0)]
    assert at == [(near(drawn.across(x)), near(drawn.up(y))) for x, y in best]
    alone = scatter(points=POINTS[:1], curve=[])
    assert not list(alone.root.iter("path"))


def test_labels_stand_inside_beside_their_points_and_cover_none() -> None:
    drawn = scatter()
    labels = drawn.texts("label halo")
    assert sorted(text for text, _, _ in labels) == sorted(p.name for p in [*POINTS, *CURVE])
    anchors = [
        one.attrib["text-anchor"]
        for one in drawn.root.iter("text")
        if one.attrib["class"] == "label halo"
    ]
    boxes = []
    for (text, x, y), anchor in zip(labels, anchors, strict=True):
        width = 7.1 * len(text)
        left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
        boxes.append((left, y - 10, left + width, y + 2))
    for i, one in enumerate(boxes):
        assert 46 < one[0] < one[2] < drawn.width
        assert 0 < one[1] < one[3] < drawn.height - 40
        for other in boxes[i + 1 :]:
            assert (
                one[2] <= other[0]
                or other[2] <= one[0]
                or one[3] <= other[1]
                or (other[3] <= one[1])
            )
        for point in [*POINTS, *CURVE]:
            x, y = drawn.across(point.x), drawn.up(point.y)
            assert not (one[0] < x < one[2] and one[1] < y < one[3])


def test_crowded_labels_are_joined_to_their_points() -> None:
    crowd = [
        Point(f"config_{i}", 40.0 + i / 100, 80.0, None, None, "circle", "s") for i in range(8)
    ]
    drawn = scatter(360, 320, points=crowd, curve=[])
    texts = {text: (x, y) for text, x, y in drawn.texts("label halo")}
    leaders = drawn.all("line", "leader")
    assert leaders
    for line in leaders:
        assert any(
            abs(line["x1"] - drawn.across(point.x)) < 1 and abs(line["y1"] - drawn.up(80.0)) < 1
            for point in crowd
        )
        assert any(abs(line["y2"] - (y - 5.5)) < 1 for _, y in texts.values())


def test_equal_points_still_have_an_axis() -> None:
    same = [
        Point("a", 40.0, 0.0, 0.0, 0.0, "circle", "s"),
        Point("b", 40.0, 0.0, None, None, "circle", "s"),
    ]
    drawn = scatter(points=same, curve=[])
    circle = drawn.all("circle", "s")[0]
    assert 46 < circle["cx"] < drawn.width - 12
    assert circle["cy"] <= drawn.height - 40

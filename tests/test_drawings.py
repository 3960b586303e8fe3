"""The report's drawings, measured: whatever is drawn lies where its axis says it does."""

from __future__ import annotations

from itertools import pairwise

import pytest

from drawn import CLOSE, Drawn, near
from fdllm.report.charts import Bar, BarChart
from fdllm.report.svg import Drawing, decimals, escaped, number, ticks

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
    assert Drawn(svg).description == 'c & "d"'
    assert escaped("<&>") == "&lt;&amp;&gt;"


@pytest.mark.parametrize(("shape", "corners"), [("square", 4), ("triangle", 3), ("diamond", 4)])
def test_marks_lie_around_their_point(shape: str, corners: int) -> None:
    drawing = Drawing("k", 100, 100, "t", "d")
    drawing.mark(50, 40, shape, "s1")
    (polygon,) = Drawn(drawing.render()).root.iter("polygon")
    points = [tuple(map(float, p.split(","))) for p in polygon.attrib["points"].split()]
    assert len(points) == corners
    assert sum(x for x, _ in points) / corners == near(50)
    assert sum(y for _, y in points) / corners == near(40)
    reach = {((x - 50) ** 2 + (y - 40) ** 2) ** 0.5 for x, y in points}
    assert max(reach) == near(min(reach))
    top = min(y for _, y in points)
    assert sum(abs(y - top) < CLOSE for _, y in points) == (2 if shape == "square" else 1)


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


def bars(**changes: object) -> Drawn:
    values: dict[str, object] = {
        "key": "k",
        "title": "t",
        "bars": BARS,
        "axis": "calls",
        "description": "d",
        "legend": [("denoise", "", "denoise"), ("mean", "circle", "mean")],
    }
    return Drawn(BarChart(**(values | changes)).render())  # type: ignore[arg-type]


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

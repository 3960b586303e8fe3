"""Accuracy against speed, measured: points, intervals, curve, frontier and labels."""

from __future__ import annotations

import pytest

from drawn import Drawn, near
from fdllm.report.scatter import Point, Scatter

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


def scatter(width: float = 860, height: float = 400, **changes: object) -> Drawn:
    values: dict[str, object] = {
        "key": "k", "title": "t", "points": POINTS, "curve": CURVE, "axis": "tokens/s",
        "description": "d",
    }  # fmt: skip
    made = Scatter(width=width, height=height, **(values | changes))  # type: ignore[arg-type]
    return Drawn(made.render())


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

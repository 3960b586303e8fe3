"""Accuracy change against time, measured: points, intervals, band, corner, curve and labels."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from drawn import Drawn, near
from fdllm.criteria import Criteria
from fdllm.report.scatter import Aim, Point, Scatter
from fdllm.report.stats import Estimate


def point(
    name: str, time: float, change: float, shape: str = "square", kind: str = "s3", half: float = 2
) -> Point:
    x, y = Estimate(time, 0.97 * time, 1.03 * time), Estimate(change, change - half, change + half)
    return Point(name, x, y, shape, kind)


POINTS = [
    point("k1_first", 1.0, 0.0, "circle", "s0"),
    point("k2_last", 0.8, -10.0),
    point("k3_last", 0.9, -20.0, "triangle"),
]
CURVE = [
    point("t0.5", 0.7, -18.0, "cross", "s4"),
    point("t1", 1.1, 1.0, "cross", "s4"),
    point("t0.7", 0.85, -6.0, "cross", "s4"),
]


def scatter(width: float = 860, height: float = 400, **changes: object) -> Drawn:
    values: dict[str, object] = {
        "key": "k", "title": "t", "points": POINTS, "curve": CURVE, "floor": 0.04,
        "aim": Aim(-2.0, 0.87), "baseline": "k1_first", "description": "d",
    }  # fmt: skip
    made = Scatter(width=width, height=height, **(values | changes))  # type: ignore[arg-type]
    return Drawn(made.render())


@pytest.mark.parametrize(("width", "height"), [(860, 400), (360, 320)])
def test_points_and_intervals_lie_where_the_axes_say(width: float, height: float) -> None:
    drawn = scatter(width, height)
    (circle,) = drawn.all("circle", "s0")
    assert circle["cx"] == near(drawn.across(1.0))
    assert circle["cy"] == near(drawn.up(0.0))
    whiskers = drawn.all("line", "whisker")
    every = [*POINTS, *CURVE]
    assert len(whiskers) == 2 * len(every)
    for up, across, one in zip(whiskers[::2], whiskers[1::2], every, strict=True):
        assert up["x1"] == up["x2"] == near(drawn.across(one.x.value))
        assert (up["y1"], up["y2"]) == (near(drawn.up(one.y.low)), near(drawn.up(one.y.high)))
        assert across["y1"] == across["y2"] == near(drawn.up(one.y.value))
        ends = (across["x1"], across["x2"])
        assert ends == (near(drawn.across(one.x.low)), near(drawn.across(one.x.high)))


def test_equal_ratios_are_equally_long_whatever_they_span() -> None:
    wide = scatter(points=[*POINTS, point("slow", 6.0, 0.5)])
    assert wide.across(4.0) - wide.across(2.0) == near(wide.across(2.0) - wide.across(1.0))


def test_the_curve_joins_its_cells_by_time() -> None:
    drawn = scatter()
    lines = drawn.all("line", "curve")
    order = sorted(CURVE, key=lambda one: one.x.value)
    for line, one, other in zip(lines, order, order[1:], strict=False):
        ends = [(drawn.across(p.x.value), drawn.up(p.y.value)) for p in (one, other)]
        assert (line["x1"], line["y1"]) == (near(ends[0][0]), near(ends[0][1]))
        assert (line["x2"], line["y2"]) == (near(ends[1][0]), near(ends[1][1]))
    assert len(lines) == 2
    crosses = drawn.all("line", "s4 stroke")
    assert len(crosses) == 6
    assert not scatter(curve=[]).all("line", "curve")


def test_the_noise_band_and_the_criteria_lie_where_they_must() -> None:
    drawn = scatter()
    (band,) = drawn.all("rect", "noise")
    assert band["x"] == near(drawn.across(1 / 1.04))
    assert band["x"] + band["width"] == near(drawn.across(1.04))
    (corner,) = drawn.all("rect", "aim")
    assert corner["x"] + corner["width"] == near(drawn.across(0.87))
    assert corner["y"] + corner["height"] == near(drawn.up(-2.0))
    (whole,) = scatter(aim=Aim(-2.0, None)).all("rect", "aim")
    assert whole["x"] + whole["width"] == near(drawn.width - 12)
    bare = scatter(aim=Aim(None, None), floor=None)
    assert not bare.all("rect", "aim")
    assert not bare.all("rect", "noise")


def test_the_corner_is_what_the_criteria_ask_of_the_task() -> None:
    criteria = Criteria(max_accuracy_drop=0.02, min_speedup=1.25, tasks=("gsm8k",))
    assert Aim.of(criteria, "gsm8k") == Aim(-2.0, 0.8)
    assert Aim.of(criteria, "mmlu") == Aim.of(None, "gsm8k") == Aim(None, None)
    assert Aim.of(Criteria(min_speedup=2.0), "mmlu") == Aim(None, 0.5)
    assert Aim.of(Criteria(min_speedup=2.0, rival="k2_first"), "mmlu") == Aim(None, None)


def test_both_axes_have_titles() -> None:
    said = [text for text, _, _ in scatter().texts("label soft")]
    assert "accuracy change, points" in said
    assert "time by k1_first's (log scale; left is faster)" in said


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
        assert 58 < one[0] < one[2] < drawn.width
        assert 0 < one[1] < one[3] < drawn.height - 40
        for other in boxes[i + 1 :]:
            assert (
                one[2] <= other[0]
                or other[2] <= one[0]
                or one[3] <= other[1]
                or (other[3] <= one[1])
            )
        for mark in [*POINTS, *CURVE]:
            x, y = drawn.across(mark.x.value), drawn.up(mark.y.value)
            assert not (one[0] < x < one[2] and one[1] < y < one[3])


def test_crowded_labels_are_joined_to_their_points() -> None:
    crowd = [point(f"config_{i}", 0.9 + i / 1000, -5.0, "circle", "s") for i in range(8)]
    drawn = scatter(360, 320, points=crowd, curve=[])
    texts = {text: (x, y) for text, x, y in drawn.texts("label halo")}
    assert len(texts) == 8
    leaders = drawn.all("line", "leader")
    assert leaders
    for line in leaders:
        assert any(
            abs(line["x1"] - drawn.across(one.x.value)) < 1 and abs(line["y1"] - drawn.up(-5.0)) < 1
            for one in crowd
        )
        assert any(abs(line["y2"] - (y - 4)) < 1 for _, y in texts.values())
    heights = sorted(y for x, y in texts.values() if x > drawn.across(0.95))
    assert all(b - a >= 12 for a, b in pairwise(heights))


def test_minor_points_are_named_only_where_there_is_room() -> None:
    crowd = [point(f"config_{i}", 0.9 + i / 1000, -5.0, "circle", "s") for i in range(8)]
    drawn = scatter(360, 320, points=[replace(one, is_minor=True) for one in crowd], curve=[])
    assert 0 < len(drawn.texts("label halo")) < 8
    assert not drawn.all("line", "leader")


def test_a_threshold_far_outside_does_not_squeeze_the_rest() -> None:
    far = point("t1.00", 4.0, 0.4, "cross", "s4")
    assert scatter(curve=[*CURVE, far]).across(1.0) == near(scatter().across(1.0))
    assert "t1.00" not in [text for text, _, _ in scatter(curve=[*CURVE, far]).texts("label halo")]


def test_equal_points_still_have_an_axis() -> None:
    same = [point(name, 1.0, 0.0, "circle", "s", half=0) for name in "ab"]
    drawn = scatter(points=same, curve=[], aim=Aim(None, None), floor=None)
    circle = drawn.all("circle", "s")[0]
    assert 58 < circle["cx"] < drawn.width - 12
    assert circle["cy"] <= drawn.height - 40

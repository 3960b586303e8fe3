"""The report's drawings, measured: whatever is drawn lies where its axis says it does."""

from __future__ import annotations

import pytest

from drawn import CLOSE, Drawn, near
from fdllm.report.svg import Drawing, decimals, number, ticks

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

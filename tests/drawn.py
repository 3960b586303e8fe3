"""A drawing of the report read back: its elements, and where its axes put a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import pytest

CLOSE = 0.02  # units; coordinates are rounded to hundredths


class Drawn:
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
        scaled = float if upward else math.log  # the horizontal axis is one of ratios
        (x1, v1), *_, (x2, v2) = named.items()
        share = (scaled(value) - scaled(v1)) / (scaled(v2) - scaled(v1))
        return x1 + share * (x2 - x1)


def is_number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "").replace(",", "").isdigit()


def near(value: float) -> object:
    return pytest.approx(value, abs=0.15)

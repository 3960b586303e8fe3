"""A bench as one HTML page: its tables, and its curves as drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from fdllm.bench.cells import body, header, notes
from fdllm.bench.results import Curve, Section
from fdllm.report.svg import Drawing

_TEMPLATE = Path(__file__).parent / "templates" / "page.html"
_WIDTH, _HEIGHT = 640.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 90.0, 20.0, 40.0
_APART = 14.0  # units between two names at the curves' ends


def render_page(machine: Mapping[str, str | float], sections: Sequence[Section]) -> str:
    """The page, whole.

    Args:
        machine: what it was measured on.
        sections: the tables.
    """
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        machine=escape("; ".join(f"{name} {value}" for name, value in machine.items())),
        sections="\n".join(_section(section, i) for i, section in enumerate(sections)),
    )


def _section(section: Section, number: int) -> str:
    title = escape(f"{section.shape}, {section.dtype}: {section.title}")
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header(section))
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in body(section)
    )
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes(section))
    drawing = "" if section.curve is None else draw(section.curve, f"curve-{number}", title)
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div>{told}{drawing}</section>"
    )


def draw(curve: Curve, key: str, title: str) -> str:
    """The curves over logarithmic axes: growth of one kind is a straight line there.

    Args:
        curve: what to draw.
        key: the drawing's id on the page.
        title: what it shows.
    """
    every = [1e3 * value for values in curve.series.values() for value in values if value > 0]
    ends = (min(every) / 1.2, max(every) * 1.2)
    text = f"time in milliseconds against {curve.axis}, both logarithmic"
    drawing = Drawing(key, _WIDTH, _HEIGHT, title, text)

    def across(x: float) -> float:
        low, high = math.log(curve.at[0]), math.log(curve.at[-1])
        room = _WIDTH - _LEFT - _RIGHT
        return _LEFT + room * (math.log(x) - low) / ((high - low) or 1.0)

    def down(ms: float) -> float:
        low, high = (math.log(end) for end in ends)
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - math.log(ms)) / (high - low)

    foot = _HEIGHT - _BOTTOM
    drawing.line(_LEFT, foot, _WIDTH - _RIGHT, foot, "axis")
    for x in curve.at:
        drawing.text(across(x), foot + 16, f"{x:g}", anchor="middle")
    drawing.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, curve.axis, anchor="middle")
    for ms in _rounded(*ends):
        drawing.line(_LEFT, down(ms), _WIDTH - _RIGHT, down(ms), "axis")
        drawing.text(_LEFT - 6, down(ms) + 4, f"{ms:g} ms", anchor="end")
    heights: list[float] = []
    for name, seconds in curve.series.items():
        points = [
            (across(x), down(1e3 * value))
            for x, value in zip(curve.at, seconds, strict=True)
            if value > 0
        ]
        if not points:
            continue
        drawing.path(points, name)
        at = points[-1][1]
        while any(abs(at - taken) < _APART for taken in heights):
            at += _APART
        heights.append(at)
        drawing.text(points[-1][0] + 6, at + 4, name, f"name-{name}")
    return str(drawing.render())


def _rounded(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [unit * 10.0**power for power in powers for unit in (1, 2, 5)]
    return [value for value in every if low <= value <= high]

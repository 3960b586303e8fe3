"""A little SVG: shapes with classes, so that the page's style sheet colours them in both themes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup

FIGURE_STYLE = Path(__file__).parent / "templates" / "figure.css"
"""Colours and lines of drawings, in a page and in a file of their own."""
_FONT = 'font-family: system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif;'
CHARACTER = 7.1
"""Width of a character of a label, in units of the drawing; labels are set in 11.5 units."""
# Corners of a mark, its turn, and how far they reach: about equal areas.
_CORNERS = {
    "square": (4, math.pi / 4, 1.25),
    "triangle": (3, -math.pi / 2, 1.35),
    "diamond": (4, 0.0, 1.25),
}


class Drawing:
    """One figure. Its title and description are what a screen reader says in its place.

    Args:
        key: part of the element's ids; unique on the page.
        width: units; the page scales the drawing to the room it has.
        height: units.
        title: what the figure shows.
        description: what can be read from it, in words.
    """

    def __init__(self, key: str, width: float, height: float, title: str, description: str) -> None:
        self.key = key
        self.width, self.height = width, height
        self.title, self.description = title, description
        self._parts: list[Markup] = []
        self._has_points = False

    def _add(self, tag: str, kind: str, content: str | None = None, **values: str | float) -> None:
        """An element of a class; the text of its attributes is escaped."""
        shown = {name: v if isinstance(v, str) else number(v) for name, v in values.items()}
        words = Markup("").join(
            Markup(' {}="{}"').format(name.replace("_", "-"), text)
            for name, text in {**shown, "class": kind}.items()
        )
        end = "/>" if content is None else Markup(">{}</{}>").format(content, tag)
        self._parts.append(Markup("<{}{}{}").format(Markup(tag), words, Markup(end)))  # noqa: S704

    def text(self, x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> None:
        """A line of text; ``anchor`` is start, middle or end."""
        self._add("text", kind or "label", content, x=x, y=y, text_anchor=anchor)

    def upright(self, x: float, y: float, content: str, kind: str) -> None:
        """A line of text that is read from below to above, its middle at the point."""
        turn = f"rotate(-90 {number(x)} {number(y)})"
        self._add("text", kind, content, x=x, y=y, text_anchor="middle", transform=turn)

    def area(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A rectangle between two corners."""
        left, top = min(x1, x2), min(y1, y2)
        self._add("rect", kind, x=left, y=top, width=abs(x2 - x1), height=abs(y2 - y1))

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def mark(self, x: float, y: float, shape: str, kind: str, size: float = 4.5) -> None:
        """A point: ``circle``, ``square``, ``triangle``, ``diamond`` or ``cross``."""
        if shape == "circle":
            self._add("circle", kind, cx=x, cy=y, r=size)
        elif shape == "cross":
            self.line(x - size, y - size, x + size, y + size, f"{kind} stroke")
            self.line(x - size, y + size, x + size, y - size, f"{kind} stroke")
        else:
            count, turn, reach = _CORNERS[shape]
            angles = [turn + 2 * math.pi * i / count for i in range(count)]
            corners = (
                (x + size * reach * math.cos(a), y + size * reach * math.sin(a)) for a in angles
            )
            self._add(
                "polygon", kind, points=" ".join(f"{number(a)},{number(b)}" for a, b in corners)
            )

    @contextmanager
    def point(self, x: float, y: float, words: str) -> Iterator[None]:
        """What is drawn meanwhile can be pointed at, by keyboard too, and then says these words."""
        self._has_points = True
        head = '<g class="point" tabindex="0" role="img" aria-label="{0}"><title>{0}</title>'
        self._parts.append(Markup(head).format(words))  # noqa: S704 - ours
        self._add("circle", "hit", cx=x, cy=y, r=10)
        yield
        self._parts.append(Markup("</g>"))

    def render(self) -> Markup:
        """The element."""
        frame = Markup(
            '<svg id="{key}" class="figure" viewBox="0 0 {width} {height}" role="{role}" '
            'aria-labelledby="{key}-title {key}-text" style="max-width:{room}px">'
            '<title id="{key}-title">{title}</title><desc id="{key}-text">{text}</desc>'
        ).format(
            key=self.key,
            role="group" if self._has_points else "img",
            width=number(self.width),
            height=number(self.height),
            room=number(self.width * 1.18),
            title=self.title,
            text=self.description,
        )
        return frame + Markup("").join(self._parts) + Markup("</svg>")


def standalone(drawing: str) -> str:
    """A rendered drawing as a file of its own, an element a line."""
    style = FIGURE_STYLE.read_text(encoding="utf-8")
    head, _, rest = str(drawing).partition(">")  # no longer Markup, which would be escaped
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    own = f"<style>\n{style}svg {{ background: var(--paper); {_FONT} }}\n</style>"
    return f"{head}>\n{own}\n{rest}".replace("><", ">\n<") + "\n"


def number(value: float) -> str:
    """A coordinate without noise behind the comma."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers between ``low`` and ``high``."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 2.5, 5, 10) if power * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def ratio_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round ratios between ``low`` and ``high``, both above 0, for an axis of logarithms."""
    if high < 4 * low:
        return ticks(low, high, count)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ones = (round(unit * 10.0**power, 9) for power in powers for unit in (1, 2, 5))
    return [value for value in round_ones if low <= value <= high]


def decimals(values: Sequence[float]) -> int:
    """Places behind the comma that tell ticks apart."""
    if len(values) < 2:  # noqa: PLR2004 - no step
        return 0
    step = min(abs(b - a) for a, b in pairwise(values))
    return next((d for d in range(4) if abs(round(step, d) - step) < step / 100), 4)

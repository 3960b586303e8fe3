"""A little SVG: shapes with classes, so that the page's style sheet colours them in both themes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

CHARACTER = 7.1
"""Width of a character of a label, in units of the drawing; labels are set in 11.5 units."""


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

    def text(self, x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> None:
        """A line of text; ``anchor`` is start, middle or end."""
        self._add(
            '<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>',
            number(x),
            number(y),
            kind or "label",
            anchor,
            content,
        )

    def rectangle(
        self, x: float, y: float, width: float, height: float, kind: str, *, shade: float = 1.0
    ) -> None:
        """A filled box; ``shade`` in [0, 1] is how strong its colour is."""
        self._add(
            '<rect x="{}" y="{}" width="{}" height="{}" class="{}" fill-opacity="{}"/>',
            number(x),
            number(y),
            number(max(width, 0.0)),
            number(height),
            kind,
            number(shade),
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line."""
        self._add(
            '<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>',
            number(x1),
            number(y1),
            number(x2),
            number(y2),
            kind,
        )

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points."""
        steps = " L ".join(f"{number(x)} {number(y)}" for x, y in points)
        self._add('<path d="M {}" class="{}"/>', steps, kind)

    def mark(self, x: float, y: float, shape: str, kind: str, size: float = 4.5) -> None:
        """A point: ``circle``, ``square``, ``triangle``, ``diamond`` or ``cross``."""
        if shape == "circle":
            self._add(
                '<circle cx="{}" cy="{}" r="{}" class="{}"/>',
                number(x),
                number(y),
                number(size),
                kind,
            )
            return
        corners = {"square": (4, math.pi / 4), "triangle": (3, -math.pi / 2), "diamond": (4, 0.0)}
        if shape == "cross":
            self.line(x - size, y - size, x + size, y + size, f"{kind} stroke")
            self.line(x - size, y + size, x + size, y - size, f"{kind} stroke")
            return
        count, turn = corners[shape]
        reach = size * (1.35 if count == 3 else 1.25)  # noqa: PLR2004 - about equal areas
        angles = [turn + 2 * math.pi * i / count for i in range(count)]
        points = " ".join(
            f"{number(x + reach * math.cos(a))},{number(y + reach * math.sin(a))}" for a in angles
        )
        self._add('<polygon points="{}" class="{}"/>', points, kind)

    def _add(self, template: str, *values: str) -> None:
        self._parts.append(Markup(template).format(*values))  # noqa: S704 - values are escaped

    def render(self) -> Markup:
        """The element."""
        frame = Markup(
            '<svg id="{key}" class="figure" viewBox="0 0 {width} {height}" role="img" '
            'aria-labelledby="{key}-title {key}-text" style="max-width:{room}px">'
            '<title id="{key}-title">{title}</title><desc id="{key}-text">{text}</desc>'
        ).format(
            key=self.key,
            width=number(self.width),
            height=number(self.height),
            room=number(self.width * 1.18),
            title=self.title,
            text=self.description,
        )
        return frame + Markup("").join(self._parts) + Markup("</svg>")


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


def decimals(values: Sequence[float]) -> int:
    """Places behind the comma that tell ticks apart."""
    if len(values) < 2:  # noqa: PLR2004 - no step
        return 0
    step = abs(values[1] - values[0])
    return next((d for d in range(4) if abs(round(step, d) - step) < step / 100), 4)


def escaped(text: str) -> str:
    """Text that may stand in markup."""
    return str(escape(text))

"""A table's cells as text: the same on a terminal and on a page."""

from __future__ import annotations

from fdllm.bench.results import Extra, Line, Section
from fdllm.bench.timing import Spread

_SCALES = {"ms": (1e3, "floor"), "MB": (1e-6, "formula")}


def header(section: Section) -> list[str]:
    """Names of the columns."""
    floor = _SCALES[section.unit][1]
    gain = [] if section.baseline is None else ["speed-up"]
    names = ["", section.unit, f"{floor} {section.unit}", f"x {floor}", *gain]
    return [*names, *_extras(section)]


def body(section: Section) -> list[list[str]]:
    """A list of cells for each line."""
    return [_cells(section, line) for line in section.lines]


def notes(section: Section) -> list[str]:
    """Sentences that belong under the table."""
    out = ["median [least, most] of the repeats; ratios are taken repeat by repeat"]
    if section.baseline is not None:
        out.append(f"speed-up: over {section.baseline}")
    return [*out, *section.notes]


def ranged(spread: Spread, places: int | None = None) -> str:
    """``1.07 [1.05, 1.12]``."""
    low, high = number(spread.low, places), number(spread.high, places)
    return f"{number(spread.median, places)} [{low}, {high}]"


def number(value: float, places: int | None = None) -> str:
    """Three digits that matter, unless ``places`` behind the point are asked for."""
    if places is not None:
        return f"{value:.{places}f}"
    if abs(value) >= 100:  # noqa: PLR2004 - digits ahead of the point are never cut
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _extras(section: Section) -> list[str]:
    return list(dict.fromkeys(name for line in section.lines for name in line.extra))


def _cells(section: Section, line: Line) -> list[str]:
    factor = _SCALES[section.unit][0]
    cells = [line.label, ranged(line.measured.times(factor)), ranged(line.floor.times(factor))]
    cells.append(ranged(line.over_floor, places=2))
    if section.baseline is not None:
        gain = line.speed_up
        cells.append("" if gain is None else ranged(gain, places=2))
    return [*cells, *(_cell(line.extra.get(name, "")) for name in _extras(section))]


def _cell(value: Extra) -> str:
    if isinstance(value, Spread):
        return ranged(value, places=2)
    return number(value) if isinstance(value, float) else str(value)

"""A profile as one HTML page that needs nothing from anywhere, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from fdllm.plain import escaped, shown
from fdllm.profiling import profile_tables as tables
from fdllm.profiling.record import CHOSEN, PhaseMap, Profile, read_beside
from fdllm.profiling.redundancy import compared_sets, layer_figures, verdict, whole_map
from fdllm.record.paths import Layout
from fdllm.report.html import page_template
from fdllm.report.svg import Drawing

_LEVELS = 10
_ROW, _CELL, _LEFT, _TOP, _GAP = 20.0, 64.0, 74.0, 44.0, 18.0


def pages_beside(layout: Layout, task_folder: str) -> dict[Path, str]:
    """The pages of a task folder's profile by their places; none where there is no profile.

    Raises:
        InvalidRecordError: the file is no profile.
    """
    profile, (path, copy) = read_beside(layout, task_folder), layout.profile_beside(task_folder)
    if profile is None:
        return {}
    return {
        path.with_suffix(".html"): render_page(profile),
        copy.with_suffix(".md"): render_markdown(profile),
    }


def render_page(profile: Profile) -> str:
    """The page, whole."""
    maps = whole_map(profile)
    page = page_template("profile.html.j2", "fdllm.profiling").render(
        profile=profile,
        verdict=verdict(profile),
        oracle=tables.oracle_sentence(profile),
        settings=tables.settings(profile),
        layers=tables.layer_table(profile, layer_figures(profile)),
        tested=tables.tested_table(profile, compared_sets(profile)),
        maps={
            name: (
                {"wide": heat_map(profile, maps, name), "narrow": heat_map(profile, maps, name, 1)},
                tables.map_table(maps, name),
            )
            for name in tables.MAPS
        },
    )
    return shown(page)


def render_markdown(profile: Profile) -> str:
    """The tables, for git."""
    every = [
        tables.tested_table(profile, compared_sets(profile)),
        tables.layer_table(profile, layer_figures(profile)),
        *(tables.map_table(whole_map(profile), name) for name in tables.MAPS),
    ]
    lines = [f"# Profile: {profile.task}", "", verdict(profile), tables.oracle_sentence(profile)]
    lines = [escaped(line) for line in (*lines, "", f"{tables.settings(profile)}.")]
    for table in every:
        lines += ["", escaped(table.caption), "", *table.markdown()]
    return "\n".join(lines) + "\n"


def heat_map(profile: Profile, maps: Mapping[str, PhaseMap], name: str, abreast: int = 2) -> Markup:
    """Layers by share of masked columns, so many phases beside each other."""
    bins, chosen = len(tables.SHARES), profile.tested[CHOSEN].layers
    high = _TOP + profile.n_layers * _ROW + 4
    rows = (row for one in maps.values() for row in getattr(one, name))
    values = [value for row in rows for value in row if value is not None]
    least, most = min(values, default=0.0), max(values, default=0.0)
    drawing = Drawing(
        f"map-{name}-{abreast}",
        _LEFT + abreast * (bins * _CELL + _GAP),
        len(maps) // abreast * high,
        f"{name.capitalize()} of each layer by phase and share of masked columns",
        f"{tables.MAPS[name]} Values lie between {least:.3f} and {most:.3f}; the table below has "
        "them all.",
    )
    for i, phase in enumerate(tables.PHASES):
        left, top = _LEFT + i % abreast * (bins * _CELL + _GAP), _TOP + i // abreast * high
        if i % abreast == 0:
            drawing.text(0, top - 8, "layer", "soft")
            for layer in range(profile.n_layers):
                words = f"{layer} chosen" if layer in chosen else str(layer)
                drawing.text(0, top + layer * _ROW + 14, words)
        drawing.text(left, top - 30, f"{phase.upper()}, masked columns:", "soft")
        for j, share in enumerate(tables.SHARES):
            x = left + j * _CELL
            drawing.text(x + _CELL / 2, top - 8, share, "soft", "middle")
            for layer, row in enumerate(getattr(maps[phase], name)):
                level = _level(row[j], least, most, name)
                _cell(drawing, x, top + layer * _ROW, row[j], level)
    return drawing.render()


def _cell(drawing: Drawing, x: float, y: float, value: float | None, level: int) -> None:
    drawing.area(x, y, x + _CELL, y + _ROW, "heat none" if value is None else f"heat h{level}")
    if value is not None:
        drawing.text(x + _CELL / 2, y + 14, f"{value:.2f}", "label", "middle")


def _level(value: float | None, low: float, high: float, name: str) -> int:
    """0 to 9: the higher, the more redundant."""
    if value is None or high == low:
        return 0
    share = (value - low) / (high - low)
    return min(_LEVELS - 1, int(_LEVELS * (share if name == "similarity" else 1 - share)))

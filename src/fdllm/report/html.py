"""The report as one HTML file that needs nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fdllm.report import drawings, report_text
from fdllm.report.build import Page, TablePage
from fdllm.report.flips import FlipSource, embed
from fdllm.report.records import Record

FLIP_BUDGET = 3_600_000
"""Bytes of JSON that texts may take: a whole page stays under five megabytes."""
_VERDICTS = {"same-or-better": "met", "worse": "missed", "cannot-tell": "open"}
_CLASSES = {"confirmed": "confirmed", "refuted": "refuted", "cannot tell": "unsure"}


def render_html(
    page: Page,
    cells: Sequence[Sequence[Record]],
    missing: Mapping[str, Sequence[report_text.Missing]],
    overlaps: Mapping[str, str | None],
    unfinished: Sequence[str] = (),
) -> str:
    """The whole file.

    Args:
        page: every figure.
        cells: the cells of each of the page's tables, for their texts.
        missing: cells without a record, by key of the table.
        overlaps: the sentence on overlapping subsets, by key of the table.
        unfinished: tasks of which no cell is done.
    """
    flips = embed(
        [
            source
            for table, own in zip(page.tables, cells, strict=True)
            if (source := _flip_source(table, own)) is not None
        ],
        FLIP_BUDGET,
    )
    environment = _environment()
    loader = Path(__file__).parent / "templates"
    return environment.get_template("report.html.j2").render(
        page=page,
        unfinished=unfinished,
        verdict_class=_CLASSES.get(page.verdict.word, ""),
        summaries={table.key: report_text.summary_sentence(table) for table in page.tables},
        drawings={table.key: _drawings(table) for table in page.tables},
        extras={
            table.key: _extras(table, missing.get(table.key, ()), overlaps.get(table.key))
            for table in page.tables
        },
        flip_counts={
            table.key: flips.get(table.key) if flips.get(table.key, {}).get("flips") else None
            for table in page.tables
        },
        figures_json=script_json(page.figures()),
        flips_json=script_json(flips),
        style=Markup((loader / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our file
        script=Markup((loader / "report.js").read_text(encoding="utf-8")),  # noqa: S704 - our file
    )


def script_json(data: Any) -> Markup:  # noqa: ANN401 - any JSON value
    """JSON that may stand inside a script element: it can neither end nor comment it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Markup(safe)  # noqa: S704 - escaped above


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fdllm.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "probability": _probability,
        "outcome": lambda verdict: _VERDICTS.get(verdict, "open"),
        "words": lambda verdict: str(verdict).replace("-", " "),
    }
    return environment


def _figure(value: float | None, scale: float, digits: int, sign: bool = False) -> str:  # noqa: FBT001, FBT002 - a template's filter
    if value is None:
        return "-"
    text = f"{scale * value:{'+' if sign else ''}.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _probability(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"  # noqa: PLR2004 - three places


def _drawings(table: TablePage) -> dict[str, Any]:
    return {
        "scatter_wide": drawings.draw_scatter(table, 860, 400, "wide"),
        "scatter_narrow": drawings.draw_scatter(table, 360, 320, "narrow"),
        "speedups": drawings.draw_speedups(table),
        "calls": drawings.draw_calls(table),
        "frontier": drawings.frontier_names(table),
        "lengths": drawings.draw_lengths(table),
    }


def _extras(
    table: TablePage, missing: Sequence[report_text.Missing], overlap: str | None
) -> dict[str, Any]:
    return {
        "notices": report_text.notices(table, overlap),
        "legend": report_text.legend(table),
        "missing": missing,
        "subjects": sorted({name for cell in table.cells for name in cell.subjects}),
        "subject_rows": report_text.subject_rows(table),
        "flip_configs": list(table.against),
    }


def _flip_source(table: TablePage, cells: Sequence[Record]) -> FlipSource | None:
    baseline = next((cell for cell in cells if cell.name == table.baseline), None)
    if baseline is None:
        return None
    others = [(c, table.against[c.name]) for c in cells if c.name in table.against]
    return FlipSource(table.key, baseline, others)

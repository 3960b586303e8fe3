"""The report as one HTML file that needs nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fdllm.report import report_text
from fdllm.report.build import Page, Report
from fdllm.report.flips import embed
from fdllm.report.page_tables import criteria_table, page_tables
from fdllm.report.records import Record
from fdllm.report.scatter import draw_scatter, frontier_names, legend

FLIP_BUDGET = 3_600_000
"""Bytes of JSON that texts may take: a whole page stays under five megabytes."""
_CLASSES = {"confirmed": "confirmed", "refuted": "refuted", "cannot tell": "unsure"}


def render_report(report: Report) -> str:
    """The whole file of a report."""
    shown = {one.table.key: one for one in report.sections if one.table is not None}
    return render_html(
        report.page,
        [one.records for one in shown.values()],
        {key: one.missing for key, one in shown.items()},
        {key: one.overlap for key, one in shown.items()},
        [
            f"{one.sweep.tasks[0]} on {one.sweep.model.name}"
            for one in report.sections
            if not one.table
        ],
    )


def render_html(
    page: Page,
    cells: Sequence[Sequence[Record]],
    missing: Mapping[str, Sequence[str]],
    overlaps: Mapping[str, str | None],
    unfinished: Sequence[str] = (),
) -> str:
    """The whole file.

    Args:
        page: every figure.
        cells: the cells of each of the page's tables, for their texts.
        missing: cells without a record and why, by key of the table.
        overlaps: the sentence on overlapping subsets, by key of the table.
        unfinished: tasks of which no cell is done.
    """
    flips = embed(page.tables, cells, FLIP_BUDGET)
    loader = Path(__file__).parent / "templates"
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            page=page,
            unfinished=unfinished,
            verdict_class=_CLASSES.get(page.verdict.word, ""),
            criteria=criteria_table(page.verdict),
            views={
                table.key: {
                    "summary": report_text.summary_sentence(table),
                    "notices": report_text.notices(table, overlaps.get(table.key)),
                    "missing": missing.get(table.key, ()),
                    "tables": page_tables(table, own),
                    "scatter_wide": draw_scatter(table, 860, 400, "wide"),
                    "scatter_narrow": draw_scatter(table, 360, 320, "narrow"),
                    "frontier": frontier_names(table),
                    "legend": legend(table),
                    "flips": flips.get(table.key)
                    if flips.get(table.key, {}).get("flips")
                    else None,
                }
                for table, own in zip(page.tables, cells, strict=True)
            },
            figures_json=script_json(page.figures()),
            flips_json=script_json(flips),
            style=Markup((loader / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our file
            script=Markup((loader / "report.js").read_text(encoding="utf-8")),  # noqa: S704 - our file
        )
    )


def script_json(data: Any) -> Markup:  # noqa: ANN401 - any JSON value
    """JSON that may stand inside a script element: it can neither end nor comment it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return Markup(safe)  # noqa: S704 - escaped above


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fdllm.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

"""The report as one HTML file that needs nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from fdllm.plain import shown
from fdllm.report import report_text
from fdllm.report.build import Report, Section, TablePage
from fdllm.report.page_samples import PageTexts, embed, selection
from fdllm.report.page_tables import criteria_table, page_tables
from fdllm.report.scatter import Aim, legend, make_scatter
from fdllm.report.svg import FIGURE_STYLE

TEXT_BUDGET = 3_600_000
"""Bytes that packed texts may take: a whole page stays under five megabytes."""
_TEMPLATES = FIGURE_STYLE.parent
_CLASSES = {"confirmed": "confirmed", "refuted": "refuted", "cannot tell": "unsure"}


def page_template(name: str, *packages: str) -> Template:
    """A template of this package, or of others, that fills the frame of every page."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(one) for one in (*packages, "fdllm.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "figure_style": _own(FIGURE_STYLE),
        "style": _own(_TEMPLATES / "style.css"),
        "page_script": _own(_TEMPLATES / "page.js"),
    }
    return environment.get_template(name)


def render_html(report: Report) -> str:
    """The whole file."""
    texts = embed(report.sections, report.experiment, TEXT_BUDGET)
    page = page_template("report.html.j2").render(
        report=report,
        verdict_class=_CLASSES.get(report.verdict.word, ""),
        criteria=criteria_table(report.verdict),
        views=[
            _view(report, one, one.table, texts) for one in report.sections if one.table is not None
        ],
        figures_json=script_json(report.figures()),
        script=_own(_TEMPLATES / "report.js"),
    )
    return shown(page)


def _own(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8"))  # noqa: S704 - our file


def _view(
    report: Report, section: Section, table: TablePage, texts: Mapping[str, PageTexts]
) -> dict[str, Any]:
    """What the page shows of one task."""
    notices = report_text.notices(table, section.overlap)
    sizes = {"wide": (860, 400), "narrow": (360, 340)}
    drawn = {n: make_scatter(table, report.criteria, *size, n) for n, size in sizes.items()}
    wide = drawn["wide"]
    return {
        "table": table,
        "missing": section.missing,
        "summary": report_text.summary_sentence(table),
        "alarms": [one for one in notices if one.text.startswith("✗")],
        "notices": [one for one in notices if not one.text.startswith("✗")],
        "tables": page_tables(table, section.records),
        "scatter": {name: None if one is None else one.render() for name, one in drawn.items()},
        "aim": Aim.of(report.criteria, table.task) != Aim(None, None),
        "legend": legend(table, [] if wide is None else wide.outside),
        "texts": texts.get(table.key),
        "selection": selection(report.experiment, table),
    }


def script_json(data: Any) -> Markup:  # noqa: ANN401 - any JSON value
    """JSON that may stand inside a script element: it can neither end nor comment it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(shown(text.replace("<", "\\u003c")))  # noqa: S704 - escaped here

"""The pages over all experiments: Markdown with pictures beside it, for git, and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fdllm.plain import escaped, in_code, one_line, shown
from fdllm.report.build import Report
from fdllm.report.html import page_template
from fdllm.report.referee import (
    OneTask,
    PublicClaims,
    by_task,
    caption,
    claims_table,
    draw,
    findings,
    rows_table,
    verdicts_table,
)
from fdllm.report.svg import standalone

PAGE, INDEX = "referee.md", "index.html"


def referee_pages(
    reports: Sequence[Report], selection: str, claims: PublicClaims, folder: Path, results: Path
) -> dict[Path, str]:
    """Every page by its place, ``referee.md`` first.

    The Markdown and its pictures go into ``folder``, the HTML into ``results``, beside the
    experiments' folders with theirs; ``selection`` are flags by which a check renders them again.
    """
    tasks = by_task(reports)
    pages = {folder / PAGE: _markdown(reports, tasks, selection, claims)}
    for task in tasks:
        if task.tables and (drawn := draw(task)):
            pages[folder / _picture(task)] = standalone(drawn["wide"])
    return pages | {results / INDEX: _html(reports, tasks, selection, claims)}


def _picture(task: OneTask) -> str:
    return f"referee_{task.folder}.svg"


def _markdown(
    reports: Sequence[Report], tasks: Sequence[OneTask], selection: str, claims: PublicClaims
) -> str:
    lines = [
        "# The referee's table",
        "",
        f"Written by `fdllm report {one_line(selection)}` from the records; do not edit.",
        "Each figure is one of the experiment's own `results.md`.",
        "",
        "## Verdicts",
        "",
        *verdicts_table(reports).captioned(),
    ]
    for task in tasks:
        lines += [f"## {escaped(task.title)}", ""]
        if task.tables:
            lines += [*(f"- {escaped(line)}" for line in findings(task)), ""]
            if draw(task):
                lines += [f"![Accuracy change against time]({_picture(task)})", ""]
                lines += [escaped(caption(task)), ""]
            lines += [f"Metric `{in_code(task.metric)}`.", *rows_table(task.entries).captioned()]
        if task.missing:
            lines += ["Not in the table:", "", *(f"- {escaped(one)}" for one in task.missing), ""]
    if claims.claim:
        lines += ["## What others claim", "", *claims_table(claims.claim, tasks).captioned()]
    return "\n".join(lines).rstrip() + "\n"


def _html(
    reports: Sequence[Report], tasks: Sequence[OneTask], selection: str, claims: PublicClaims
) -> str:
    return shown(
        page_template("referee.html.j2").render(
            reports=reports,
            selection=selection,
            verdicts=verdicts_table(reports),
            claims=claims_table(claims.claim, tasks),
            views=[_view(task) for task in tasks],
            links={
                one.experiment: f"{one.experiment}/report.html" for one in reports if one.tables
            },
        )
    )


def _view(task: OneTask) -> dict[str, Any]:
    """What the page shows of one task."""
    if not task.tables:
        return {"title": task.title, "missing": task.missing, "rows": None}
    return {
        "title": task.title,
        "missing": task.missing,
        "findings": [*findings(task)],
        "picture": draw(task),
        "caption": caption(task),
        "metric": task.metric,
        "rows": rows_table(task.entries),
    }

"""``results.md``: the tables of an experiment, written by the tool from its records."""

from __future__ import annotations

from collections.abc import Sequence

from fdllm.report.measured import span
from fdllm.report.origin import commit
from fdllm.report.publish import Report, Section
from fdllm.report.records import Record
from fdllm.report.report_text import summary_sentence
from fdllm.report.table import Column, counter_columns, figure_columns, identical_texts, twins_lines

_LAYER_CALLS = (
    "Layer calls saved: those not made, of the config's own. By k=1: those made in the end, by the "
    "first config's that reuses nothing; above 1 where skipping costs more forwards than it saves."
)


def render_results(report: Report, selection: str) -> str:
    """The whole page.

    Args:
        report: its figures and records.
        selection: the flags that chose the records; a check renders the page again by them.
    """
    title = report.page.title
    lines = [
        f"# Results: {report.page.experiment}" + (f" - {title}" if title else ""),
        "",
        f"Written by `fdllm report {selection}` from the records; do not edit.",
        "See [proposal.md](proposal.md) and [tasks.md](tasks.md).",
        "",
        *_verdict(report),
    ]
    lines += [render_section(section) for section in report.sections]
    return "\n".join(lines).rstrip() + "\n"


def _verdict(report: Report) -> list[str]:
    """The verdict, and each comparison in words."""
    verdict = report.page.verdict
    lines = ["## Verdict", "", f"**{verdict.word.capitalize()}.** {verdict.sentence}", ""]
    if verdict.criteria:
        lines += [f"Success criteria, decided beforehand: {verdict.criteria}.", ""]
    for table in report.page.tables:
        limit = "" if table.limit is None else f" (limit {table.limit}, a smoke test)"
        lines.append(f"- {table.task}{limit}: {summary_sentence(table)}")
        lines += [f"  - {against.sentence}" for against in table.against.values()]
        lines += [f"  - At equal speed, {one.sentence}" for one in table.alternative.against]
    return [*lines, ""]


def render_section(section: Section) -> str:
    """One task: figures, counters, checks, provenance."""
    sweep, records = section.sweep, section.records
    limit = "" if sweep.limit is None else f", limit {sweep.limit}: SMOKE TEST"
    preset = "" if sweep.preset is None else f", preset {section.cells[0].run.preset_words}"
    lines = [f"## {sweep.tasks[0]} on {sweep.model.name}{preset}{limit}", ""]
    if sweep.preset is not None and sweep.preset.exceptions:
        but = "; ".join(sweep.preset.exceptions)
        lines += [f"{sweep.preset.title}. Where a run differs from it all the same: {but}.", ""]
    if sweep.limit is not None:
        lines += ["**Smoke test: so few rows say nothing about accuracy or speed.**", ""]
    if records:
        lines += [*_figures(records), *_counters(records), *_checks(section)]
    if section.missing:
        lines += ["Not in the table:", ""]
        lines += [
            f"- {cell.name}: {cell.state}" + (f" ({cell.reason})" if cell.reason else "")
            for cell in section.missing
        ]
        lines.append("")
    if records:
        lines += _provenance(records)
    return "\n".join(lines)


def _figures(records: Sequence[Record]) -> list[str]:
    first = records[0].summary
    estimator = f", estimator {first.estimator_words}" if first.estimator else ""
    return [
        f"Metric `{first.headline.metric}`{estimator}, {first.headline.num_samples} rows.",
        "",
        *_table(_names(records), figure_columns(records)),
        "",
        _LAYER_CALLS,
        "",
    ]


def _counters(records: Sequence[Record]) -> list[str]:
    n_layers = records[0].summary.strategy.n_layers
    layers = Column("Layers", tuple(span(record.summary.strategy.layers) for record in records))
    return [
        f"Reuse counters ({n_layers} layers; layer calls computed + reused):",
        "",
        *_table([*_names(records), layers], counter_columns(records)),
        "",
        *_scored(records),
    ]


def _names(records: Sequence[Record]) -> list[Column]:
    return [Column("Config", tuple(record.name for record in records))]


def _table(words: Sequence[Column], figures: Sequence[Column]) -> list[str]:
    """A Markdown table: columns of words to the left, figures to the right."""
    columns = [*words, *figures]
    rows = [
        [column.name for column in columns],
        ["---"] * len(words) + ["---:"] * len(figures),
        *zip(*(column.texts for column in columns), strict=True),
    ]
    return ["| " + " | ".join(row) + " |" for row in rows]


def _scored(records: Sequence[Record]) -> list[str]:
    """At which steps answers were scored, and how many of them reuse could not reach."""
    steps = records[0].summary.scored
    if steps is None:
        return []
    by_step = ", ".join(f"{step}: {number}" for step, number in steps.first.items())
    lines = [f"Answers by the step that scored their first token: {by_step}."]
    lines += [
        f"- {record.name}: {record.summary.scored.words}"
        for record in records
        if record.summary.strategy.reuses and record.summary.scored is not None
    ]
    return [*lines, ""]


def _checks(section: Section) -> list[str]:
    records = section.records
    lines = [f"- {line.plain}" for line in twins_lines(records)]
    lines += [f"- Warning: {r.name}: {text}" for r in records for text in r.summary.warnings]
    lines += [f"- {text}" for text in identical_texts(records)]
    if section.overlap:
        lines.append(f"- Note: {section.overlap}")
    return ["Checks:", "", *lines, ""] if lines else []


def _provenance(records: Sequence[Record]) -> list[str]:
    first = records[0].summary
    last = max(str(r.summary.provenance.get("finished", "")) for r in records)
    session = first.provenance["sessions"][-1]
    commits = sorted({commit(r.summary.provenance["sessions"][-1].get("git")) for r in records})
    packages = session["packages"]
    facts = [
        f"Finished {last} on {', '.join(first.machines)} ({session['device']}, {session['dtype']})",
        f"torch {packages['torch']}, transformers {packages['transformers']}",
        f"lm-eval {packages['lm-eval']}",
        f"commit {', '.join(commits)}",
        f"documents {first.dataset[:12]}",
        f"decoding {first.fingerprint.fields['decoding']}",
    ]
    return ["; ".join(facts) + ".", ""]

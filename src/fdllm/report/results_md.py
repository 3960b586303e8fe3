"""``results.md``: the tables of an experiment, written by the tool from its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fdllm.plain import escaped, in_code, one_line
from fdllm.report.build import Report, Section, TablePage
from fdllm.report.columns import Column, Table
from fdllm.report.drafts import drafts_table
from fdllm.report.figures import span
from fdllm.report.origin import commit
from fdllm.report.page_tables import alternative_table, bounds_table, grid_table
from fdllm.report.records import Record
from fdllm.report.report_text import notices, summary_sentence

_CALLS = ("computed", "reused")


def render_results(report: Report, selection: str) -> str:
    """The whole page; ``selection`` are the flags by which a check renders it again."""
    verdict = report.verdict
    fence = "``" if "`" in selection else "`"
    command = f"{fence}fdllm report {one_line(selection)}{fence}"
    lines = [
        escaped(f"# Results: {report.experiment}" + (f" - {report.title}" if report.title else "")),
        "",
        f"Written by {command} from the records; do not edit.",
        "See [proposal.md](proposal.md) and [tasks.md](tasks.md).",
        "",
        "## Verdict",
        "",
        f"**{verdict.word.capitalize()}.** {escaped(verdict.sentence)}",
        "",
    ]
    if verdict.criteria:
        lines += [f"Success criteria: {escaped(verdict.criteria)}.", ""]
    if verdict.notes:
        lines += [*_items(verdict.notes), ""]
    lines += [render_section(section) for section in report.sections]
    return "\n".join(lines).rstrip() + "\n"


def render_section(section: Section) -> str:
    """One task: a sentence, the table, checks, counters, provenance."""
    limit = "" if section.limit is None else f", limit {section.limit}: SMOKE TEST"
    lines = [f"## {escaped(section.title)}{limit}", ""]
    if section.remark:
        lines += [escaped(section.remark), ""]
    if section.limit is not None:
        lines += ["**Smoke test: so few rows say nothing about accuracy or speed.**", ""]
    if section.table is not None:
        lines += [*_figures(section.table, section.records), *_checks(section.table, section)]
    if section.missing:
        lines += ["Not in the table:", "", *_items(section.missing), ""]
    if section.table is not None:
        lines += [*_bounds(section.table), *_alternative(section.table)]
        lines += _counters(section.records)
        if (drafts := drafts_table(section.records)) is not None:
            lines += drafts.captioned()
        lines += [*_scored(section.records), *_provenance(section.records)]
    return "\n".join(lines)


def _items(texts: Iterable[str]) -> list[str]:
    return [f"- {escaped(text)}" for text in texts]


def _figures(table: TablePage, records: Sequence[Record]) -> list[str]:
    first = records[0].summary
    estimator = f", estimator {first.estimator_words}" if first.estimator else ""
    reach = escaped(f"{estimator}, {first.headline.num_samples} rows.")
    grid = grid_table(table, records)
    return [
        escaped(summary_sentence(table)),
        "",
        f"Metric `{in_code(first.headline.metric)}`{reach}",
        *grid.captioned(),
    ]


def _checks(table: TablePage, section: Section) -> list[str]:
    lines = _items(one.text for one in notices(table, section.overlap))
    return ["Checks:", "", *lines, ""] if lines else []


def _bounds(table: TablePage) -> list[str]:
    found = bounds_table(table)
    shown = [] if found is None else found.captioned()
    left_out = (f"Left out: {one}." for one in table.bounds.left_out)
    notes = [escaped(one) for one in (*table.bounds.notes, *left_out)]
    return [*shown, *notes, *([""] if notes else [])]


def _alternative(table: TablePage) -> list[str]:
    found, note = alternative_table(table), table.alternative.note
    if found is not None:
        return found.captioned()
    return [f"Not compared with lowering the threshold: {escaped(note)}.", ""] if note else []


def _counters(records: Sequence[Record]) -> list[str]:
    every = [record.summary for record in records]
    numbers = [span(one.strategy.layers) for one in every]
    forwards = {
        f"{phase} forwards": [one.counts.get(phase, {}).get("forwards", 0) for one in every]
        for phase in ("prefill", "refresh", "denoise", "commit")
    }
    calls = {name: [getattr(one.layer_calls, name) for one in every] for name in _CALLS}
    table = Table(
        [
            Column("Config", [record.name for record in records], is_words=True),
            Column("Layers", numbers, is_words=True),
            *(Column(name, [*map(str, counts)]) for name, counts in (forwards | calls).items()),
        ],
        f"Reuse counters ({every[0].strategy.n_layers} layers; layer calls computed + reused):",
    )
    return table.captioned()


def _scored(records: Sequence[Record]) -> list[str]:
    """At which steps answers were scored, and how many of them reuse could not reach."""
    steps = records[0].summary.scored
    if steps is None:
        return []
    by_step = ", ".join(f"{step}: {number}" for step, number in steps.first.items())
    alike: dict[str, list[str]] = {}
    for record in records:
        if record.summary.strategy.reuses and record.summary.scored is not None:
            alike.setdefault(record.summary.scored.words, []).append(record.name)
    lines = _items(f"{', '.join(names)}: {words}" for words, names in alike.items())
    return [f"Answers by the step that scored their first token: {escaped(by_step)}.", *lines, ""]


def _provenance(records: Sequence[Record]) -> list[str]:
    first = records[0].summary
    last = max(str(r.summary.provenance.get("finished", "")) for r in records)
    sessions = [(r.summary.provenance.get("sessions") or [{}])[-1] for r in records]
    where = [str(sessions[0].get(name, "unknown")) for name in ("device", "dtype")]
    packages = sessions[0].get("packages", {})
    facts = [
        f"Finished {last} on {', '.join(first.machines)} ({', '.join(where)})",
        ", ".join(f"{n} {packages.get(n, 'unknown')}" for n in ("torch", "transformers")),
        f"lm-eval {packages.get('lm-eval', 'unknown')}",
        f"commit {', '.join(sorted({commit(one.get('git')) for one in sessions}))}",
        f"documents {first.dataset[:12]}",
        f"decoding {first.fingerprint.fields.get('decoding') or 'unknown'}",
    ]
    return [escaped("; ".join(facts) + "."), ""]

"""``results.md``: the tables of an experiment, written by the tool from its records."""

from __future__ import annotations

from collections.abc import Sequence

from fdllm.config import Sweep
from fdllm.errors import FdllmError
from fdllm.plan import CellState, Planner, State
from fdllm.report.grid import identical, mixtures, overlap_sentence
from fdllm.report.records import Record, finished
from fdllm.report.table import boxed_text, has_boxes, percent, twins_lines, with_interval

_CALLS = ("computed", "reused")
_PHASES = ("prefill", "refresh", "denoise", "commit")


def render_results(
    planner: Planner, sweeps: Sequence[Sweep], experiment: str, selection: str
) -> str:
    """The whole page.

    Args:
        planner: knows the records.
        sweeps: a table each.
        experiment: its name.
        selection: the flags that chose the records; a check renders the page again by them.

    Raises:
        FdllmError: the records of a table must not stand together.
    """
    title = planner.experiment(experiment).settings.experiment.title
    sections = [render_task(planner, sweep) for sweep in sweeps]
    head = [
        f"# Results: {experiment}" + (f" - {title}" if title else ""),
        "",
        f"Written by `fdllm report {selection}` from the records; do not edit.",
        "See [proposal.md](proposal.md) and [tasks.md](tasks.md).",
        "",
    ]
    return "\n".join(head + sections).rstrip() + "\n"


def render_task(planner: Planner, sweep: Sweep) -> str:
    """One task: figures, counters, checks, provenance.

    Raises:
        FdllmError: its records are of several fingerprints, machines or estimators.
    """
    cells = [planner.state(run) for run in planner.runs(sweep)]
    records = finished(cells)
    problems = mixtures(records)
    if problems:
        raise FdllmError(
            f"no table for {sweep.experiment} / {sweep.tasks[0]}: {'; '.join(problems)}. Compute "
            "the cells anew under one state of the code, on one machine: fdllm sweep --force"
        )
    limit = "" if sweep.limit is None else f", limit {sweep.limit}: SMOKE TEST"
    preset = "" if sweep.preset is None else f", preset {cells[0].run.preset_words}"
    lines = [f"## {sweep.tasks[0]} on {sweep.model.name}{preset}{limit}", ""]
    if sweep.preset is not None and sweep.preset.exceptions:
        but = "; ".join(sweep.preset.exceptions)
        lines += [f"{sweep.preset.title}. Where a run differs from it all the same: {but}.", ""]
    if sweep.limit is not None:
        lines += ["**Smoke test: so few rows say nothing about accuracy or speed.**", ""]
    if records:
        lines += [*_figures(records), *_counters(records), *_checks(planner, sweep, records)]
    lines += _missing(cells)
    if records:
        lines += _provenance(records)
    return "\n".join(lines)


def _figures(records: Sequence[Record]) -> list[str]:
    first = records[0].summary
    scored = first.kind == "loglikelihood"
    ratios = _speed_ratios(records)
    base = next((r.summary for r in records if not r.summary.strategy.reuses), None)
    speed = ("Scored tokens/s", "Requests/s") if scored else ("Tokens/s", "Tokens/forward")
    boxed = has_boxes(record.summary for record in records)
    names = ["Config", "Accuracy [95 %]", "Change", *(["boxed_match"] if boxed else [])]
    names += [*speed, "Speed by k=1"]
    names += ["Layer calls saved", "Layer calls by k=1"]
    names += [] if scored else ["Truncated", "Repetitive"]
    estimator = f", estimator {first.estimator_words}" if first.estimator else ""
    lines = [
        f"Metric `{first.headline.metric}`{estimator}, {first.headline.num_samples} rows.",
        "",
        _row(names),
        _row(["---"] + ["---:"] * (len(names) - 1)),
    ]
    for record in records:
        summary = record.summary
        change = "" if base is None else f"{_points(summary.headline.value, base.headline.value)}"
        pace = summary.throughput
        figures = (
            (pace.scored_tokens_per_second, pace.requests_per_second)
            if scored
            else (pace.tokens_per_second, pace.tokens_per_forward)
        )
        ratio = ratios.get(record.name)
        row = [
            record.name,
            with_interval(summary.headline),
            change,
            *([boxed_text(summary)] if boxed else []),
            *(f"{value or 0.0:.2f}" for value in figures),
            "" if ratio is None else f"{ratio:.2f}",
            percent(summary.layer_calls.saved_share),
            "" if base is None else f"{summary.layer_calls.made / base.layer_calls.made:.2f}",
        ]
        if summary.quality is not None:
            row += [percent(summary.quality.truncation_rate)]
            row += [percent(summary.quality.repetition_rate)]
        lines.append(_row(row))
    words = (
        "Layer calls saved: those not made, of the config's own. By k=1: those made in the end, "
        "by the first config's that reuses nothing; above 1 where skipping costs more forwards "
        "than it saves."
    )
    return [*lines, "", words, ""]


def _speed_ratios(records: Sequence[Record]) -> dict[str, float]:
    """Speed of each cell by the mean speed of the cells that reuse nothing."""
    plain = [r.summary.speed for r in records if not r.summary.strategy.reuses]
    if not plain or not all(plain):
        return {}
    base = sum(plain) / len(plain)
    return {record.name: record.summary.speed / base for record in records}


def _counters(records: Sequence[Record]) -> list[str]:
    layers = records[0].summary.strategy.n_layers
    lines = [
        f"Reuse counters ({layers} layers; layer calls computed + reused):",
        "",
        _row(["Config", "Layers", *(f"{phase} forwards" for phase in _PHASES), *_CALLS]),
        _row(["---", "---", *["---:"] * (len(_PHASES) + 2)]),
    ]
    for record in records:
        summary = record.summary
        forwards = [str(summary.counts.get(phase, {}).get("forwards", 0)) for phase in _PHASES]
        calls = summary.layer_calls
        lines.append(
            _row(
                [
                    record.name,
                    _span(summary.strategy.layers),
                    *forwards,
                    str(calls.computed),
                    str(calls.reused),
                ]
            )
        )
    return [*lines, "", *_scored(records)]


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


def _checks(planner: Planner, sweep: Sweep, records: Sequence[Record]) -> list[str]:
    lines = [f"- {line.plain}" for line in twins_lines(records)]
    lines += [f"- Warning: {r.name}: {text}" for r in records for text in r.summary.warnings]
    for group in identical(records):
        plain = [name for name in group if not _reuses(records, name)]
        what = "did the reuse reach this task?" if plain else "one result, not several"
        lines.append(f"- {', '.join(group)} agree in every output: {what}")
    n_layers = records[0].summary.strategy.n_layers
    sentence = overlap_sentence(planner.overlaps(sweep), n_layers)
    if sentence:
        lines.append(f"- Note: {sentence}")
    return ["Checks:", "", *lines, ""] if lines else []


def _missing(cells: Sequence[CellState]) -> list[str]:
    left = [cell for cell in cells if cell.state is not State.DONE]
    if not left:
        return []
    lines = [
        f"- {cell.run.cell.name}: {cell.state.value}" + (f" ({cell.reason})" if cell.reason else "")
        for cell in left
    ]
    return ["Not in the table:", "", *lines, ""]


def _provenance(records: Sequence[Record]) -> list[str]:
    first = records[0].summary
    last = max(str(r.summary.provenance.get("finished", "")) for r in records)
    session = first.provenance["sessions"][-1]
    commits = sorted({_commit(record) for record in records})
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


def _commit(record: Record) -> str:
    git = record.summary.provenance["sessions"][-1].get("git")
    if not git:
        return "unknown"
    return str(git["commit"])[:10] + (" with changes" if git["dirty"] else "")


def _reuses(records: Sequence[Record], name: str) -> bool:
    return any(r.name == name and r.summary.strategy.reuses for r in records)


def _points(value: float, base: float) -> str:
    return f"{100 * (value - base):+.1f}"


def _span(layers: Sequence[int]) -> str:
    if not layers:
        return "none"
    return f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"

"""A trace as one HTML page: a slider over the forwards. Everything is inside the one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template

from fdllm.trace import words
from fdllm.trace.steps import Forward, RowTrace, Trace

_TEMPLATES = Path(__file__).parent / "templates"
_HEAD = ("#", "phase", "step", "columns", "layers", "unmasked", "staleness")


def render_page(trace: Trace) -> str:
    """The page, whole."""

    def part(name: str) -> str:
        return (_TEMPLATES / name).read_text(encoding="utf-8")

    return Template(part("page.html")).substitute(
        title=escape(f"{trace.name}: trace"),
        name=escape(trace.name),
        settings=escape(words.settings(trace)),
        answers=escape(words.answers(trace)),
        prompt=escape(trace.prompt),
        style=part("page.css"),
        script=part("page.js"),
        choices=_choices(trace),
        tables="\n".join(_table(trace, i, row) for i, row in enumerate(trace.rows)),
        data=page_data(trace),
    )


def page_data(trace: Trace) -> str:
    """What the slider shows, as JSON that can stand inside a script element."""
    rows = [
        {
            "title": row.title,
            "outcome": words.outcome(row),
            "totals": words.totals(row),
            "num_prompt": len(row.prompt),
            "forwards": [_forward(forward) for forward in row.forwards],
        }
        for row in trace.rows
    ]
    data = {
        "block_size": trace.block_size,
        "small_block_size": trace.small_block_size,
        "n_layers": trace.n_layers,
        "mask_id": trace.mask_id,
        "threshold": trace.threshold,
        "staleness": trace.staleness,
        "pieces": {str(token): words.visible(piece) for token, piece in trace.pieces.items()},
        "rows": rows,
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")  # no piece of a text may end the element


def _forward(forward: Forward) -> dict[str, object]:
    guesses = [[g.column, g.token, round(g.confidence, 4), g.taken] for g in forward.guesses]
    stale = [
        asdict(one) | {"distances": [round(d, 5) for d in one.distances]}
        for one in forward.stale or ()
    ]
    return {
        "phase": forward.phase,
        "index": forward.index,
        "block": forward.block,
        "columns": forward.columns,
        "layers": forward.layers,
        "partial": forward.partial,
        "computed": forward.computed,
        "reused": forward.reused,
        "before": forward.before,
        "after": forward.after,
        "guesses": guesses,
        "stale": stale,
        "words": words.layer_calls(forward),
        "change": forward.change,
    }


def _choices(trace: Trace) -> str:
    """A control for the row, where there are several."""
    if len(trace.rows) == 1:
        return ""
    options = "".join(
        f'<option value="{i}">{escape(row.title)}</option>' for i, row in enumerate(trace.rows)
    )
    return f'<label>Show <select id="row">{options}</select></label>'


def _table(trace: Trace, number: int, row: RowTrace) -> str:
    """All steps of a row as a table: the page's text alternative, also without JavaScript."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _HEAD)
    lines = []
    for i, forward in enumerate(row.forwards):
        stale = "; ".join(words.stale_sentence(one) for one in forward.stale or ())
        cells = (
            str(i),
            forward.phase,
            "" if forward.index is None else str(forward.index),
            f"block {forward.block}: {words.span(forward)}",
            words.layer_calls(forward),
            words.taken(forward, trace.pieces),
            stale,
        )
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    caption = f"{row.title}: {words.outcome(row)}. {words.totals(row)}."
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Steps of {escape(row.title)}">'
        f'<table id="steps-{number}"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )

"""A trace as one HTML page: a slider over the forwards. Everything is inside the one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fdllm.report.html import script_json
from fdllm.trace import words
from fdllm.trace.steps import Trace


def render_page(trace: Trace) -> str:
    """The page, whole."""
    templates = Path(__file__).parent / "templates"
    environment = Environment(
        loader=PackageLoader("fdllm.trace"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("trace.html.j2").render(
        trace=trace,
        words=words,
        style=Markup((templates / "trace.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        script=Markup((templates / "trace.js").read_text(encoding="utf-8")),  # noqa: S704 - ours
        data=page_data(trace),
    )


def page_data(trace: Trace) -> Markup:
    """The trace and its words as JSON that can stand inside a script element."""
    data = asdict(trace)
    data["pieces"] = {str(token): words.visible(piece) for token, piece in trace.pieces.items()}
    for row, shown in zip(trace.rows, data["rows"], strict=True):
        shown |= {"totals": words.totals(row), "num_prompt": len(row.prompt)}
        for forward, step in zip(row.forwards, shown["forwards"], strict=True):
            step["words"] = words.layer_calls(forward)
    return script_json(data)

"""A trace as one HTML page: a slider over the forwards. Everything is inside the one file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fdllm.plain import shown
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
    page = environment.get_template("trace.html.j2").render(
        trace=trace,
        words=words,
        style=Markup((templates / "trace.css").read_text(encoding="utf-8")),  # noqa: S704 - ours
        script=Markup((templates / "trace.js").read_text(encoding="utf-8")),  # noqa: S704 - ours
        data=page_data(trace),
    )
    return shown(page)


def page_data(trace: Trace) -> Markup:
    """What the slider shows, as JSON that can stand inside a script element."""
    rows = []
    for row in trace.rows:
        steps = [asdict(one) | {"words": words.layer_calls(one)} for one in row.forwards]
        rows.append({"totals": words.totals(row), "num_prompt": len(row.prompt), "forwards": steps})
    data = {
        "rows": rows,
        "pieces": {str(token): words.visible(piece) for token, piece in trace.pieces.items()},
        "n_layers": trace.n_layers,
        "staleness": trace.staleness,
        **trace.decoding.model_dump(include={"block_size", "small_block_size", "mask_id"}),
    }
    return script_json(data)

"""The page of a trace stands by itself and says what the trace says."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

import fdllm
from fdllm.core.config import Decoding
from fdllm.core.reuse import PeriodicReuse
from fdllm.core.sampler import GenerationRequest
from fdllm.core.unmask import by_threshold
from fdllm.runs import Cell, ModelChoice, Run
from fdllm.trace.page import page_data, render_page
from fdllm.trace.steps import RowTrace, Trace, tokens_in
from fdllm.trace.terminal import show
from fdllm.trace.watcher import Watcher, assemble
from models import MASK, VOCAB, random_model, random_prompt

EVIL = "</script><img src=x onerror=alert(1)>"
BLOCK = 16


@pytest.fixture(scope="module")
def trace() -> Trace:
    """A random model's row under reuse; one of its tokens is written like an attack."""
    model, strategy = random_model(3), PeriodicReuse(2, 2, 4)
    decoding = Decoding(
        block_size=BLOCK, small_block_size=8, threshold=0.9, max_new_tokens=40, stop_token=()
    )
    prompt = tuple(random_prompt(5, 37))
    watcher = Watcher(staleness=True)
    [found] = fdllm.generate(
        model,
        [GenerationRequest(prompt)],
        decoding,
        strategy,
        unmask=watcher.rule(by_threshold),
        hook=watcher,
    )
    pieces = {token: f"t{token} " for token in range(VOCAB)}
    pieces[found.tokens[3]], pieces[found.tokens[4]] = EVIL, "\n"
    row = RowTrace(
        title="answer <b>",
        prompt=prompt,
        forwards=assemble(watcher.seen, block_size=BLOCK, refresh_reuse=False),
        tokens=tuple(found.tokens),
        text="".join(pieces[token] for token in found.tokens),
        finish="length",
        counts=found.counts.as_dict(),
    )
    return Trace(
        run=Run(
            experiment="00_baseline",
            task="made_up",
            cell=Cell.of(2, "middle"),
            model=ModelChoice(name="random"),
            decoding=decoding,
        ),
        task="made_up",
        doc_id=3,
        strategy=repr(strategy),
        n_layers=model.n_layers,
        decoding=decoding.model_copy(update={"mask_id": MASK}),
        pieces={token: pieces[token] for token in tokens_in([row])},
        prompt=f"a question {EVIL}",
        expected="42",
        metrics={"exact_match,none": 0.0},
        rows=(row, row),
        staleness=True,
    )


class _References(HTMLParser):
    """Everything a browser would fetch, and every element."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [str(v) for k, v in attrs if k in ("src", "href", "srcset", "action")]


def test_page_fetches_nothing(trace: Trace) -> None:
    page = render_page(trace)
    parser = _References()
    parser.feed(page)
    assert parser.found == ["data:,"]  # an empty icon, so that none is asked for
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest|import\(", page)
    links = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert links == {"http://www.w3.org/2000/svg"}  # a name, which nobody fetches


def test_no_text_of_a_model_becomes_markup(trace: Trace) -> None:
    parser = _References()
    parser.feed(render_page(trace))
    assert "img" not in parser.tags
    assert parser.tags.count("script") == 2
    assert "$" not in re.sub(r"(?s)<script>.*?</script>", "", render_page(trace))


def test_page_holds_every_step(trace: Trace) -> None:
    data = json.loads(page_data(trace))
    row = trace.rows[0]
    shown = data["rows"][0]["forwards"]
    assert [one["layers"] for one in shown] == [one.layers for one in row.forwards]
    assert [one["after"] for one in shown] == [list(one.after) for one in row.forwards]
    assert sum(one["reused"] for one in shown) == sum(c["reused"] for c in row.counts.values()) > 0
    assert [bool(one["stale"]) for one in shown] == ["r" in one.layers for one in row.forwards]
    table = render_page(trace).partition('<table id="steps-0">')[2].partition("</table>")[0]
    assert table.count("<tr>") == len(row.forwards) + 1
    assert "reused 2-3" in table


@pytest.mark.parametrize("colours", [False, True])
def test_terminal_shows_a_line_a_step(trace: Trace, colours: bool) -> None:
    out = io.StringIO()
    console = Console(
        file=out, width=250, force_terminal=colours, color_system="truecolor" if colours else None
    )
    show(trace, console)
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    row = trace.rows[0]
    lines = [
        line
        for line in text.splitlines()
        if re.match(r"\s*\d+ (refresh|denoise|commit|prefill)", line)
    ]
    assert len(lines) == 2 * len(row.forwards)
    for line, forward in zip(lines, row.forwards, strict=False):
        assert line.count("░") == forward.layers.count("r")
        if not colours and forward.index is not None:  # brackets stand in for colour
            assert line.count("[") == len(forward.taken)
    reused = sum(count["reused"] for count in row.counts.values())
    assert f"{reused} reused" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_slider_works_in_a_browser(trace: Trace, tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    number = next(i for i, one in enumerate(trace.rows[0].forwards) if "r" in one.layers)
    # A key, as a person would press it, then what the page says of itself.
    probe = """<script>
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true}));
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
    </script></body>"""
    page.write_text(render_page(trace).replace("</body>", probe), encoding="utf-8")
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr",
        "--virtual-time-budget=2000",
        "--dump-dom",
        f"{page.as_uri()}#step-{number}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert f"Step {number} of {len(trace.rows[0].forwards) - 1}: DENOISE" in done.stdout
    assert "layers 2-3 (output)" in done.stdout
    assert done.stdout.count('class="cell') == BLOCK

"""Comparisons for people: a verdict, a table of figures, and the answers that changed."""

from __future__ import annotations

import shutil
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fdllm import strictjson
from fdllm.cli.compare_choose import Choice
from fdllm.report.compare_text import SMOKE_TEST, Comparison
from fdllm.report.grid import findings
from fdllm.report.records import Record, SampleKey
from fdllm.report.speed import noise_floor
from fdllm.report.stats import Estimate

_STYLE = {"same-or-better": "green", "worse": "red", "cannot-tell": "yellow"}
_WIDE = 120  # columns of a log
_SHOWN = 400  # characters of an answer: its end holds the result
_ASKED = 300  # characters of a question


def print_comparison(choice: Choice, comparison: Comparison, *, num_flips: int) -> None:
    """Print one comparison to standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(_WIDE, shutil.get_terminal_size((_WIDE, 24)).columns))
    a, b = choice.a, choice.b
    mark = f" - {SMOKE_TEST}, limit {comparison.limit}" if comparison.is_smoke_test else ""
    console.print(
        Text(
            f"{a.task}: {a.summary.experiment} / {a.name} against "
            f"{b.summary.experiment} / {b.name}{mark}",
            "bold",
        )
    )
    verdict = comparison.verdict.replace("-", " ").upper()
    console.print(Text(f"{verdict}: {comparison.sentence}", style=_STYLE[comparison.verdict]))
    console.print(_figures(comparison))
    floor = noise_floor(choice.grid, 1)
    for found in findings(choice.grid, None if floor is None else floor.finding):
        if {a.name, b.name} & set(found.cells) or found.kind == "twins-speed":
            console.print(Text(f"! {found.text}", style="yellow"))
    for title, keys in (
        (f"{a.name} right, {b.name} wrong", comparison.losses),
        (f"{a.name} wrong, {b.name} right", comparison.gains),
    ):
        if keys:
            console.print(_flips(title, keys, choice, num_flips))


def _figures(c: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", c.a, c.b, "difference [95 %]"):
        table.add_column(name, justify="left" if not name else "right")
    change = c.difference
    table.add_row(
        "accuracy",
        f"{100 * c.value_a:.1f} %",
        f"{100 * c.value_b:.1f} %",
        f"{100 * change.value:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}] points",
    )
    if c.speed is not None:
        table.add_row("speed by time", "1", _times(c.speed.ratio), f"claim: {c.speed.claim}")
        table.add_row("tokens/s", "1", f"{c.speed.tokens_per_second:.2f}x", "")
        table.add_row("tokens", "1", f"{c.speed.tokens:.2f}x", "")
    return table


def _times(ratio: Estimate) -> str:
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def _flips(title: str, keys: tuple[SampleKey, ...], choice: Choice, number: int) -> Table:
    """The first documents that flipped in one direction, answers side by side."""
    shown = keys[:number]
    left = f", {len(shown)} shown (--flips N)" if len(shown) < len(keys) else ""
    table = Table(
        title=f"{title}: {len(keys)}{left}", box=box.SIMPLE_HEAD, title_justify="left", expand=True
    )
    table.add_column("document", ratio=2, overflow="fold")
    for cell in (choice.a, choice.b):
        table.add_column(cell.name, ratio=3, overflow="fold")
    for key in shown:
        sample = choice.a.by_key[key]
        asked = f"{key[0]} row {key[1]}\n{_end(sample.get('prompt', ''), _ASKED)}"
        target = f"\ntarget: {_end(sample.get('target', ''), _ASKED)}"
        table.add_row(Text(asked + target), _answer(choice.a, key), _answer(choice.b, key))
    return table


def _answer(cell: Record, key: SampleKey) -> Text:
    sample = cell.by_key[key]
    output = sample["output"]
    if isinstance(output, str):
        return Text(_end(output, _SHOWN) + f"\n({sample['tokens']} tokens)")
    scores = [f"{value:.2f}" if isinstance(value, float) else str(value) for value in output]
    return Text(f"log-likelihoods {', '.join(scores)}" if scores else "")


def _end(value: Any, length: int) -> str:  # noqa: ANN401 - a target may be any JSON value
    """The end of a text: what is asked, and what is answered, stands there."""
    text = value if isinstance(value, str) else strictjson.dumps(value)
    return text if len(text) <= length else f"… {text[-length:]}"

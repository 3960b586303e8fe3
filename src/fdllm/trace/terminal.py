"""A trace in the terminal: a line a forward."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fdllm.plain import shown
from fdllm.trace import words
from fdllm.trace.steps import ForwardTrace, RowTrace, Trace

_BAR = {
    "c": ("\u2588", "cyan", "computed"),
    "r": ("\u2591", "yellow", "reused"),
    "o": ("\u25a1", "yellow", "left out"),
    "p": ("\u2592", "magenta", "computed for some columns"),
}
_MASK = "\u00b7"
_NEW = "bold black on green"
_FEW = 2


def show(trace: Trace, console: Console) -> None:
    """Print a whole trace."""
    console.print(Text(trace.name, style="bold"))
    console.print(Text(words.settings(trace), style="dim"))
    console.print(legend(console, staleness=trace.staleness))
    console.print(Text.assemble(("prompt: ", "bold"), shown(trace.prompt)))
    for row in trace.rows:
        console.print()
        console.print(Text(row.title, style="bold"))
        steps = list(enumerate(row.forwards))
        # A PREFILL stands with the block that it begins at.
        for block, group in groupby(steps, key=lambda step: step[1].block):
            console.print(Text(f"block {block}", style="bold cyan"))
            console.print(_table(trace, row, list(group), console))
        console.print(Text(words.outcome(row)))
        console.print(Text(words.totals(row)))
        if row.loglikelihood is None:
            console.print(Text.assemble(("text: ", "bold"), shown(row.text)))
    console.print()
    console.print(Text(words.answers(trace)))


def legend(console: Console, *, staleness: bool) -> Text:
    """What the signs mean."""
    text = Text("layers: ")
    for sign, style, meaning in _BAR.values():
        text.append(sign, style=style)
        text.append(f" {meaning}  ")
    text.append(f"text: {_MASK} masked  ")
    text.append_text(_mark("new", console))
    text.append("  dim: prompt")
    if staleness:
        text.append("  stale: |stored - fresh| / |fresh|, mean over columns (to the largest)")
    return text


def _table(
    trace: Trace, row: RowTrace, steps: list[tuple[int, ForwardTrace]], console: Console
) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("phase")
    table.add_column("step", justify="right")
    table.add_column("columns", justify="right")
    table.add_column("layers", no_wrap=True)
    table.add_column("confidence", justify="right", no_wrap=True)
    if trace.staleness:
        table.add_column("stale", justify="right", no_wrap=True)
    table.add_column("block", overflow="fold")
    for number, forward in steps:
        cells: list[str | Text] = [
            str(number),
            forward.phase,
            "" if forward.index is None else str(forward.index),
            words.span(forward),
            _bar(forward),
            words.confidence(forward),
        ]
        if trace.staleness:
            cells.append(words.staleness(forward))
        table.add_row(*cells, _block(trace, row, forward, console))
    return table


def _bar(forward: ForwardTrace) -> Text:
    bar = Text()
    for letter in forward.layers:
        bar.append(*_BAR[letter][:2])
    return bar


def _block(trace: Trace, row: RowTrace, forward: ForwardTrace, console: Console) -> Text:
    """The block's text behind a forward."""
    if not forward.before:
        return Text(f"{forward.columns[1]} tokens of the prompt", style="dim italic")
    new = {guess.column for guess in forward.taken}
    ahead = len(row.prompt) - forward.block * trace.decoding.block_size  # columns that are prompt
    text = Text()
    columns = [(token, column in new, column < ahead) for column, token in enumerate(forward.after)]
    for (token, is_new, is_prompt), group in groupby(columns):
        shown, number = words.visible(trace.pieces[token]), len(list(group))
        if token == trace.decoding.mask_id:
            text.append(_MASK * number, style="dim")
            continue
        if number > _FEW and len(shown) > _FEW:  # a tail of <|pad|>, say
            shown, number = f"{shown}\u00d7{number}", 1
        for _ in range(number):
            text.append_text(_mark(shown, console) if is_new else Text(shown))
        if is_prompt:
            text.stylize("dim", len(text) - number * len(shown))
    for guess in forward.taken:
        if guess.column >= len(forward.after):
            text.append(" next: ", style="dim")
            text.append_text(_mark(words.visible(trace.pieces[guess.token]), console))
    return text


def _mark(shown: str, console: Console) -> Text:
    """A token that was just unmasked; in brackets where there is no colour."""
    plain = console.color_system is None
    return Text(f"[{shown}]") if plain else Text(shown, style=_NEW)

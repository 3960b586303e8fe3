"""A table as columns of texts, drawn where it is read: terminal, Markdown, or the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table as TerminalTable
from rich.text import Text

from fdllm.plain import escaped, one_line

_LONG = 28  # characters
_ENDLESS = 10_000  # characters; no terminal is wider


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str  # its head
    texts: Sequence[str]  # what stands below, a text for each row
    is_words: bool = False  # stands to the left and is folded; figures stand to the right
    # of each text: a colour of the terminal, a class of the page; empty where all are plain
    styles: Sequence[str] = ()

    @property
    def is_long(self) -> bool:
        """Whether a text has several words' length, so that it is folded ahead of others."""
        return max(map(len, self.texts), default=0) > _LONG


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what stands over them: how to read the figures."""

    columns: Sequence[Column]
    caption: str = ""

    @property
    def rows(self) -> list[tuple[tuple[Column, str, str], ...]]:
        """A row's texts, each with its column and its style."""
        cells = (
            zip([one] * len(one.texts), one.texts, one.styles or [""] * len(one.texts), strict=True)
            for one in self.columns
        )
        return list(zip(*cells, strict=True))

    def terminal(self) -> Fitted:
        """For a terminal; a caption is a warning there.

        Where it is narrow, figures are left out from the right, the first one and words last.
        """
        table = TerminalTable(box=box.SIMPLE_HEAD, caption=self.caption, caption_style="red")
        for one in self.columns:
            head, side = one.name, "left" if one.is_words else "right"
            if head[1:2].islower():  # no abbreviation
                head = head[0].lower() + head[1:]
            # Two lines of head leave room for what stands below.
            head = head.replace(" by ", "\nby ").replace(" (", "\n(")
            whole = one is self.columns[0] or not one.is_words
            table.add_column(head, justify=side, overflow="fold", no_wrap=whole)  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(Text(one_line(text), style) for _, text, style in row))
        figures = [at for at, one in enumerate(self.columns) if at and not one.is_words]
        return Fitted(table, [table.columns[at].header for at in reversed(figures[1:])])

    def captioned(self) -> list[str]:
        """The lines of a paragraph and a table in Markdown."""
        return [escaped(self.caption), "", *self.markdown(), ""]

    def markdown(self) -> list[str]:
        """The lines of a Markdown table."""
        rows = [
            [one.name for one in self.columns],
            ["---" if one.is_words else "---:" for one in self.columns],
            *([escaped(text) for _, text, _ in row] for row in self.rows),
        ]
        return ["| " + " | ".join(row) + " |" for row in rows]


class Fitted:
    """A terminal's table, without its lesser columns where all of them have no room.

    Args:
        table: what is drawn; a column that is not wrapped keeps its texts whole.
        spare: heads of the columns that may be left out, the first to go first.
    """

    def __init__(self, table: TerminalTable, spare: Sequence[RenderableType] = ()) -> None:
        self.table, self.spare = table, spare

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterable[RenderableType]:
        """The table, and below it the names of what was left out."""
        endless = options.update(width=_ENDLESS)
        for one in self.table.columns:
            texts = [Measurement.get(console, endless, text) for text in (one.header, *one.cells)]
            one.min_width = max(text.maximum if one.no_wrap else text.minimum for text in texts)
        left_out = list[str]()
        kept = self.table
        for head in self.spare:
            if Measurement.get(console, endless, kept).minimum <= options.max_width:
                break
            kept = _without(kept, head)
            left_out.append(" ".join(str(head).split()))
        yield kept
        if left_out:
            names = ", ".join(left_out)
            yield Text(f"left out for room: {names}; in a wider terminal, or by --json", "dim")


def _without(table: TerminalTable, head: RenderableType) -> TerminalTable:
    kept = (one for one in table.columns if one.header is not head)
    rest = copy(table)
    rest.columns = [replace(one, _index=place) for place, one in enumerate(kept)]
    return rest

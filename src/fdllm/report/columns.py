"""A table as columns of texts, drawn where it is read: terminal, Markdown, or the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from fdllm.plain import escaped, one_line


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str  # its head
    texts: Sequence[str]  # what stands below, a text for each row
    is_words: bool = False  # stands to the left and is folded; figures stand to the right
    # of each text: a colour of the terminal, a class of the page; empty where all are plain
    styles: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Columns of equal length, and what stands over them: how to read the figures."""

    columns: Sequence[Column]
    caption: str = ""

    @property
    def rows(self) -> list[tuple[tuple[Column, str, str], ...]]:
        """A row's texts, each with its column and its style."""
        cells = (
            [(one, text, style) for text, style in zip(one.texts, _styles(one), strict=True)]
            for one in self.columns
        )
        return list(zip(*cells, strict=True))

    def terminal(self) -> TerminalTable:
        """For a terminal; a caption is a warning there."""
        table = TerminalTable(box=box.SIMPLE_HEAD, caption=self.caption, caption_style="red")
        for one in self.columns:
            head, side = one.name, "left" if one.is_words else "right"
            if head[1:2].islower():  # no abbreviation
                head = head[0].lower() + head[1:]
            # Two lines of head leave room for what stands below.
            head = head.replace(" by ", "\nby ").replace(" (", "\n(")
            table.add_column(head, justify=side, overflow="fold")  # type: ignore[arg-type]
        for row in self.rows:
            table.add_row(*(Text(one_line(text), style) for _, text, style in row))
        return table

    def markdown(self) -> list[str]:
        """The lines of a Markdown table."""
        rows = [
            [one.name for one in self.columns],
            ["---" if one.is_words else "---:" for one in self.columns],
            *([escaped(text) for _, text, _ in row] for row in self.rows),
        ]
        return ["| " + " | ".join(row) + " |" for row in rows]


def _styles(column: Column) -> Iterable[str]:
    return column.styles or [""] * len(column.texts)

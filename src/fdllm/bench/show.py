"""A bench's tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fdllm.bench.cells import body, header, notes, number
from fdllm.bench.profiling import PhaseProfile
from fdllm.bench.results import Section

_OPERATORS = 12  # rows of a profile


def show(section: Section, console: Console) -> None:
    """Print one table."""
    title = escape(f"{section.shape}, {section.dtype}: {section.title}")
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header(section)):
        table.add_column(escape(name), justify="right" if i else "left")
    for row in body(section):
        table.add_row(*map(escape, row))
    console.print(table)
    for note in notes(section):
        console.print(f"  {note}", highlight=False, markup=False)


def show_profile(found: PhaseProfile, console: Console) -> None:
    """Print where a phase's time goes."""
    console.print(
        f"{found.shape}, {found.dtype}: {found.phase}, {found.columns} columns: "
        f"{number(found.plain_ms)} ms, {found.plain_ms / found.floor_ms:.2f} x floor "
        f"({number(found.ms)} ms under the profiler)",
        highlight=False,
    )
    table = Table()
    table.add_column("operator")
    for name in ("calls", "ms", "share"):
        table.add_column(name, justify="right")
    for operator in found.operators[:_OPERATORS]:
        table.add_row(
            operator.name, number(operator.calls), number(operator.ms), f"{operator.share:.1%}"
        )
    rest = found.operators[_OPERATORS:]
    if rest:
        ms, share = sum(o.ms for o in rest), sum(o.share for o in rest)
        table.add_row(f"{len(rest)} others", "", number(ms), f"{share:.1%}")
    console.print(table)

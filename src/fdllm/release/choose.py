"""Which records go into a release, and why some may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fdllm.errors import FdllmError
from fdllm.plan import CellState, State
from fdllm.record.summary import Summary
from fdllm.report.grid import mixtures
from fdllm.report.records import Record

Allowance = Literal["stale", "mixed", "invalid", "places"]
ALLOWANCES: tuple[Allowance, ...] = get_args(Allowance)


@dataclass(frozen=True)
class Chosen:
    """What a release holds and what it lacks.

    Attributes:
        records: cells with their records, in the order of tables.
        remarks: what a reader must know: stale, mixed, missing and broken cells, a line each.
    """

    records: tuple[tuple[CellState, Summary], ...]
    remarks: tuple[str, ...]


def choose(tables: Sequence[Sequence[CellState]], allowed: frozenset[Allowance]) -> Chosen:
    """Sort the cells of some tables into what is released and what is not.

    Args:
        tables: cells by task, limit and model.
        allowed: defects that are asked for all the same; each of them becomes a remark.

    Raises:
        FdllmError: a table is mixed, or a cell stale or invalid, and nobody asked for it; or there
            is nothing to release.
    """
    found = [_sort(table) for table in tables]
    problems: dict[Allowance, list[str]] = {
        "stale": [line for one in found for line in one.stale],
        "invalid": [line for one in found for line in one.invalid],
        "mixed": [line for one in found for line in one.mixed],
    }
    refused = {kind: lines for kind, lines in problems.items() if lines and kind not in allowed}
    if refused:
        shown = [line for lines in refused.values() for line in lines]
        more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""  # noqa: PLR2004
        raise FdllmError(
            f"not exported: {'; '.join(shown[:3])}{more}. Compute them anew (fdllm sweep), or take "
            f"them as they are with --allow {' '.join(refused)}; the release will say so"
        )
    records = tuple(record for one in found for record in one.records)
    if not records:
        raise FdllmError("nothing to export: no cell of this selection has a record; sweep first")
    remarks = [line for lines in problems.values() for line in lines]
    return Chosen(records, (*remarks, *(one.missing for one in found if one.missing)))


@dataclass(frozen=True)
class _Table:
    """The cells of one table, sorted."""

    records: list[tuple[CellState, Summary]]
    stale: list[str]
    invalid: list[str]
    mixed: list[str]
    missing: str


def _sort(table: Sequence[CellState]) -> _Table:
    records = [
        (cell, cell.summary)
        for cell in table
        if cell.state in (State.DONE, State.STALE) and cell.summary is not None
    ]
    held = {id(cell) for cell, _ in records}
    mixed = mixtures([Record(cell.paths.folder, summary) for cell, summary in records])
    where = str(table[0].run).rpartition(" / ")[0]
    settled = (State.INVALID, State.NOT_APPLICABLE)
    absent = [
        f"{cell.run.cell.name} ({cell.state.value})"
        for cell in table
        if id(cell) not in held and cell.state not in settled
    ]
    return _Table(
        records,
        [f"{c.run} is stale: {c.reason}" for c, _ in records if c.state is State.STALE],
        [f"{c.run} is invalid: {c.reason}" for c in table if c.state is State.INVALID],
        [f"{where} is mixed: {'; '.join(mixed)}"] if mixed else [],
        f"{where} lacks {', '.join(absent)}" if absent else "",
    )

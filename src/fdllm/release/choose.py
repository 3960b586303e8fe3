"""Which records go into a release, and why some may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fdllm.errors import FdllmError, few
from fdllm.plan import CellState, State
from fdllm.record.summary import Summary
from fdllm.report.grid import mixtures
from fdllm.report.records import Record

Allowance = Literal["stale", "mixed", "invalid", "places"]
_HELD = (State.DONE, State.DECIDED, State.STALE)
SHOWN = 3  # of what is wrong
ALLOWANCES: tuple[Allowance, ...] = get_args(Allowance)


@dataclass(frozen=True)
class Chosen:
    """What a release holds and what it lacks."""

    # cells with their records, in the order of tables
    records: tuple[tuple[CellState, Summary], ...]
    # what a reader must know: stale, mixed, missing, decided and broken cells, a line each
    remarks: tuple[str, ...]


def choose(tables: Sequence[Sequence[CellState]], allowed: frozenset[Allowance]) -> Chosen:
    """Sort the cells of some tables into what is released and what is not.

    Each defect that is ``allowed`` becomes a remark.

    Raises:
        FdllmError: a table is mixed, or a cell stale or invalid, and nobody asked for it; or there
            is nothing to release.
    """
    problems: dict[Allowance, list[str]] = {"stale": [], "invalid": [], "mixed": []}
    records: list[tuple[CellState, Summary]] = []
    lacking: list[str] = []
    for table in tables:
        held = [
            (cell, cell.summary)
            for cell in table
            if cell.state in _HELD and cell.summary is not None
        ]
        records += held
        problems["stale"] += _told(table, State.STALE)
        problems["invalid"] += _told(table, State.INVALID)
        where = str(table[0].run).rpartition(" / ")[0]
        mixed = mixtures([Record(cell.paths.folder, summary) for cell, summary in held])
        problems["mixed"] += [f"{where} is mixed: {'; '.join(mixed)}"] if mixed else []
        settled = (*_HELD, State.INVALID, State.NOT_APPLICABLE)
        absent = [f"{c.run.cell.name} ({c.state.value})" for c in table if c.state not in settled]
        lacking += [f"{where} lacks {', '.join(absent)}"] if absent else []
        lacking += _told(table, State.DECIDED)
    refused = {kind: lines for kind, lines in problems.items() if lines and kind not in allowed}
    if refused:
        shown = [line for lines in refused.values() for line in lines]
        raise FdllmError(
            f"not exported: {few(shown, SHOWN, '; ')}. Compute them "
            "anew (fdllm sweep), or take "
            f"them as they are with --allow {' '.join(refused)}; the release will say so"
        )
    if not records:
        raise FdllmError("nothing to export: no cell of this selection has a record; sweep first")
    remarks = [line for lines in problems.values() for line in lines]
    return Chosen(tuple(records), (*remarks, *lacking))


def _told(table: Sequence[CellState], state: State) -> list[str]:
    return [f"{c.run} is {state.value}: {c.reason}" for c in table if c.state is state]

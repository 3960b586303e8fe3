"""Which records go into a release, and why some may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fdllm.errors import FdllmError
from fdllm.plan import CellState, State
from fdllm.record.summary import Summary
from fdllm.report.checks import Record, mixtures

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
    records: list[tuple[CellState, Summary]] = []
    problems: dict[Allowance, list[str]] = {"stale": [], "invalid": [], "mixed": []}
    missing = []
    for table in tables:
        held = []
        for cell in table:
            if cell.state in (State.DONE, State.STALE) and cell.summary is not None:
                held.append((cell, cell.summary))
                if cell.state is State.STALE:
                    problems["stale"].append(f"{cell.run} is stale: {cell.reason}")
            elif cell.state is State.INVALID:
                problems["invalid"].append(f"{cell.run} is invalid: {cell.reason}")
            elif cell.state is not State.NOT_APPLICABLE:
                reason = f": {cell.reason}" if cell.reason else ""
                missing.append(f"{cell.run} is missing ({cell.state.value}{reason})")
        records += held
        mixed = mixtures([Record(cell, summary) for cell, summary in held])
        if mixed:
            problems["mixed"].append(
                f"{table[0].run.experiment} / {table[0].run.task} is mixed: {'; '.join(mixed)}"
            )
    refused = {kind: lines for kind, lines in problems.items() if lines and kind not in allowed}
    if refused:
        shown = [line for lines in refused.values() for line in lines]
        more = f" (and {len(shown) - 3} more)" if len(shown) > 3 else ""  # noqa: PLR2004
        raise FdllmError(
            f"not exported: {'; '.join(shown[:3])}{more}. Compute them anew (fdllm sweep), or take "
            f"them as they are with --allow {' '.join(refused)}; the release will say so"
        )
    if not records:
        raise FdllmError("nothing to export: no cell of this selection has a record; sweep first")
    remarks = [line for lines in problems.values() for line in lines]
    return Chosen(tuple(records), (*remarks, *missing))

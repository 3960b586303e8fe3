"""Which cells a sweep computes, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.plan import BUSY, ENDED, SETTLED, CellState, State
from fdllm.until_decided import UntilDecided

_WHY = {
    State.PENDING: "not run yet",
    State.DECIDED: "goes on to the last row",
    State.PARTIAL: "goes on",
    State.FAILED: "failed, tries again",
    State.STALE: "stale",
    State.INVALID: "invalid",
}


@dataclass(frozen=True)
class PlannedCell:
    """A cell to compute."""

    cell: CellState  # the cell as it is now
    why: str  # the reason, in a few words
    force: bool  # its record, or what there is of one, is moved aside first
    until: UntilDecided | None = None  # where it ends; None at its last document


def choose_work(
    cells: Sequence[CellState],
    *,
    force: Sequence[str] | None,
    until_decided: bool = False,
) -> list[PlannedCell]:
    """Cells that are not done and that nobody else computes, and those that are forced.

    Args:
        cells: the selection.
        force: configs that are computed anew; empty forces the whole selection, None nothing.
        until_decided: what is decided is left alone, else it goes on to the last row.
    """
    work, settled = [], ENDED if until_decided else SETTLED
    for cell in cells:
        if cell.state in BUSY or cell.state is State.NOT_APPLICABLE:
            continue
        if force is not None and (not force or cell.run.cell.name in force):
            work.append(PlannedCell(cell, "forced", force=True))
        elif cell.state not in settled:
            reason = "" if cell.state is State.PENDING else f": {cell.reason}"
            work.append(PlannedCell(cell, f"{_WHY[cell.state]}{reason}", force=False))
    return work

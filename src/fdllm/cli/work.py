"""Which cells a sweep computes and why, in which order, and where each ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fdllm.cli.output import complain
from fdllm.cli.request import SweepRequest, default_tasks
from fdllm.errors import UsageError
from fdllm.plan import BUSY, ENDED, SETTLED, CellState, State
from fdllm.runs import Run
from fdllm.until_decided import UntilDecided, needed_configs, until_decided

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
    early: bool = False,
) -> list[PlannedCell]:
    """Cells that are not done and that nobody else computes, and those that are forced.

    An empty ``force`` is the whole selection, None nothing. Where runs end ``early``, what is
    decided is left alone, else it goes on to the last row.
    """
    work, settled = [], ENDED if early else SETTLED
    for cell in cells:
        if cell.state in BUSY or cell.state is State.NOT_APPLICABLE:
            continue
        if force is not None and (not force or cell.run.cell.name in force):
            work.append(PlannedCell(cell, "forced", force=True))
        elif cell.state not in settled:
            reason = "" if cell.state is State.PENDING else f": {cell.reason}"
            work.append(PlannedCell(cell, f"{_WHY[cell.state]}{reason}", force=False))
    return work


def missing_configs(request: SweepRequest, shards: int | None) -> tuple[str, ...]:
    """Configs that a selection must have too, as its others are judged against them; they are said.

    Raises:
        UsageError: runs that are split would have to end together.
    """
    if (shards or 1) > 1:
        raise UsageError(
            "--until-decided ends a run by what it has answered, and the shards of one do not see "
            "each other's answers; leave out --shards or --until-decided"
        )
    chosen, needed = request.sweep.configs, needed_configs(request.planner, request.sweep)
    missing = [name for name in needed if chosen and name not in chosen]
    if missing:
        complain(f"{', '.join(missing)} too: the others are judged against it")
    return tuple(missing)


def ends_of(request: SweepRequest) -> Callable[[Run], UntilDecided]:
    """Where each run of a sweep ends.

    Raises:
        UsageError: the criteria name nothing that an accuracy run decides.
    """
    planner, sweep, criteria = request.planner, request.sweep, request.criteria
    experiment = planner.experiment(sweep.experiment)
    tasks = (*default_tasks(experiment, sweep.model.name, sweep.include), *sweep.tasks)
    judged = (criteria.tasks if criteria is not None else ()) or tasks
    return lambda run: until_decided(planner, sweep, run, len({*judged}))


def in_order(request: SweepRequest, work: Sequence[PlannedCell]) -> list[PlannedCell]:
    """Runs with their ends, those that others are judged against first."""
    first, ends = needed_configs(request.planner, request.sweep), ends_of(request)
    planned = [replace(one, until=ends(one.cell.run)) for one in work]
    return sorted(planned, key=lambda one: one.cell.run.cell.name not in first)

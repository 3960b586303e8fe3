"""``--until-decided`` for the commands: what is swept, in which order, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fdllm.cli.output import complain
from fdllm.cli.request import SweepRequest, default_tasks
from fdllm.cli.work import PlannedCell
from fdllm.errors import UsageError
from fdllm.runs import Run
from fdllm.until_decided import UntilDecided, needed_configs, until_decided


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

"""Runs that end where their criteria are decided: which, against what, and by which rule. No torch.

The run that others are judged against is asked whole, and so are rivals; all take the documents in
the same order, so that cells at work side by side find its answers there.
"""

from __future__ import annotations

from pydantic import Field

from fdllm.criteria import RISES, Criteria, criteria_lock, criteria_text
from fdllm.errors import UsageError
from fdllm.plan import Planner
from fdllm.record.deciding import Looks, Rule
from fdllm.runs import Run, Sweep
from fdllm.spec import Spec


class UntilDecided(Spec):
    """That a run is to end where its criteria are decided."""

    against: Run  # what it is judged against: the baseline, or a rival
    # verdicts of the experiment, which share the 5 % of wrong ones
    sharing: int = Field(1, ge=1)


def until_decided(planner: Planner, sweep: Sweep, run: Run, num_tasks: int) -> UntilDecided:
    """How a run of a sweep is to end, of an experiment that is judged on so many tasks.

    Raises:
        UsageError: the criteria name nothing that an accuracy run decides, or there is no baseline.
    """
    criteria = planner.experiment(sweep.experiment).settings.criteria
    names = ("max_accuracy_drop", *RISES)
    if criteria is None or all(getattr(criteria, name) is None for name in names):
        raise UsageError(
            f"--until-decided: no accuracy run can decide the criteria of '{sweep.experiment}'; "
            f"state one of {', '.join(names)} in [criteria] of its experiment.toml, or leave the "
            "flag out"
        )
    baseline = baseline_of(planner, sweep)
    every = planner.runs(sweep.model_copy(update={"configs": (), "tasks": (run.task,)}))
    base = planner.run(sweep, run.task, baseline)
    judged = [
        one.cell.name
        for one in every
        if one.cell.name in criteria.configs
        or (
            (not criteria.configs and not _is_kept(one, base, criteria))
            and not planner.are_twins(one, base)
        )
    ]
    against = planner.run(sweep, run.task, criteria.rival_of(run.cell.name) or baseline)
    return UntilDecided(against=against, sharing=max(1, len(judged) * num_tasks))


def baseline_of(planner: Planner, sweep: Sweep) -> str:
    """The config that others are judged against: the criteria's, else the first without reuse.

    Raises:
        UsageError: there is none.
    """
    criteria = planner.experiment(sweep.experiment).settings.criteria
    if criteria is not None and criteria.baseline is not None:
        return criteria.baseline
    for run in planner.runs(sweep.model_copy(update={"configs": ()})):
        if not planner.reuses(run):
            return run.cell.name
    raise UsageError(
        f"experiment '{sweep.experiment}' has no config without reuse to judge the others against; "
        "name one as baseline in [criteria]"
    )


def needed_configs(planner: Planner, sweep: Sweep) -> tuple[str, ...]:
    """The configs that others are judged against: the baseline, and rivals.

    Raises:
        UsageError: there is no baseline.
    """
    criteria = planner.experiment(sweep.experiment).settings.criteria
    return (baseline_of(planner, sweep), *(() if criteria is None else criteria.rivals))


def looks_of(planner: Planner, run: Run, until: UntilDecided) -> Looks:
    """At which answers a run looks, and the rule that ends it; none where it is asked whole."""
    criteria = planner.experiment(run.experiment).settings.criteria
    other, rule = until.against, None
    if criteria is not None and not _is_kept(run, other, criteria):
        margins = _margins(criteria, run.cell.name, planner.task(run.task).kind)
        lock, twin = criteria_lock(criteria_text(criteria)), planner.are_twins(run, other)
        rule = Rule(margins, lock, until.sharing, is_twin=twin) if margins else None
    return Looks(rule, other, planner.layout.run(other), planner.fingerprint(other))


def _is_kept(run: Run, base: Run, criteria: Criteria) -> bool:
    """Whether others are judged against it."""
    return run.cell.name in (base.cell.name, *criteria.rivals)


def _margins(criteria: Criteria, config: str, kind: str) -> dict[str, float]:
    """The criteria that an accuracy run decides, with the loss that each allows.

    None where a config has a rival for its accuracy and the baseline for the rest.
    """
    stated = {name: getattr(criteria, name) for name in ("max_accuracy_drop", *RISES)}
    found = {
        name: margin
        for name, margin in stated.items()
        if margin is not None and (kind == "generate" or name not in RISES)
    }
    return {} if criteria.rival_of(config) and found.keys() & {*RISES} else found

"""Each success criterion on one cell of one task, on its own figure, at its own edge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scipy.stats import norm

from fdllm.criteria import RISES, Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.stats import LEVEL, Estimate
from fdllm.report.times import shown

Outcome = Literal["met", "missed", "open"]


@dataclass(frozen=True)
class CriterionResult:
    """One criterion on one cell of one task."""

    criterion: str  # its key in ``[criteria]``
    outcome: Outcome  # met, missed, or open where the sample cannot tell
    text: str  # the figures behind it
    # two-sided p-value of what the outcome says; 0 where that is counted and no estimate
    p_value: float = 0.0


@dataclass(frozen=True)
class CellVerdict:
    """All criteria on one cell of one task."""

    task: str
    config: str
    outcome: Outcome
    findings: tuple[CriterionResult, ...]
    left_out: str = ""  # why it takes no part in the verdict; empty where it does

    @property
    def words(self) -> str:
        """The outcome, or why there is none."""
        return self.left_out or self.outcome


@dataclass(frozen=True)
class Judged:
    """What judging a task needs."""

    task: str  # the task
    smoke: bool  # whether only some of its rows were run
    # its cells but the baseline, each with its comparison with that
    cells: Sequence[tuple[CellFigures, Comparison | None]]
    # comparison with its rival, by config that has one and whose rival is done
    rivals: Mapping[str, Comparison] = field(default_factory=dict)
    left_out: str = ""  # why none of its cells takes part: too few rows, say
    # configs that could only repeat another one's result here, each with the reason
    not_applicable: Mapping[str, str] = field(default_factory=dict)
    missing: Sequence[str] = ()  # configs to be judged that are not done here
    lock: str = ""  # whether the criteria stood before its rows did; empty where all did
    untimed: str = ""  # why its speed was not measured; empty where it was


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """All must be met; one that is missed decides."""
    if "missed" in outcomes:
        return "missed"
    return "open" if "open" in outcomes else "met"


def judge_cell(
    criteria: Criteria, task: Judged, cell: CellFigures, against: Comparison | None
) -> CellVerdict:
    """Every criterion on a cell, by its comparison with the baseline, or with its rival."""
    found: list[CriterionResult] = []
    versus = task.rivals.get(cell.name) if criteria.rival_of(cell.name) else against
    if criteria.max_accuracy_drop is not None:
        found.append(_accuracy(criteria.max_accuracy_drop, versus))
    if criteria.min_speedup is not None:
        found.append(_speedup(criteria.min_speedup, versus, task.untimed))
    if criteria.min_saved_share is not None:
        found.append(_saved(criteria.min_saved_share, against))
    for name in RISES:
        limit = getattr(criteria, name)
        if limit is not None:
            found.append(_rise(name, limit, against))
    # By a rule that allows for having looked, and for every verdict beside it; no interval does.
    decided = cell.outcomes or {}
    found = [
        CriterionResult(one.criterion, decided[one.criterion], f"{one.text} ({cell.decided})")
        if one.criterion in decided
        else one
        for one in found
    ]
    if task.smoke:
        found = [CriterionResult(f.criterion, "open", f"{f.text} (smoke test)") for f in found]
    outcome = worst([finding.outcome for finding in found])
    return CellVerdict(task.task, cell.name, outcome, tuple(found), task.left_out)


def _accuracy(most: float, against: Comparison | None) -> CriterionResult:
    """Whether the whole interval is on one side of the loss that is allowed."""
    name = "max_accuracy_drop"
    if against is None:
        return CriterionResult(name, "open", "nothing to compare with")
    change, text = against.difference, against.difference.shown(100, "+.1f", " points")
    if change.low >= -most:
        return CriterionResult(name, "met", text, against.within)
    if change.high < -most:
        return CriterionResult(name, "missed", text, against.beyond)
    return CriterionResult(name, "open", text)


def _rise(name: str, limit: float, against: Comparison | None) -> CriterionResult:
    """Whether answers degenerate more than the baseline's, by the same rule as their accuracy."""
    marked = None if against is None else against.rises.get(name)
    if marked is None:
        return CriterionResult(name, "open", "not measured")
    rise, shown = marked.rise, marked.weigh(limit)
    text = rise.shown(100, "+.1f", " points")
    if rise.high <= limit:
        return CriterionResult(name, "met", text, shown.within)
    if rise.low > limit:
        return CriterionResult(name, "missed", text, shown.beyond)
    return CriterionResult(name, "open", text)


def _saved(least: float, against: Comparison | None) -> CriterionResult:
    """Whether it makes so many layer calls less than the baseline: counted, no estimate."""
    name, made = "min_saved_share", None if against is None else against.made.layer_calls
    if against is None or made is None:
        return CriterionResult(name, "open", "nothing to compare with")
    text = f"makes {100 * made:.1f} % of {against.a}'s layer calls"
    return CriterionResult(name, "met" if made <= 1 - least else "missed", text)


def _speedup(least: float, against: Comparison | None, untimed: str) -> CriterionResult:
    """Whether the timing study shows it: noise blocks met and missed alike."""
    name, pair = "min_speedup", None if against is None else against.speed
    if against is None or pair is None:
        return CriterionResult(name, "open", untimed or "speed was not measured")
    most, text = 1 / least, f"{shown(pair.ratio)} of the time"
    if against.floor is None:
        return CriterionResult(name, "open", f"{text} (noise unknown: no A/A cells)")
    if against.collapsed:
        return CriterionResult(name, "open", f"{text} (collapsed)")
    if pair.claim == "faster" and pair.ratio.high <= most:
        return CriterionResult(name, "met", text, _beyond(pair.ratio, most))
    if pair.ratio.low > most and 1 + against.floor < least:
        return CriterionResult(name, "missed", text, _beyond(pair.ratio, most))
    return CriterionResult(name, "open", f"{text} (noise floor {100 * against.floor:.1f} %)")


def _beyond(ratio: Estimate, edge: float) -> float:
    """Two-sided p-value of a ratio against an edge outside its 95 % interval.

    On the logarithmic scale, its error taken as normal on the side of the edge: the interval's end
    there is 1.96 errors away.
    """
    end = ratio.high if edge >= ratio.high else ratio.low
    reach, distance = (abs(math.log(x / ratio.value)) for x in (end, edge))
    return float(2 * norm.sf(norm.ppf((1 + LEVEL) / 2) * distance / reach)) if reach else 0.0

"""The verdict against the proposal's success criteria, cell by cell and then in one sentence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scipy.stats import norm

from fdllm.criteria import ALPHA, INTERVALS, RISES, Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.stats import LEVEL, Estimate, holm
from fdllm.report.times import shown

Outcome = Literal["met", "missed", "open"]
_WORDS: dict[Outcome, str] = {"met": "confirmed", "missed": "refuted", "open": "cannot tell"}


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


# --- over all cells -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """What the report begins with."""

    word: str  # ``confirmed``, ``refuted``, ``cannot tell`` or ``no criteria``
    sentence: str  # the same in a sentence
    criteria: str  # the criteria in words; empty where there are none
    cells: tuple[CellVerdict, ...]  # what it follows from
    # what else a reader must know of it: tasks that take no part and why, criteria that were edited
    notes: tuple[str, ...] = ()


def judge(criteria: Criteria | None, tasks: Sequence[Judged]) -> Judgement:
    """The verdict over all tasks."""
    whole = {task.task for task in tasks if not task.smoke}
    asked = [
        task
        for task in tasks
        if (criteria is None or not criteria.tasks or task.task in criteria.tasks)
        and not (task.smoke and task.task in whole)  # all rows outweigh a few of them
    ]
    notes = [f"{task.task}: {task.lock}." for task in asked if task.lock]
    if criteria is None:
        text = (
            "The experiment names no success criteria (a [criteria] table in experiment.toml), so "
            "there is nothing to judge; the figures stand for themselves."
        )
        return Judgement("no criteria", text, "", (), tuple(notes))
    cells = tuple(
        judge_cell(criteria, task, cell, against)
        for task in asked
        for cell, against in task.cells
        if not criteria.configs or cell.name in criteria.configs
    )
    return _verdict(criteria, asked, cells, notes)


def _verdict(
    criteria: Criteria, asked: Sequence[Judged], cells: tuple[CellVerdict, ...], notes: list[str]
) -> Judgement:
    of: dict[str, list[CriterionResult]] = {}
    for cell in cells:
        if not cell.left_out:
            of.setdefault(cell.config, []).extend(cell.findings)
    undone: dict[str, list[str]] = {}
    for task in asked:
        for name in () if task.left_out or not of else task.missing:
            undone.setdefault(name, []).append(task.task)
    each = _each(criteria, of, undone)
    unseen = sorted(set(criteria.tasks) - {task.task for task in asked})
    outcome = _overall(criteria, [*each.values()])
    if unseen and outcome == "met":
        outcome = "open"
    parts = [
        *_first(criteria, outcome, each, [cell for cell in cells if not cell.left_out]),
        *_by_chance(each, of, undone),
    ]
    if undone:
        places = (f"{name} on {', '.join(on)}" for name, on in undone.items())
        parts.append(f"Not done: {'; '.join(places)}.")
    if unseen:
        parts.append(f"No records yet of {', '.join(unseen)}.")
    if smoke := [task.task for task in asked if task.smoke]:
        parts.append(
            f"Only a smoke test of {', '.join(smoke)}: so few rows confirm and refute nothing."
        )
    notes += [
        f"{task.task} takes no part: {why}."
        for task in asked
        if (why := task.left_out or _nowhere(task, of))
    ]
    return Judgement(_WORDS[outcome], " ".join(parts), criteria.words, cells, tuple(notes))


def _first(
    criteria: Criteria,
    outcome: Outcome,
    each: Mapping[str, Outcome],
    cells: Sequence[CellVerdict],
) -> list[str]:
    """The verdict in a sentence, and what stands in the way."""
    if not cells:
        return ["Nothing that is done takes part in a verdict."]
    if outcome == "met":
        return [f"The criteria are met by {', '.join(c for c in each if each[c] == 'met')}."]
    every = "Not every config meets" if criteria.require == "all" else "No config meets"
    said = f"{every} the criteria." if outcome == "missed" else "The records do not decide it."
    return [said, *_most_missed(cells)]


def _by_chance(
    each: Mapping[str, Outcome],
    of: Mapping[str, Sequence[CriterionResult]],
    undone: Mapping[str, object],
) -> list[str]:
    """Configs whose outcome would be another one if they stood alone."""
    parts = []
    for alone, one, many in (("met", "meets", "meet"), ("missed", "misses", "miss")):
        names = [
            name
            for name, outcome in each.items()
            if outcome == "open" and name not in undone
            if worst([finding.outcome for finding in of[name]]) == alone
        ]
        if names:
            who = f"{', '.join(names)} {one if len(names) == 1 else many} them"
            parts.append(f"Alone {who}; {_CHANCES[alone]}.")
    return parts


_CHANCES = {
    "met": "among all configs that may confirm that can be chance (Holm)",
    "missed": "among all criteria that may refute that can be chance (Bonferroni)",
}


def _nowhere(task: Judged, of: Mapping[str, object]) -> str:
    """Why no config could be judged on a task; empty where one was, or one is not done yet."""
    if task.missing or any(cell.name in of for cell, _ in task.cells):
        return ""
    return next((f"not applicable ({why})" for why in task.not_applicable.values()), "")


def _each(
    criteria: Criteria, of: Mapping[str, list[CriterionResult]], undone: Mapping[str, object]
) -> dict[str, Outcome]:
    """Whether each config meets the criteria on every task, multiplicity allowed for.

    Where any config may confirm, a confirmation must survive Holm's adjustment over them. That a
    config must meet all criteria on all tasks needs none: its largest p-value counts. To be refuted
    one criterion on one task is enough, so those chances share the level, and where all configs
    must meet the criteria, those of all configs do (:meth:`fdllm.criteria.Criteria.levels`).
    """
    each: dict[str, Outcome] = {n: worst([one.outcome for one in of[n]]) for n in of}
    each |= {name: "open" for name in undone if each.get(name) != "missed"}
    largest = [
        max((one.p_value for one in of.get(name, ())), default=1.0) if each[name] == "met" else 1.0
        for name in each
    ]
    adjusted = holm(largest) if criteria.require == "any" else largest
    chances = {n: sum(one.criterion in INTERVALS for one in found) for n, found in of.items()}
    every = sum(chances.values())
    for name, p_value in zip(tuple(each), adjusted, strict=True):
        if each[name] == "met" and p_value > ALPHA:
            each[name] = "open"
        if each[name] == "missed":
            least = min(one.p_value for one in of[name] if one.outcome == "missed")
            number = chances[name] if criteria.require == "any" else every
            each[name] = "missed" if least * max(1, number) <= ALPHA else "open"
    return each


def _overall(criteria: Criteria, each: Sequence[Outcome]) -> Outcome:
    if not each:
        return "open"
    if criteria.require == "all":
        return worst(each)
    if "met" in each:
        return "met"
    return "missed" if set(each) == {"missed"} else "open"


def _most_missed(cells: Sequence[CellVerdict]) -> list[str]:
    """Which criterion stands in the way, and how often."""
    found = [f for cell in cells for f in cell.findings]
    parts = []
    for name in dict.fromkeys(one.criterion for one in found):
        number = Counter(one.outcome for one in found if one.criterion == name)
        ways = (("missed by", number["missed"]), ("open for", number["open"]))
        if what := [f"{way} {times}" for way, times in ways if times]:
            parts.append(f"{name} is {' and '.join(what)} of {len(cells)} cells")
    return [f"{'; '.join(parts)}."] if parts else []

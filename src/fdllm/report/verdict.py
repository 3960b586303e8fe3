"""The verdict against the proposal's success criteria, cell by cell and then in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fdllm.criteria import ALPHA, INTERVALS, Criteria
from fdllm.report.criterion import (
    CellVerdict,
    CriterionResult,
    Judged,
    Outcome,
    judge_cell,
    worst,
)
from fdllm.report.stats import holm

_WORDS: dict[Outcome, str] = {"met": "confirmed", "missed": "refuted", "open": "cannot tell"}


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

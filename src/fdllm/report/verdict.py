"""The verdict against the proposal's success criteria, cell by cell and then in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fdllm.criteria import Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.stats import Estimate

Outcome = Literal["met", "missed", "open"]
_WORDS: dict[Outcome, str] = {"met": "confirmed", "missed": "refuted", "open": "cannot tell"}


@dataclass(frozen=True)
class CriterionResult:
    """One criterion on one cell of one task."""

    criterion: str  # its key in ``[criteria]``
    outcome: Outcome  # met, missed, or open where the sample cannot tell
    text: str  # the figures behind it


@dataclass(frozen=True)
class CellVerdict:
    """All criteria on one cell of one task."""

    task: str
    config: str
    outcome: Outcome
    findings: tuple[CriterionResult, ...]


@dataclass(frozen=True)
class Judgement:
    """What the report begins with."""

    word: str  # ``confirmed``, ``refuted``, ``cannot tell`` or ``no criteria``
    sentence: str  # the same in a sentence
    criteria: str  # the criteria in words; empty where there are none
    cells: tuple[CellVerdict, ...]  # what it follows from


@dataclass(frozen=True)
class Judged:
    """What judging a task needs."""

    task: str  # the task
    smoke: bool  # whether only some of its rows were run
    # the cell that the others are compared with; None where none is done
    baseline: CellFigures | None
    cells: Sequence[tuple[CellFigures, Comparison | None]]  # the others, each with its comparison


def judge(criteria: Criteria | None, tasks: Sequence[Judged]) -> Judgement:
    """The verdict over all tasks."""
    if criteria is None:
        return Judgement(
            "no criteria",
            "The experiment names no success criteria (a [criteria] table in experiment.toml), so "
            "there is nothing to judge; the figures stand for themselves.",
            "",
            (),
        )
    whole = {task.task for task in tasks if not task.smoke}
    asked = [
        task
        for task in tasks
        if (not criteria.tasks or task.task in criteria.tasks)
        and not (task.smoke and task.task in whole)  # all rows outweigh a few of them
    ]
    cells = [
        _judge_cell(criteria, task, cell, against)
        for task in asked
        for cell, against in task.cells
        if not criteria.configs or cell.name in criteria.configs
    ]
    of: dict[str, list[Outcome]] = {}
    for cell in cells:
        of.setdefault(cell.config, []).append(cell.outcome)
    each = {config: _worst(outcomes) for config, outcomes in of.items()}
    missing = sorted(set(criteria.tasks) - {task.task for task in asked})
    smoke = [task.task for task in asked if task.smoke]
    outcome = _overall(criteria, [*each.values()])
    if missing and outcome == "met":
        outcome = "open"
    parts = []
    if not cells:
        parts.append("No finished cell can be judged yet.")
    elif outcome == "met":
        parts.append(f"The criteria are met by {', '.join(c for c in each if each[c] == 'met')}.")
    else:
        every = "Not every config meets" if criteria.require == "all" else "No config meets"
        missed = outcome == "missed"
        parts.append(f"{every} the criteria." if missed else "The records do not decide it.")
        parts += _most_missed(cells)
    if missing:
        parts.append(f"No records yet of {', '.join(missing)}.")
    if smoke:
        parts.append(
            f"Only a smoke test of {', '.join(smoke)}: so few rows confirm and refute nothing."
        )
    return Judgement(_WORDS[outcome], " ".join(parts), criteria.words, tuple(cells))


def _overall(criteria: Criteria, each: Sequence[Outcome]) -> Outcome:
    if not each:
        return "open"
    if criteria.require == "all":
        return _worst(each)
    if "met" in each:
        return "met"
    return "missed" if set(each) == {"missed"} else "open"


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """All must be met; one that is missed decides."""
    if "missed" in outcomes:
        return "missed"
    return "open" if "open" in outcomes else "met"


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


def _judge_cell(
    criteria: Criteria, task: Judged, cell: CellFigures, against: Comparison | None
) -> CellVerdict:
    found: list[CriterionResult] = []
    if criteria.max_accuracy_drop is not None:
        change = None if against is None else against.difference
        least = -criteria.max_accuracy_drop
        found.append(_interval("max_accuracy_drop", change, least, (100, "+.1f", " points")))
    if criteria.min_speedup is not None:
        found.append(_speedup(criteria.min_speedup, against))
    if criteria.min_saved_share is not None:
        met = cell.saved_share >= criteria.min_saved_share
        text = f"{100 * cell.saved_share:.1f} % of layer calls saved"
        found.append(CriterionResult("min_saved_share", "met" if met else "missed", text))
    for sign in ("truncation", "repetition"):  # of degeneration, against the baseline's
        limit = getattr(criteria, f"max_{sign}_rise")
        now, then = getattr(cell, sign), getattr(task.baseline, sign, None)
        if limit is None:
            continue
        outcome: Outcome = "open"
        text = "not measured"
        if now is not None and then is not None:
            outcome = "met" if now - then <= limit else "missed"
            text = f"{100 * (now - then):+.1f} points"
        found.append(CriterionResult(f"max_{sign}_rise", outcome, text))
    if task.smoke:
        found = [CriterionResult(f.criterion, "open", f"{f.text} (smoke test)") for f in found]
    outcome = _worst([finding.outcome for finding in found])
    return CellVerdict(task.task, cell.name, outcome, tuple(found))


def _speedup(least: float, against: Comparison | None) -> CriterionResult:
    """Whether the timing study shows it: noise blocks met and missed alike."""
    name, pair = "min_speedup", None if against is None else against.speed
    if against is None or pair is None:
        return CriterionResult(name, "open", "speed was not measured")
    most, text = 1 / least, f"{pair.ratio.shown()} of the time"
    if against.floor is None:
        return CriterionResult(name, "open", f"{text} (noise unknown: no A/A cells)")
    if against.collapsed:
        return CriterionResult(name, "open", f"{text} (collapsed)")
    if pair.claim == "faster" and pair.ratio.high <= most:
        return CriterionResult(name, "met", text)
    if pair.ratio.low > most and 1 + against.floor < least:
        return CriterionResult(name, "missed", text)
    return CriterionResult(name, "open", f"{text} (noise floor {100 * against.floor:.1f} %)")


def _interval(
    name: str, figure: Estimate | None, least: float, form: tuple[float, str, str]
) -> CriterionResult:
    """Whether an estimate lies above ``least``, its whole interval with it."""
    if figure is None:
        return CriterionResult(name, "open", "nothing to compare with")
    scale, digits, unit = form
    outcome: Outcome = "met" if figure.low >= least else "missed" if figure.high < least else "open"
    return CriterionResult(name, outcome, f"{figure.shown(scale, digits)}{unit}")

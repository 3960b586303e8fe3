"""The verdict against the proposal's success criteria, cell by cell and then in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fdllm.experiment.settings import Criteria
from fdllm.report.compare_text import Comparison
from fdllm.report.measured import Measured
from fdllm.report.stats import Estimate

Outcome = Literal["met", "missed", "open"]
_WORDS: dict[Outcome, str] = {"met": "confirmed", "missed": "refuted", "open": "cannot tell"}


@dataclass(frozen=True)
class CriterionResult:
    """One criterion on one cell of one task.

    Attributes:
        criterion: its key in ``[criteria]``.
        outcome: met, missed, or open where the sample cannot tell.
        text: the figures behind it.
    """

    criterion: str
    outcome: Outcome
    text: str


@dataclass(frozen=True)
class CellVerdict:
    """All criteria on one cell of one task."""

    task: str
    config: str
    outcome: Outcome
    findings: tuple[CriterionResult, ...]


@dataclass(frozen=True)
class Judgement:
    """What the report begins with.

    Attributes:
        word: ``confirmed``, ``refuted``, ``cannot tell`` or ``no criteria``.
        sentence: the same in a sentence.
        criteria: the criteria in words; empty where there are none.
        cells: what it follows from.
    """

    word: str
    sentence: str
    criteria: str
    cells: tuple[CellVerdict, ...]


@dataclass(frozen=True)
class Judged:
    """What judging a task needs.

    Attributes:
        task: the task.
        smoke: whether only some of its rows were run.
        baseline: the cell that the others are compared with; None where none is done.
        cells: the others, each with its comparison.
    """

    task: str
    smoke: bool
    baseline: Measured | None
    cells: Sequence[tuple[Measured, Comparison | None]]


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
    cells = tuple(
        _judge_cell(criteria, task, cell, against)
        for task in asked
        for cell, against in task.cells
        if not criteria.configs or cell.name in criteria.configs
    )
    missing = sorted(set(criteria.tasks) - {task.task for task in asked})
    smoke = [task.task for task in asked if task.smoke]
    outcome = _overall(criteria, cells)
    if missing and outcome == "met":
        outcome = "open"
    return Judgement(
        _WORDS[outcome], _sentence(outcome, criteria, cells, missing, smoke), criteria.words, cells
    )


def _overall(criteria: Criteria, cells: Sequence[CellVerdict]) -> Outcome:
    configs = list(dict.fromkeys(cell.config for cell in cells))
    if not configs:
        return "open"
    each = [_worst([c.outcome for c in cells if c.config == config]) for config in configs]
    if criteria.require == "all":
        return _worst(each)
    if "met" in each:
        return "met"
    return "missed" if all(outcome == "missed" for outcome in each) else "open"


def _worst(outcomes: Sequence[Outcome]) -> Outcome:
    """All must be met; one that is missed decides."""
    if "missed" in outcomes:
        return "missed"
    return "open" if "open" in outcomes else "met"


def _sentence(
    outcome: Outcome,
    criteria: Criteria,
    cells: Sequence[CellVerdict],
    missing: Sequence[str],
    smoke: Sequence[str],
) -> str:
    configs = list(dict.fromkeys(cell.config for cell in cells))
    met = [c for c in configs if _worst([v.outcome for v in cells if v.config == c]) == "met"]
    parts = []
    if not cells:
        parts.append("No finished cell can be judged yet.")
    elif outcome == "met":
        parts.append(f"The criteria are met by {', '.join(met)}.")
    elif outcome == "missed":
        parts.append(
            "No config meets the criteria."
            if criteria.require == "any"
            else "Not every config meets the criteria."
        )
        parts.append(_most_missed(cells))
    else:
        parts.append("The records do not decide it.")
        parts.append(_most_missed(cells))
    if missing:
        parts.append(f"No records yet of {', '.join(missing)}.")
    if smoke:
        parts.append(
            f"Only a smoke test of {', '.join(smoke)}: so few rows confirm and refute nothing."
        )
    return " ".join(part for part in parts if part)


def _most_missed(cells: Sequence[CellVerdict]) -> str:
    """Which criterion stands in the way, and how often."""
    found = [f for cell in cells for f in cell.findings]
    parts = []
    for name in dict.fromkeys(finding.criterion for finding in found):
        missed = sum(f.criterion == name and f.outcome == "missed" for f in found)
        still_open = sum(f.criterion == name and f.outcome == "open" for f in found)
        if missed or still_open:
            what = [f"missed by {missed}"] if missed else []
            what += [f"open for {still_open}"] if still_open else []
            parts.append(f"{name} is {' and '.join(what)} of {len(cells)} cells")
    return "; ".join(parts) + "." if parts else ""


def _judge_cell(
    criteria: Criteria, task: Judged, cell: Measured, against: Comparison | None
) -> CellVerdict:
    found: list[CriterionResult] = []
    drop, speed = criteria.max_accuracy_drop, criteria.min_speedup
    if drop is not None:
        change = None if against is None else against.difference
        found.append(_interval("max_accuracy_drop", change, -drop, 100, " points"))
    if speed is not None:
        times = None if against is None else against.speed
        ratio = None if times is None else times.ratio
        finding = _interval("min_speedup", ratio, speed, 1, " times")
        if finding.outcome == "met" and against and times and times.claim != "faster":
            why = (
                "collapsed" if against.collapsed
                else "noise unknown: no A/A cells" if times.floor is None
                else f"within the noise floor of {100 * times.floor.floor:.1f} %"
            )  # fmt: skip
            finding = CriterionResult(finding.criterion, "open", f"{finding.text} ({why})")
        found.append(finding)
    if criteria.min_saved_share is not None:
        met = cell.saved_share >= criteria.min_saved_share
        text = f"{100 * cell.saved_share:.1f} % of layer calls saved"
        found.append(CriterionResult("min_saved_share", "met" if met else "missed", text))
    found += _rises(criteria, cell, task.baseline)
    if task.smoke:
        found = [CriterionResult(f.criterion, "open", f"{f.text} (smoke test)") for f in found]
    outcome = _worst([finding.outcome for finding in found])
    return CellVerdict(task.task, cell.name, outcome, tuple(found))


def _rises(criteria: Criteria, cell: Measured, base: Measured | None) -> list[CriterionResult]:
    """Signs of degeneration, against the baseline's."""
    wanted = (
        ("max_truncation_rise", cell.truncation, None if base is None else base.truncation),
        ("max_repetition_rise", cell.repetition, None if base is None else base.repetition),
    )
    found = []
    for name, now, then in wanted:
        limit: float | None = getattr(criteria, name)
        if limit is None:
            continue
        if now is None or then is None:
            found.append(CriterionResult(name, "open", "not measured"))
            continue
        text = f"{100 * (now - then):+.1f} points"
        found.append(CriterionResult(name, "met" if now - then <= limit else "missed", text))
    return found


def _interval(
    name: str, figure: Estimate | None, least: float, scale: float, unit: str
) -> CriterionResult:
    """Whether an estimate lies above ``least``, its whole interval with it."""
    if figure is None:
        return CriterionResult(name, "open", "nothing to compare with")
    digits, sign = (1, "+") if scale != 1 else (2, "")
    text, low, high = (
        f"{scale * end:{sign}.{digits}f}" for end in (figure.value, figure.low, figure.high)
    )
    outcome: Outcome = "met" if figure.low >= least else "missed" if figure.high < least else "open"
    return CriterionResult(name, outcome, f"{text} [{low}, {high}]{unit}")

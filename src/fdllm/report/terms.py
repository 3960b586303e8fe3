"""What the criteria can decide on a task, and whether they stood before its rows did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from fdllm import tiny
from fdllm.criteria import NO_CRITERIA, Criteria, criteria_lock, criteria_text
from fdllm.errors import UsageError
from fdllm.evaluate.tasks import TASKS
from fdllm.plan import Planner
from fdllm.record.summary import Summary
from fdllm.runs import Cell, Sweep

_ROWS = {
    "gsm8k": 1319,
    "minerva_math": 5000,
    "mmlu": 14042,
    "gpqa_main_n_shot": 448,
    "ifeval": 541,
    "humaneval": 164,
    "humaneval_instruct": 164,
    "humaneval_plus": 164,
    "mbpp": 500,
    "mbpp_instruct": 500,
    "mbpp_plus": 378,
    "mbpp_plus_instruct": 378,
}
"""Documents of the Hub's test sets, so that a margin can be judged before anything is fetched."""


def num_rows(task: str) -> int | None:
    """Documents of a task; None until its data is there."""
    info = TASKS.get(task)
    if info is None or info.dataset is not None:
        return _ROWS.get(task)
    files = [tiny.TASKS / name for name in info.sources if name.endswith(".jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in files) or None


def undecidable(criteria: Criteria, rows: int) -> str:
    """Why so many rows cannot decide the margin of accuracy; empty where they can."""
    from fdllm.report.margins import rows_needed  # noqa: PLC0415 - scipy; each command imports this

    if criteria.max_accuracy_drop is None:
        return ""
    needed = rows_needed(criteria.max_accuracy_drop, criteria.discordant_share)
    if needed is not None and rows >= needed:
        return ""
    return f"not decidable by {rows:,} rows, " + (
        "and no number of them decides a margin of 0" if needed is None else f"needs {needed:,}"
    )


def lock_words(criteria: Criteria | None, summaries: Iterable[Summary]) -> str:
    """How many rows of a task were answered before the criteria were what they are.

    Empty where all of them came later, as they should, or where there have never been any criteria.
    """
    now, none = criteria_lock(criteria_text(criteria)), criteria_lock(NO_CRITERIA)
    rows, unlocked = Counter[str](), 0
    for one in summaries:
        by_lock = one.provenance.get("criteria") or {}
        rows.update(by_lock)
        unlocked += max(0, one.headline.num_samples - sum(by_lock.values()))
    earlier = {lock: number for lock, number in rows.items() if lock != now}
    after = f"after {sum(earlier.values()):,} rows"
    if criteria is None:
        return f"criteria taken out {after}" if earlier else ""
    parts = ["criteria were not locked when these rows were computed"] if unlocked else []
    if earlier:
        verb = "stated" if set(earlier) == {none} else "changed"
        parts.append(f"criteria {verb} {after}")
    return "; ".join(parts)


# --- before a run ---------------------------------------------------------------------------------


def check_criteria(planner: Planner, sweep: Sweep) -> None:
    """Refuse criteria that name what is not there, or a config that they cannot touch.

    Raises:
        UsageError: a name is unknown (the message lists those that exist), a config is its own
            rival, or only repeats what the baseline computes.
    """
    experiment = planner.experiment(sweep.experiment)
    criteria = experiment.settings.criteria
    if criteria is None:
        return
    for name in criteria.names:
        experiment.cell(name)
    for task in criteria.tasks:
        planner.task(task)
    if isinstance(criteria.rival, dict):
        for name, rival in criteria.rival.items():
            if name == rival:
                raise UsageError(f"[criteria] rival: {name} cannot be its own rival; name another")
    base, judged = (
        baseline_cell(criteria, experiment.cells),
        judged_cells(criteria, experiment.cells),
    )
    run = partial(planner.run, sweep, sweep.tasks[0])
    again = [c.name for c in judged if base and planner.are_twins(run(c.name), run(base.name))]
    if again:
        raise UsageError(
            f"[criteria] of {sweep.experiment} names {', '.join(again)}: what the baseline "
            "computes, once more, which no criterion can tell from it; name other configs"
        )


def baseline_cell(criteria: Criteria, grid: Sequence[Cell]) -> Cell | None:
    """The cell that the others are compared with: the named one, else the first of k = 1."""
    named = criteria.baseline
    return next((c for c in grid if (c.k == 1 if named is None else c.name == named)), None)


def judged_cells(criteria: Criteria, grid: Sequence[Cell]) -> list[Cell]:
    """The cells of a grid that may meet the criteria.

    Those that are named; else all but the rivals, the baseline, and what is its computation once
    more.
    """
    if criteria.configs:
        return [cell for cell in grid if cell.name in criteria.configs]
    base = baseline_cell(criteria, grid)
    return [
        cell
        for cell in grid
        if cell.name not in criteria.rivals
        and not (base and cell.k == base.k == 1 and cell.decoding == base.decoding)
        and cell is not base
    ]


def before(planner: Planner, sweep: Sweep) -> dict[str, str]:
    """Why a task of a sweep will take no part in the verdict, by task; the others are left out.

    A few rows (``--limit``) decide nothing, so nothing is said of them.
    """
    experiment = planner.experiment(sweep.experiment)
    criteria = experiment.settings.criteria
    if criteria is None or sweep.limit is not None:
        return {}
    found = {}
    for task in sweep.tasks:
        if criteria.tasks and task not in criteria.tasks:
            continue
        judged = judged_cells(criteria, experiment.cells)
        why = [planner.not_applicable(planner.run(sweep, task, cell.name)) for cell in judged]
        rows = num_rows(task)
        if why and all(why):
            found[task] = f"not applicable: {why[0]}"
        elif rows is None and criteria.max_accuracy_drop is not None:
            found[task] = "whether its rows can decide is unknown until the data is there"
        elif rows is not None and (cannot := undecidable(criteria, rows)):
            found[task] = cannot
    return found

"""What the commands print. Tables for people, JSON where it is asked for."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from rich.text import Text

from fdllm.cli.output import complain, console, say, say_json
from fdllm.cli.request import SweepRequest
from fdllm.cli.work import PlannedCell
from fdllm.cluster.exit_reason import LOCKED
from fdllm.cluster.left_behind import left_behind
from fdllm.cluster.queue import JobId, environment
from fdllm.cluster.submission import MERGE, STUDY, WORK, Submission, kind
from fdllm.cluster.submit import sbatch_command
from fdllm.criteria import Criteria
from fdllm.evaluate.attempt import RunOutcome
from fdllm.plan import ENDED, SETTLED, CellState, State
from fdllm.record.paths import RunPaths, TaskFolder
from fdllm.report.grid import overlap_sentence
from fdllm.report.records import finished
from fdllm.report.table import cell_checks, figures_table, heading
from fdllm.report.terms import before, check_criteria, lock_words, undecidable
from fdllm.runs import Run, home_model
from fdllm.timing.wanted import is_due, study_words

JSON_VERSION = 1
_COLOURS = {"✓": "green", "✗": "red", "!": "yellow"}


def by_task(cells: Sequence[CellState]) -> Iterator[list[CellState]]:
    """The cells of one task after the other."""
    for _, group in groupby(cells, key=lambda cell: cell.run.task):
        yield list(group)


def print_json(cells: Sequence[CellState], timed: Sequence[CellState] = ()) -> None:
    """The cells, how many are in each state, and the timing studies."""
    counts = Counter(cell.state.value for cell in cells)
    data = {
        "version": JSON_VERSION,
        "counts": {state.value: counts.get(state.value, 0) for state in State},
        "cells": [cell.as_dict() for cell in cells],
        "timing": [study_dict(cell) for cell in timed],
    }
    say_json(data)


def study_dict(cell: CellState) -> dict[str, Any]:
    """JSON form of a timing study's state."""
    whole = cell.as_dict()
    names = ("experiment", "task", "limit", "model", "preset", "state", "reason", "log", "job")
    return {name: whole[name] for name in names} | {"docs": cell.done, "folder": whole["folder"]}


def cells(
    cells: Sequence[CellState],
    criteria: Criteria | None,
    timed: Sequence[CellState] = (),
    *,
    as_json: bool,
) -> bool:
    """Figures of every cell, what the criteria can decide, timing studies, how many are done.

    Returns:
        Whether the A/A check holds.
    """
    groups = [(group, cell_checks(group)) for group in by_task(cells)]
    agree = not any(one.kind == "twins-differ" for _, found in groups for one in found)
    if as_json:
        print_json(cells, timed)
        return agree
    out = console()
    for group, found in groups:
        out.print(heading(group), style="bold")
        out.print(figures_table(group, None if criteria is None else criteria.baseline))
        for text in remarks(group, criteria):
            out.print(Text(f"! {text}", style="yellow"))
        for one in found:
            out.print(Text(f"{one.mark} {one.text}", style=_COLOURS[one.mark]))
        for cell in group:
            if cell.state not in SETTLED:
                reason = f"  {cell.run.cell.name} {cell.state.value}: {cell.reason}"
                out.print(reason, style="yellow")
        for study in timed:
            if study.run.task == group[0].run.task:
                out.print(study_words(study))
        out.print()
    out.print(tally(cells))
    return agree


def plan(
    cells: Sequence[CellState],
    work: Sequence[PlannedCell],
    timed: Sequence[CellState] = (),
    *,
    as_json: bool,
) -> None:
    """What would run and why, cell by cell, and then study by study."""
    chosen = {id(one.cell): one for one in work}
    if as_json:
        steps = [
            cell.as_dict()
            | {
                "would_run": id(cell) in chosen,
                "why": chosen[id(cell)].why if id(cell) in chosen else _why_not(cell),
            }
            for cell in cells
        ]
        due = [study_dict(cell) | {"would_run": is_due(cell)} for cell in timed]
        data = {"version": JSON_VERSION, "cells": steps, "timing": due}
        say_json(data)
        return
    for cell in cells:
        one = chosen.get(id(cell))
        verb, why = ("run ", one.why) if one else ("skip", _why_not(cell))
        say(f"{verb} {cell.run}: {why}")
    for study in timed:
        verb = "run " if is_due(study) else "skip"
        say(f"{verb} {study.run.experiment} / {study.run.task} / {study_words(study)}")
    say(f"would run {len(work)} of {len(cells)}; nothing was run")


def _why_not(cell: CellState) -> str:
    return cell.state.value + (f": {cell.reason}" if cell.reason else "")


def nothing_to_do(cells: Sequence[CellState], *, as_json: bool) -> None:
    """Every cell is done, or somebody else is at it."""
    if as_json:
        return
    busy = [cell for cell in cells if cell.state not in ENDED]
    if all(cell.state is State.NOT_APPLICABLE for cell in cells):
        say(f"nothing to do: not applicable: {cells[0].reason}")
    elif busy:
        say(f"nothing to do here: {len(busy)} of {len(cells)} runs are being computed elsewhere")
    else:
        say(f"nothing to do: all {len(cells)} runs are done (--force computes them anew)")


def unknown(cells: Sequence[CellState]) -> None:
    """Say of which jobs nobody knows whether they are in the queue."""
    handed = [cell.reason for cell in cells if cell.state is State.QUEUED and cell.job is None]
    for reason in dict.fromkeys(handed):
        complain(f"warning: {reason}")


def overlaps(request: SweepRequest, *, quiet: bool = False) -> None:
    """Say which subsets share layers."""
    n_layers = request.planner.model(request.sweep.model).n_layers
    sentence = overlap_sentence(request.planner.overlaps(request.sweep), n_layers or 0)
    if sentence and not quiet:
        complain(f"note: {sentence}")


def terms(request: SweepRequest) -> None:
    """Say which tasks will take no part in the verdict, before anything runs.

    Raises:
        UsageError: the criteria name what is not there, or what cannot meet them.
    """
    check_criteria(request.planner, request.sweep)
    for task, why in before(request.planner, request.sweep).items():
        complain(f"note: {task} takes no part in the verdict: {why}")


def remarks(cells: Sequence[CellState], criteria: Criteria | None) -> list[str]:
    """What keeps the records of one task from deciding, and whether the criteria were locked."""
    done = [record.summary for record in finished(cells)]
    if not done:
        return []
    rows = max(one.headline.num_samples for one in done)
    judged = criteria is not None and cells[0].run.limit is None
    few = undecidable(criteria, rows) if judged and criteria is not None else ""
    return [text for text in (few, lock_words(criteria, done)) if text]


def elsewhere(requests: Sequence[SweepRequest]) -> None:
    """Point at records that these selections do not cover."""
    sweep, layout = requests[0].sweep, requests[0].planner.layout
    covered = {str(TaskFolder.of(run)) for request in requests for run in request.runs}
    hints = []
    for folder in layout.task_folders(sweep.experiment):
        limit = "" if folder.limit is None else f" --limit {folder.limit}"
        preset = "" if folder.preset is None else f" --preset {folder.preset}"
        if str(folder) not in covered:
            model = folder.model or home_model(folder.task)
            hints.append(f"--task {folder.task} --model {model}{limit}{preset}")
    if hints:
        say("other records: " + "; ".join(hints[:6]) + (" …" if len(hints) > 6 else ""))  # noqa: PLR2004


def what_is_left(cells: Sequence[CellState]) -> None:
    """What to do about cells that are not done."""
    left = [cell for cell in cells if cell.state not in ENDED]
    if left:
        states = Counter(cell.state.value for cell in left)
        parts = ", ".join(f"{number} {state}" for state, number in states.items())
        say(f"{parts}: the same command tries again; fdllm status shows the reasons")


def verdict(code: int) -> None:
    """How the validation went, and what comes next."""
    if code:
        say("validation FAILED: see the reasons above")
        return
    say(
        "validation passed. Ten rows say that everything works, and nothing about accuracy. Next:\n"
        "  nox -s sweep -- --model tiny             all rows on the embedded model, minutes\n"
        "  nox -s sweep -- --task gsm8k --limit 10  the 7B model (needs a GPU and the download)\n"
        "  nox -s sweep -- --task mmlu              the full thing\n"
        "  nox -s report -- --model tiny            writes experiments/00_baseline/results.md"
    )


def exit_code(cells: Sequence[CellState], outcomes: Sequence[RunOutcome], *, agree: bool) -> int:
    """1 where a run failed, a cell is broken, or the A/A check does not hold.

    Else 76 where another process works on what was to be computed, else 0.
    """
    failed = any(outcome.state is State.FAILED for outcome in outcomes)
    broken = any(cell.state in (State.FAILED, State.INVALID) for cell in cells)
    held = any(cell.state is State.RUNNING for cell in cells)
    return 1 if failed or broken or not agree else LOCKED if held else 0


def held(run: Run, paths: RunPaths, by: str) -> None:
    """Who works on a run, so that nothing was done; what to do where they may be gone."""
    complain(f"{run}: nothing was done, as its folder is {left_behind(paths) or f'held by {by}'}")


def tally(cells: Sequence[CellState]) -> str:
    """How many cells are done."""
    done = sum(cell.state is State.DONE for cell in cells)
    skipped = sum(cell.state is State.NOT_APPLICABLE for cell in cells)
    decided = [c.summary.decided for c in cells if c.summary and c.state is State.DECIDED]
    saved = sum(one.saved for one in decided if one is not None)
    return (
        f"{done} of {len(cells) - skipped} done"
        + (f", {len(decided)} decided, which saved {saved} rows" if decided else "")
        + (f", {skipped} not applicable" if skipped else "")
    )


def scripts(submissions: Sequence[Submission]) -> None:
    """The job scripts of what would be submitted, and the commands."""
    own = [f"{name}={text}" for name, text in environment().items() if name.startswith("SBATCH_")]
    for one in submissions:
        for name, text in one.scripts.items():
            say(f"\n# {one.folder / name}\n{text}")
        ahead: dict[str, JobId | None] = {}
        for name in one.scripts:
            command = sbatch_command(replace(one, jobs=ahead), name)
            ahead[name] = JobId(f"JOB_OF_{name}")
            say(shlex.join([*own, *command]))


def submitted(submission: Submission) -> str:
    """A line about what was submitted."""
    run = submission.assignments[0].run
    jobs: dict[str, list[JobId]] = {WORK: [], MERGE: [], STUDY: []}
    for script, job in submission.jobs.items():
        if job is not None:
            jobs[kind(script)].append(job)
    names = {what: ", ".join(map(str, ids)) for what, ids in jobs.items()}
    num_runs = len({one.name for one in submission.assignments if one.study is None})
    parts = sum(kind(one.script) == WORK for one in submission.assignments)
    told = []
    if jobs[WORK]:
        split = f" in {parts} shards, merged by {names[MERGE]}" if jobs[MERGE] else ""
        told.append(f"job {names[WORK]}, {num_runs} run{'s' * (num_runs != 1)}{split}")
    if jobs[STUDY]:
        told.append(f"job {names[STUDY]}, the timing study")
    first = next(job for ids in jobs.values() for job in ids)
    log = submission.log_folder(0).parent / "*" / f"slurm_{first.number}_*.log"
    return f"submitted {run.experiment} / {TaskFolder.of(run)}: {'; '.join(told)}; logs in {log}"

"""``fdllm export --format``: records in the forms that other tools of the field read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fdllm.plan import Planner
from fdllm.release.choose import Allowance
from fdllm.release.draft import choose_checked, drafted, refuse_used
from fdllm.release.harness_log import harness_log, write_lm_eval
from fdllm.release.release import Release
from fdllm.report.records import Record, load_record
from fdllm.runs import Run, Sweep

Writer = Callable[[Record, Run, Path], None]
"""Writes a record into the folder of a draft that is the cell's own."""


def _lm_eval(record: Record, run: Run, folder: Path) -> None:
    write_lm_eval(harness_log(record, run), folder)


WRITERS: Mapping[str, Writer] = {"lm-eval": _lm_eval}


def export_format(
    planner: Planner,
    sweeps: Sequence[Sweep],
    out: Path,
    *,
    name: str,
    allowed: frozenset[Allowance] = frozenset(),
) -> Release:
    """Write an experiment's records in another tool's form, ``<task folder>/<config>/…``.

    Args:
        planner: knows the checkout and the records.
        sweeps: tables of one experiment, each of one task, limit and model.
        out: the folder to make; it must not exist, or be empty.
        name: of the form, a key of :data:`WRITERS`.
        allowed: defects to take as they are.

    Raises:
        UsageError: the folder is in use, or programs may not be run.
        FdllmError: a record is damaged or refused, or lacks what the form asks for.
    """
    refuse_used(out)
    chosen = choose_checked(planner, sweeps, allowed)
    with drafted(planner, out, allowed) as draft:
        for cell, _ in chosen.records:
            folder = cell.paths.folder
            WRITERS[name](load_record(folder), cell.run, draft / folder.parent.name / folder.name)
    return Release(out, len(chosen.records), chosen.remarks)

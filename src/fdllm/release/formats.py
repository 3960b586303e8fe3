"""``fdllm export --format``: records in the forms that other tools of the field read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fdllm.plan import Planner
from fdllm.release.choose import Allowance
from fdllm.release.draft import drafted
from fdllm.release.every_eval import write_every_eval
from fdllm.release.harness_log import HarnessLog, harness_log, write_lm_eval
from fdllm.release.hub_eval_results import write_hub_eval_results
from fdllm.release.inspect_log import write_inspect
from fdllm.release.release import Release
from fdllm.report.records import Record, load_record
from fdllm.runs import Run, Sweep

Writer = Callable[[Record, Run, Path], None]
"""Writes a record into the folder of a draft that is the cell's own."""


def _logged(write: Callable[[HarnessLog, Path], None]) -> Writer:
    return lambda record, run, folder: write(harness_log(record, run), folder)


WRITERS: Mapping[str, Writer] = {
    "lm-eval": _logged(write_lm_eval),
    "every-eval-ever": _logged(write_every_eval),
    "hub-eval-results": lambda record, _, folder: write_hub_eval_results(record, folder),
    "inspect": _logged(write_inspect),
}


def export_format(
    planner: Planner,
    sweeps: Sequence[Sweep],
    out: Path,
    *,
    name: str,
    allowed: frozenset[Allowance] = frozenset(),
) -> Release:
    """Write an experiment's records in another tool's form, ``<task folder>/<config>/…``.

    ``name`` is that of the form, a key of :data:`WRITERS`; the rest is :func:`drafted`'s.

    Raises:
        UsageError: the folder is in use, or programs may not be run.
        FdllmError: a record is damaged or refused, or lacks what the form asks for.
    """
    with drafted(planner, sweeps, out, allowed) as (draft, chosen):
        for cell, _ in chosen.records:
            folder = cell.paths.folder
            WRITERS[name](load_record(folder), cell.run, draft / folder.parent.name / folder.name)
    return Release(out, len(chosen.records), chosen.remarks)

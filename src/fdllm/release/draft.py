"""What is to be shared: checked first, written beside its place, moved there once it is whole."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fdllm.errors import FdllmError, UsageError, few
from fdllm.plan import Planner
from fdllm.record.atomic import explained
from fdllm.release.choose import SHOWN, Allowance, Chosen, choose
from fdllm.release.files import names_in, text_of
from fdllm.release.scrub import check_texts, places
from fdllm.report.recheck import recheck_records
from fdllm.report.sums import check_studies
from fdllm.runs import Sweep


def _choose_checked(
    planner: Planner, sweeps: Sequence[Sweep], allowed: frozenset[Allowance]
) -> Chosen:
    """The records of some tables, each computed anew, with the timing studies beside them.

    Raises:
        FdllmError: a record is damaged, or :func:`choose` refuses.
    """
    tables = [[planner.state(run) for run in planner.runs(sweep)] for sweep in sweeps]
    chosen = choose(tables, allowed)
    folders = [cell.paths.folder for cell, _ in chosen.records]
    found = check_studies(planner.layout, folders)
    found += recheck_records(planner, folders, [cell.run for cell, _ in chosen.records])
    if found.differences:
        raise FdllmError(
            f"not exported: {few(found.differences, SHOWN, '; ')}. fdllm report --check shows "
            "them; fdllm sweep --force CONFIG computes a cell anew"
        )
    return chosen


@contextmanager
def drafted(
    planner: Planner, sweeps: Sequence[Sweep], out: Path, allowed: frozenset[Allowance]
) -> Iterator[tuple[Path, Chosen]]:
    """A folder to fill with checked records, which becomes ``out`` where all in it may leave.

    Args:
        planner: knows the checkout and the records.
        sweeps: tables of one experiment, each of one task, limit and model.
        out: the folder to make; it must not exist, or be empty.
        allowed: defects to take as they are.

    Raises:
        UsageError: the folder is in use.
        FdllmError: a record is damaged, :func:`choose` or :func:`check_texts` refuses, or the disk
            is full; nothing is left.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already; name another folder with --out, or move it away")
    chosen = _choose_checked(planner, sweeps, allowed)
    with explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
        try:
            yield draft, chosen
            check_texts(
                ((name, text_of(draft / name)) for name in names_in(draft)),
                places(planner.root, planner.layout.results, out.parent),
                allow_places="places" in allowed,
            )
            draft.chmod(0o755)
            if out.exists():
                out.rmdir()
            draft.rename(out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

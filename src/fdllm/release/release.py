"""``fdllm export``: records that stand by themselves, to be checked on another machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fdllm.errors import FdllmError
from fdllm.outside import read_text
from fdllm.plain import escaped
from fdllm.plan import Planner
from fdllm.record.atomic import write_text
from fdllm.record.paths import TIMING, Layout
from fdllm.record.per_document import MOST
from fdllm.record.summary import Summary, is_published
from fdllm.release.choose import Allowance
from fdllm.release.crate import write_metadata
from fdllm.release.draft import drafted
from fdllm.release.files import copy, copy_pages, copy_record, names_in, rename
from fdllm.report.alternative import CONTROLS
from fdllm.report.build import make_report
from fdllm.report.html import render_html
from fdllm.report.records import html_path, record_folders
from fdllm.report.results_md import render_results
from fdllm.runs import Sweep

_HOUSE = ("requirements.lock", "CITATION.cff", "LICENSE")
SUMS, RESULTS = "SHA256SUMS", "results.md"


@dataclass(frozen=True)
class Release:
    """A folder that was written."""

    folder: Path  # where
    num_cells: int  # records in it
    remarks: tuple[str, ...]  # what it lacks, and what was taken as it is


def export(
    planner: Planner,
    sweeps: Sequence[Sweep],
    out: Path,
    *,
    version: str,
    selection: str,
    allowed: frozenset[Allowance] = frozenset(),
) -> Release:
    """Write a release of an experiment's records.

    ``version`` is this package's, ``selection`` the flags that chose the tables, which the
    release's ``results.md`` names; the rest is :func:`drafted`'s.

    Raises:
        UsageError: the folder is in use.
        FdllmError: a record is damaged or refused, or the disk is full.
    """
    with drafted(planner, sweeps, out, allowed) as (draft, chosen):
        folders = [cell.paths.folder for cell, _ in chosen.records]
        remarks = [*chosen.remarks, *_fill(draft, planner, sweeps, folders, selection)]
        _describe(draft, sweeps[0].experiment, remarks, version)
    return Release(out, len(folders), tuple(remarks))


def _fill(
    draft: Path,
    planner: Planner,
    sweeps: Sequence[Sweep],
    folders: Sequence[Path],
    selection: str,
) -> list[str]:
    """Put records, code, pages and the report into the draft; what it lacks comes back."""
    results, experiment = planner.layout.results, sweeps[0].experiment
    # The report holds the experiment against records of the controls, and an oracle's saving.
    tasks = {folder.parent.name for folder in folders}
    beside = [
        path
        for name in CONTROLS
        if name != experiment
        for path in record_folders(planner.layout, name)
        if path.parent.name in tasks and not is_published(path)
    ]
    remarks = [f"{path.relative_to(results)} is there for the report only" for path in beside]
    renamed: dict[str, str] = {}
    for path in (*folders, *beside):
        renamed |= copy_record(path, draft / "results" / path.relative_to(results))
    studies = {path.parent / TIMING / "study.json" for path in (*folders, *beside)}
    profiles = {planner.layout.profile_beside(task)[0] for task in tasks}
    for path in (*studies, *profiles):
        if path.is_file():
            text = rename(read_text(path, most=MOST), renamed)
            write_text(draft / "results" / path.relative_to(results), text)
    for name in dict.fromkeys((experiment, *(path.parents[1].name for path in beside))):
        copy_pages(planner.experiment(name).folder, draft / "experiments" / name, renamed)
        (draft / "experiments" / name / RESULTS).unlink(missing_ok=True)  # of all records
    for name in _HOUSE:
        if (planner.root / name).is_file():
            copy(planner.root / name, draft / name)
        else:
            remarks.append(f"{name} is missing: it is not in the checkout")
    # The report of what the draft holds: anybody can compute it again from there.
    layout = Layout.of(draft)
    try:
        report = make_report(Planner(draft, layout, planner.task), sweeps, experiment)
        write_text(html_path(layout, experiment), rename(render_html(report), renamed))
        text = rename(render_results(report, selection), renamed)
        write_text(draft / "experiments" / experiment / RESULTS, text)
    except FdllmError as error:
        remarks.append(f"there is no report: {error}")
    return remarks


def _describe(draft: Path, experiment: str, remarks: Sequence[str], version: str) -> None:
    """What the draft is, for people and for machines."""
    found = sorted(draft.glob("results/*/*/*/summary.json"))
    runs = {
        path.parent.relative_to(draft).as_posix(): Summary.model_validate_json(path.read_bytes())
        for path in found
    }
    sessions = [s for summary in runs.values() for s in summary.provenance.get("sessions", [])]
    images = {str(s["image_sha256"]) for s in sessions if s.get("image_sha256")}
    if images:
        write_text(draft / "image.sha256", "".join(f"{one}\n" for one in sorted(images)))
    templates = Environment(  # noqa: S701 - Markdown
        loader=PackageLoader("fdllm.release"),
        finalize=lambda value: escaped(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    readme = templates.get_template("README.md.j2").render(
        experiment=experiment, runs=runs.values(), remarks=remarks, version=version, sums=SUMS
    )
    write_text(draft / "README.md", readme)
    write_metadata(
        draft,
        names_in(draft),
        runs,
        experiment=experiment,
        title=f"fdllm {experiment}: records",
        description=f"{len(runs)} finished runs of {experiment}, sample by sample, with the code, "
        "settings and versions behind them",
        version=version,
    )
    sums = [
        f"{hashlib.sha256((draft / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names_in(draft)
    ]
    write_text(draft / SUMS, "".join(sums))

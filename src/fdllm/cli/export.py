"""``fdllm export``: a folder with everything that a reader needs to check an experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fdllm.cli import show
from fdllm.cli.options import Selection, absolute_path, flag
from fdllm.cli.output import complain, say
from fdllm.cli.request import make_planner
from fdllm.evaluate.tasks import task_info
from fdllm.record.provenance import versions
from fdllm.release.choose import ALLOWANCES, Allowance


@dataclass(frozen=True, kw_only=True)
class ExportOptions(Selection):
    """What ``export`` is given besides its records."""

    out: Path | None = flag(
        "folder to make (release/EXPERIMENT); it must not exist", type=absolute_path, metavar="DIR"
    )
    allow: tuple[Allowance, ...] = flag(
        "take what would be refused: stale or mixed records as they are, without the invalid ones, "
        "texts that name places of this machine. The release says so",
        default=(),
        action="extend",
        nargs="+",
        choices=ALLOWANCES,
        metavar="WHAT",
    )


def run_export(options: ExportOptions) -> int:
    """Write a release of an experiment's records."""
    from fdllm.release.export import export  # noqa: PLC0415

    planner = make_planner(options.results)
    for task in options.task or ():
        task_info(task)
    sweeps = list(show.report_sweeps(planner, options))
    covered = {planner.layout.task_folder(planner.runs(sweep)[0]) for sweep in sweeps}
    others = sorted(
        path.name
        for path in (planner.layout.results / options.experiment).iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in covered
    )
    out = options.out or Path("release", options.experiment).absolute()
    release = export(
        planner, sweeps, out, version=versions()["fdllm"], allowed=frozenset(options.allow)
    )
    for remark in release.remarks:
        complain(f"note: {remark}")
    if others:
        complain(
            f"note: not part of this selection: {', '.join(others)} (--task, --model, --limit)"
        )
    say(f"wrote {release.folder}: {release.num_cells} records; see its README.md")
    return 0

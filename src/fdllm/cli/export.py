"""``fdllm export``: a folder with everything that a reader needs to check an experiment.

Or the same records in the forms that other tools of the field read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from fdllm.cli.options import Selection, flag
from fdllm.cli.output import complain, say
from fdllm.cli.report import report_sweeps, selection_words
from fdllm.cli.request import make_planner
from fdllm.errors import FdllmError
from fdllm.record.paths import TaskFolder
from fdllm.record.provenance import versions
from fdllm.release.choose import ALLOWANCES, Allowance

Format = Literal["release", "lm-eval", "every-eval-ever", "hub-eval-results", "inspect"]


@dataclass(frozen=True, kw_only=True)
class ExportCommand(Selection):
    """Write a folder that stands by itself: records, report, versions."""

    format: Format = flag(
        "release (default), or the records in another tool's form: lm-eval (its own files), "
        "every-eval-ever (that schema), hub-eval-results (.eval_results of a model on the Hub), "
        "inspect (its log); docs/records.md 6",
        default="release",
        choices=get_args(Format),
        metavar="FORMAT",
    )
    out: Path | None = flag(
        "folder to make (release/EXPERIMENT, with -FORMAT for another form); it must not exist",
        metavar="DIR",
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

    smoke_tests: bool = flag("with the tables that a limit has cut", default=False)

    allow_code_execution: bool | None = flag(
        "let humaneval and mbpp run their programs once more, confined, where a form of another "
        "tool wants their verdicts",
        action="store_true",
    )

    def run(self) -> int:
        """Write a release of an experiment's records, or their form for another tool.

        Raises:
            FdllmError: there are none, or something in them must not be released.
        """
        from fdllm.release.formats import export_format  # noqa: PLC0415
        from fdllm.release.release import export  # noqa: PLC0415

        planner = make_planner(self)
        found = list(report_sweeps(planner, self))
        asked = self.smoke_tests or self.limit is not None
        sweeps = [sweep for sweep in found if asked or sweep.limit is None]
        left = [str(TaskFolder.of(planner.runs(one)[0])) for one in found if one not in sweeps]
        smoke = f"smoke tests: {', '.join(left)} (--smoke-tests takes them)"
        if not sweeps:
            raise FdllmError(f"nothing to export but {smoke}")
        if left:
            complain(f"note: left out, {smoke}")
        covered = {str(TaskFolder.of(planner.runs(sweep)[0])) for sweep in found}
        folders = map(str, planner.layout.task_folders(self.experiment))
        others = [name for name in folders if name not in covered]
        whole, allowed = self.format == "release", frozenset(self.allow)
        name = self.experiment if whole else f"{self.experiment}-{self.format}"
        out = self.out or Path("release", name).absolute()
        if whole:
            own, words = versions()["fdllm"], selection_words(self)
            release = export(planner, sweeps, out, version=own, selection=words, allowed=allowed)
        else:
            release = export_format(planner, sweeps, out, name=self.format, allowed=allowed)
        for remark in release.remarks:
            complain(f"note: {remark}")
        if others:
            complain(
                f"note: not part of this selection: {', '.join(others)} (--task, --model, --limit)"
            )
        see = "see its README.md" if whole else f"as {self.format} has them"
        say(f"wrote {release.folder}: {release.num_cells} records; {see}")
        return 0

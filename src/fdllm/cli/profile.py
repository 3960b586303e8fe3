"""``fdllm profile``: how redundant are a model's layers on a task, and which could be reused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fdllm.cli import sweep
from fdllm.cli.options import Computing, flag, rows_at_once
from fdllm.cli.output import complain, console, say, say_json
from fdllm.cli.pace import check_pace
from fdllm.cli.request import SweepRequest, read_request
from fdllm.errors import UsageError
from fdllm.record.atomic import write_text
from fdllm.record.paths import TaskFolder, set_aside
from fdllm.runs import Run

if TYPE_CHECKING:
    from fdllm.profiling.record import Profile

_DOCUMENTS = 100
_PASSES = 20  # over the documents, at the least: one a layer, of a model that is large
_ROWS = 16  # no time is measured, so rows share forwards


@dataclass(frozen=True, kw_only=True)
class ProfileCommand(Computing):
    """How redundant each layer is on a task, and which could be reused."""

    docs: int | None = flag(
        f"documents, drawn at random ({_DOCUMENTS}, or the limit)", group="what", metavar="N"
    )
    batch_size: int | str | None = flag(
        f"rows at once where text is generated ({_ROWS}), or auto: as many as memory holds; never "
        "changes an answer",
        default=_ROWS,
        group="how",
        type=rows_at_once,
        metavar="N",
    )
    json: bool = flag("print the figures as JSON", default=False)

    def run(self) -> int:
        """Take the profile, keep it, show it.

        Raises:
            UsageError: there is not one task, or nothing could be reused in its runs.
            KeyboardInterrupt: Ctrl-C or SIGTERM; nothing was kept, which is said.
        """
        if len(self.task or ()) != 1:
            raise UsageError(
                "a profile is of one task: name it, for example --task tiny_arithmetic"
            )
        request = read_request(self)
        run = plain_run(request)
        try:
            profile = self._take(request, run)
        except KeyboardInterrupt:
            complain("interrupted, and nothing was kept: a profile is whole or none")
            raise
        self._keep(request, run, profile)
        return 0

    def _take(self, request: SweepRequest, run: Run) -> Profile:
        """Torch and the harness come in here."""
        from fdllm.profiling.take_profile import check, take_profile  # noqa: PLC0415

        check(run)
        number = self.docs or self.limit or _DOCUMENTS
        check_pace(request, [run] * _PASSES, number, fewer="")
        complain(f"{run.task}: each layer on {number} documents at most; minutes")
        out = console(stderr=True)
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        ) as bars:
            bar = bars.add_task("loading", total=1.0)
            model = sweep.load_model(run.model, self.threads)
            request.planner.forget_model(run.model)  # a Hub id's commit is known now
            return take_profile(
                request.planner,
                model,
                run,
                number,
                watch=lambda what, share: bars.update(bar, completed=share, description=what),
            )

    def _keep(self, request: SweepRequest, run: Run, profile: Profile) -> None:
        """Write it with its page, and show it."""
        from fdllm.profiling import profile_tables, redundancy  # noqa: PLC0415 - scipy
        from fdllm.profiling.profile_page import pages_beside  # noqa: PLC0415

        layout, folder = request.planner.layout, str(TaskFolder.of(run))
        path, copy = layout.profile_beside(folder)
        page = path.with_suffix(".html")
        standing = [one for one in (path, page) if one.exists()]
        aside = set_aside(path.parent, standing) if standing else None
        profile.write(copy, path)
        for place, text in pages_beside(layout, folder).items():
            write_text(place, text)
        if self.json:
            say_json(redundancy.as_dict(profile))
        else:
            out = console(at_least=110)
            out.print(Text(f"Profile: {profile.task}", style="bold"))
            say(redundancy.verdict(profile))
            if sentence := profile_tables.oracle_sentence(profile):
                say(sentence)
            figures, rows = redundancy.layer_figures(profile), redundancy.compared_sets(profile)
            for table in (
                profile_tables.tested_table(profile, rows),
                profile_tables.layer_table(profile, figures),
            ):
                out.print(replace(table, caption="").terminal())
                say(table.caption)
            say(f"{profile_tables.settings(profile)}; {profile.seconds:.0f} s")
        complain(f"kept in {path}; the page, with the map: {page}")
        if aside is not None:
            complain(f"note: the profile that stood was moved to {aside}")


def plain_run(request: SweepRequest) -> Run:
    """The run without reuse whose decoding is profiled.

    Raises:
        UsageError: none of the configs asked for is one.
    """
    criteria = request.criteria
    named = None if criteria is None else criteria.baseline
    plain = [run for run in request.runs if not request.planner.reuses(run)]
    if not plain:
        raise UsageError(
            "a profile decodes without reuse, and every config asked for reuses; leave --config "
            "out, or name one of k=1"
        )
    return next((run for run in plain if run.cell.name == named), plain[0])

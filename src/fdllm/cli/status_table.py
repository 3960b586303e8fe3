"""``fdllm status``: every cell's state, joined with the queue, once or over and over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fdllm.cli import show
from fdllm.cli.options import Selection, flag
from fdllm.cli.output import complain, console
from fdllm.cli.progress import duration
from fdllm.cli.request import SweepRequest, read_request
from fdllm.cluster.queue import SlurmError
from fdllm.criteria import Criteria
from fdllm.errors import UsageError
from fdllm.plain import one_line
from fdllm.plan import CellState, JobFacts
from fdllm.report.table import heading, requests_text, state_text
from fdllm.timing.wanted import study_state, study_words, want_studies

_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class StatusCommand(Selection):
    """The state of every cell."""

    json: bool = flag("print JSON", default=False)
    watch: float | None = flag(
        f"show it anew every so often ({_EVERY_S:.0f}); Ctrl-C leaves",
        nargs="?",
        type=float,
        const=_EVERY_S,
        metavar="SECONDS",
    )

    def run(self) -> int:
        """Every cell's state.

        Raises:
            UsageError: two ways to show it are asked for, or an interval of nothing.
        """
        if self.watch is not None and (self.json or self.watch <= 0):
            raise UsageError(
                "--watch shows a table every so many seconds, more than 0; --json prints once"
            )
        request = read_request(self)
        show.overlaps(request, quiet=self.json)
        if self.watch is not None:
            _watch(request, self.watch)
        else:
            show_status(request, as_json=self.json)
        return 0


def show_status(request: SweepRequest, *, as_json: bool) -> None:
    """State and reason of every cell, of those at work what the queue says, and other records."""
    cells, timed = _states(request)
    if as_json:
        show.print_json(cells, timed)
        return
    console().print(_view(cells, timed, request.criteria))
    show.elsewhere(request)


def _states(request: SweepRequest) -> tuple[list[CellState], list[CellState]]:
    """Of the cells, and of whatever timing studies they may have."""
    studies = want_studies(request.planner, request.sweep, 1, 1)
    try:
        found = request.survey(studies)
    except SlurmError as error:
        complain(f"note: {error}; the states below are from the files alone")
        found = [*request.states(), *(study_state(request.planner, one) for one in studies)]
    num = len(request.runs)
    return [request.planner.shown(cell) for cell in found[:num]], found[num:]


def _view(
    cells: Sequence[CellState], timed: Sequence[CellState], criteria: Criteria | None
) -> Group:
    """Tables of all tasks, what rows cannot decide, the studies, and how many cells are done."""
    tables: list[RenderableType] = []
    for group in show.by_task(cells):
        tables += [Text(heading(group), style="bold"), status_table(group)]
        tables += [Text(f"! {text}", style="yellow") for text in show.remarks(group, criteria)]
        tables += [Text(study_words(one)) for one in timed if one.run.task == group[0].run.task]
    return Group(*tables, Text(show.tally(cells)))


def status_table(cells: Sequence[CellState]) -> Table:
    """State, progress and reason of each cell of one task; where one is at work, how fast."""
    at_work = any(cell.job is not None for cell in cells)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("config", "state", "requests"):
        table.add_column(name, overflow="fold")
    for name in ("tokens/s", "elapsed", "work left", "limit left") if at_work else ():
        table.add_column(name, justify="right")
    for name in ("job", "node", "reason") if at_work else ("reason",):
        table.add_column(name, overflow="fold")
    for cell in cells:
        reason = cell.reason + (f" (log: {cell.log})" if cell.log else "")
        table.add_row(
            cell.run.cell.name,
            state_text(cell.state),
            requests_text(cell),
            *(_queue_texts(cell.job or JobFacts(job_id=None)) if at_work else ()),
            Text(one_line(reason)),
        )
    return table


def _queue_texts(job: JobFacts) -> tuple[str, ...]:
    speed = "" if job.tokens_per_second is None else f"{job.tokens_per_second:.1f}"
    times = (job.elapsed_s, job.time_left_s, job.limit_left_s)
    spent = ("" if seconds is None else duration(seconds) for seconds in times)
    return (speed, *spent, job.job_id or "", job.node or "")


def _watch(request: SweepRequest, every_s: float) -> None:
    """Show the states until somebody leaves; a log gets them one below the other."""
    out = console()
    try:
        with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
            while True:
                view = _view(*_states(request), request.criteria)
                if out.is_terminal:
                    live.update(view, refresh=True)
                else:
                    out.print(view)
                time.sleep(every_s)
    except KeyboardInterrupt:
        return

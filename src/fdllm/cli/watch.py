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
from fdllm.cli.output import complain
from fdllm.cli.progress import duration
from fdllm.cli.request import Request, read_request
from fdllm.cluster.queue import SlurmError
from fdllm.cluster.status import survey
from fdllm.errors import UsageError
from fdllm.plan import CellState, JobFacts
from fdllm.report.table import heading, requests_text, state_text, status_table

_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class StatusOptions(Selection):
    """What ``status`` is given besides its runs."""

    json: bool = flag("print JSON", default=False)
    watch: float | None = flag(
        f"show it anew every so often ({_EVERY_S:.0f}); Ctrl-C leaves",
        nargs="?",
        type=float,
        const=_EVERY_S,
        metavar="SECONDS",
    )


def run_status(options: StatusOptions) -> int:
    """Every cell's state.

    Raises:
        UsageError: two ways to show it are asked for, or an interval of nothing.
    """
    if options.watch is not None and (options.json or options.watch <= 0):
        raise UsageError(
            "--watch shows a table every so many seconds, more than 0; --json prints once"
        )
    request = read_request(options)
    show.overlaps(request, quiet=options.json)
    if options.watch is not None:
        _watch(request, options.watch)
        return 0
    show_status(live_states(request), as_json=options.json)
    if not options.json:
        show.elsewhere(request)
    return 0


def live_states(request: Request) -> list[CellState]:
    """Every run's state, joined with the queue; where that does not answer, that is said."""
    try:
        return survey(request.planner, request.planner.runs(request.sweep))
    except SlurmError as error:
        complain(f"note: {error}; the states below are from the files alone")
        return request.states()


def show_status(cells: Sequence[CellState], *, as_json: bool) -> None:
    """State and reason of every cell, and of those at work what the queue says."""
    if as_json:
        show.print_json(cells)
        return
    show.console().print(status_view(cells))


def status_view(cells: Sequence[CellState]) -> RenderableType:
    """Tables of all tasks, and how many cells are done."""
    parts: list[RenderableType] = []
    for group in show.by_task(cells):
        at_work = any(cell.job is not None for cell in group)
        parts.append(Text(heading(group), style="bold"))
        parts.append(_queue_table(group) if at_work else status_table(group))
    return Group(*parts, Text(show.tally(cells)))


def _queue_table(cells: Sequence[CellState]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("config", "state", "requests"):
        table.add_column(name, overflow="fold")
    for name in ("tokens/s", "elapsed", "work left", "limit left"):
        table.add_column(name, justify="right")
    for name in ("job", "node", "reason"):
        table.add_column(name, overflow="fold")
    for cell in cells:
        job = cell.job or JobFacts(job_id=None)
        speed = "" if job.tokens_per_second is None else f"{job.tokens_per_second:.1f}"
        times = [_seconds(t) for t in (job.elapsed_s, job.time_left_s, job.limit_left_s)]
        reason = cell.reason + (f" (log: {cell.log})" if cell.log else "")
        table.add_row(
            cell.run.cell.name,
            state_text(cell.state),
            requests_text(cell),
            speed,
            *times,
            job.job_id or "",
            job.node or "",
            Text(reason),
        )
    return table


def _seconds(seconds: int | None) -> str:
    return "" if seconds is None else duration(seconds)


def _watch(request: Request, every_s: float) -> None:
    """Show the states until somebody leaves; a log gets them one below the other."""
    console = show.console()
    try:
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                view = status_view(live_states(request))
                if console.is_terminal:
                    live.update(view, refresh=True)
                else:
                    console.print(view)
                time.sleep(every_s)
    except KeyboardInterrupt:
        return

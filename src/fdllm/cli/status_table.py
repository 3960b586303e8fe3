"""``fdllm status``: every cell's state, joined with the queue, once or over and over."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from fdllm.evaluate.tasks import TASKS
from fdllm.plain import one_line
from fdllm.plan import RECORDED, CellState, JobFacts, State
from fdllm.record.paths import TaskFolder
from fdllm.report.columns import Fitted
from fdllm.report.table import heading, named_text, requests_text, with_interval
from fdllm.runs import home_model
from fdllm.timing.wanted import study_state, study_words, want_studies

_EVERY_S = 5.0
_UNBEGUN = frozenset({State.PENDING, State.NOT_APPLICABLE})
_WORDS = ("job", "node")
_AT_WORK = ("tokens/s", "elapsed", "work left", "limit left", *_WORDS)
_LESSER = ("node", "tokens/s", "limit left", "elapsed", "accuracy [95 %]", "job", "requests")
"""Columns that a narrow terminal may lack, the first to go first."""


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
            _watch(with_what_there_is(self, request), self.watch)
        else:
            show_status(with_what_there_is(self, request), as_json=self.json)
        return 0


def with_what_there_is(options: Selection, request: SweepRequest) -> list[SweepRequest]:
    """What was asked for; where nothing was, the usual grid and then whatever has records."""
    asked = (options.task, options.model, options.limit, options.preset, options.include_path)
    if any(one is not None for one in asked) or "FDLLM_MODEL" in os.environ:
        return [request]
    covered = {TaskFolder.of(run) for run in request.runs}
    others = dict[tuple[str, int | None], list[str]]()
    for one in request.planner.layout.task_folders(options.experiment):
        if one not in covered and one.task in TASKS and one.model is None and one.preset is None:
            others.setdefault((home_model(one.task), one.limit), []).append(one.task)
    return [
        request,
        *(
            read_request(replace(options, task=tuple(tasks), model=model, limit=limit))
            for (model, limit), tasks in others.items()
        ),
    ]


def show_status(requests: Sequence[SweepRequest], *, as_json: bool) -> None:
    """State and reason of every cell, of those at work what the queue says, and other records."""
    found = [_states(request) for request in requests]
    if as_json:
        show.print_json(
            [c for cells, _ in found for c in cells], [t for _, ts in found for t in ts]
        )
        return
    console().print(_view(requests, found))
    show.elsewhere(requests)


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
    requests: Sequence[SweepRequest],
    found: Sequence[tuple[Sequence[CellState], Sequence[CellState]]],
) -> Group:
    """Tables of all tasks and how many cells are done; beside others, tasks without any by name."""
    begun, views = list[CellState](), list[RenderableType]()
    unbegun = dict[str, list[str]]()
    for request, (cells, timed) in zip(requests, found, strict=True):
        for group in show.by_task(cells):
            if len(requests) > 1 and all(cell.state in _UNBEGUN for cell in group):
                unbegun.setdefault(request.sweep.model.name, []).append(group[0].run.task)
            else:
                begun += group
                views += _task_view(group, timed, request.criteria)
    nothing = (f"nothing yet on {model}: {', '.join(names)}" for model, names in unbegun.items())
    return Group(*views, *map(Text, nothing), Text(show.tally(begun)))


def _task_view(
    group: Sequence[CellState], timed: Sequence[CellState], criteria: Criteria | None
) -> list[RenderableType]:
    """A task's table, why cells are not done, what rows cannot decide, and the study."""
    num_done = sum(cell.state is State.DONE for cell in group)
    num = len(group) - sum(cell.state is State.NOT_APPLICABLE for cell in group)
    return [
        Text(heading(group), style="bold"),
        status_table(group),
        *reasons(group),
        *(Text(f"! {text}", style="yellow") for text in show.remarks(group, criteria)),
        *(Text(study_words(one)) for one in timed if one.run.task == group[0].run.task),
        Text(f"Completed: {num_done} / {num}\n"),
    ]


def status_table(cells: Sequence[CellState]) -> Fitted:
    """State, progress and accuracy of each cell of one task; where one is at work, how fast."""
    at_work = any(cell.job is not None for cell in cells)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("config", "state", "requests", "accuracy [95 %]"):
        table.add_column(name, no_wrap=True)
    for name in _AT_WORK if at_work else ():
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for cell in cells:
        table.add_row(
            named_text(cell),
            cell.state.value,
            requests_text(cell),
            with_interval(cell.summary.headline)
            if cell.summary is not None and cell.state in RECORDED
            else "",
            *(_queue_texts(cell.job or JobFacts(job_id=None)) if at_work else ()),
        )
    return Fitted(table, _LESSER)


def reasons(cells: Sequence[CellState]) -> list[Text]:
    """Why cells are not done, a line for all that have one reason; a log's path stays whole."""
    found = dict[str, list[CellState]]()
    for cell in cells:
        reason = cell.reason + (f" (log: {cell.log})" if cell.log else "")
        if reason:
            found.setdefault(f"{cell.state.value}, {one_line(reason)}", []).append(cell)
    lines = []
    for reason, group in found.items():
        names = [cell.run.cell.name for cell in group]
        all_alike = len(names) == len(cells) > 1
        shown = f"all {len(names)}" if all_alike else ", ".join(names)
        lines.append(Text(f"  {shown}: {reason}"))
    return lines


def _queue_texts(job: JobFacts) -> tuple[str, ...]:
    speed = "" if job.tokens_per_second is None else f"{job.tokens_per_second:.1f}"
    times = (job.elapsed_s, job.time_left_s, job.limit_left_s)
    spent = ("" if seconds is None else duration(seconds) for seconds in times)
    return (speed, *spent, job.job_id or "", job.node or "")


def _watch(requests: Sequence[SweepRequest], every_s: float) -> None:
    """Show the states until somebody leaves; a log gets them one below the other."""
    out = console()
    try:
        with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
            while True:
                view = _view(requests, [_states(request) for request in requests])
                if out.is_terminal:
                    live.update(view, refresh=True)
                else:
                    out.print(view)
                time.sleep(every_s)
    except KeyboardInterrupt:
        return

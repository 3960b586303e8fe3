"""Progress for people: bars where a terminal shows them, plain lines in a log."""

from __future__ import annotations

from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fdllm.evaluate.attempt import RunOutcome
from fdllm.plan import RECORDED
from fdllm.runs import Run

_QUIET_S = 10.0  # a log gets a line this often at most while a run goes on


def outcome_line(outcome: RunOutcome) -> str:
    """How a run ended, in one line."""
    if outcome.summary is not None and outcome.state in RECORDED:
        headline = outcome.summary.headline
        scored = outcome.summary.kind == "loglikelihood"
        unit = "scored tokens/s" if scored else "tokens/s"
        what = f"{100 * headline.value:.1f} %, {outcome.summary.speed:.1f} {unit}"
        how = outcome.state.value + (f" ({outcome.reason})" if outcome.reason else "")
        return f"{outcome.run}: {how}, {what}, {outcome.num_computed} computed"
    log = f" (log: {outcome.log})" if outcome.log else ""
    return f"{outcome.run}: {outcome.state.value}: {outcome.reason}{log}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    if seconds < 5400:  # noqa: PLR2004
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class GridProgress:
    """How far a grid and its run are, and the time left: two bars, or a line now and then.

    Args:
        num_runs: of the grid.
        console: where it is shown.
    """

    def __init__(self, num_runs: int, console: Console) -> None:
        self._console = console
        self._is_log = not console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=self._is_log,
        )
        self._grid = self._add("grid", num_runs)
        self._run: Task | None = None
        self._resumed = 0
        self._said = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, run: Run) -> None:
        """A run begins."""
        self._drop()
        number = self._grid.completed + 1
        self._say(f"[{number:.0f}/{self._grid.total:.0f}] {run}", in_bars=True)
        self._run = self._add(f"{run.task} {run.cell.name}", None)

    def begin(self, total: int, done: int) -> None:
        """Its requests are known, and those that an earlier attempt has answered."""
        if self._run is not None:
            self._bars.reset(self._run.id, total=total, completed=done)
        self._resumed, self._said = done, self._bars.get_time()
        if done:
            self._say(f"    {done} of {total} requests are answered already", in_bars=True)

    def advance(self, entry: dict[str, Any]) -> None:  # noqa: ARG002 - the protocol's
        """A request is answered."""
        run, now = self._run, self._bars.get_time()
        if run is None:
            return
        self._bars.advance(run.id)
        if now - self._said >= _QUIET_S:
            self._said = now
            left = _time_left(run, run.completed - self._resumed)
            told = f"{run.completed:.0f} of {run.total or 0:.0f} requests"
            self._say(f"    {told}, {left} left in this run", in_bars=True)

    def note(self, text: str) -> None:
        """Something happened beside the answers."""
        self._say(f"    {text}")

    def end(self, outcome: RunOutcome) -> None:
        """A run has ended."""
        self._drop()
        self._bars.advance(self._grid.id)
        more = ""
        if self._is_log and self._grid.remaining:
            more = f"; about {_time_left(self._grid, self._grid.completed)} left in the grid"
        self._say(f"    {outcome_line(outcome)}{more}")

    def _add(self, text: str, total: int | None) -> Task:
        name = self._bars.add_task(text, total=total)
        return next(task for task in self._bars.tasks if task.id == name)

    def _drop(self) -> None:
        if self._run is not None:
            self._bars.remove_task(self._run.id)
            self._run = None

    def _say(self, text: str, *, in_bars: bool = False) -> None:
        """A line; a log gets those too that bars show."""
        if self._is_log or not in_bars:
            text = text if self._is_log else text.lstrip()
            self._console.print(text, soft_wrap=self._is_log)


def _time_left(task: Task, fresh: float) -> str:
    """At the pace so far."""
    return duration((task.elapsed or 0.0) / fresh * (task.remaining or 0.0))

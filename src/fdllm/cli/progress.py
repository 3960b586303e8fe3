"""Progress for people: bars where a terminal shows them, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fdllm.evaluate.runner import Outcome
from fdllm.plan import State
from fdllm.runs import Run

_QUIET_S = 10.0  # a log gets a line this often at most while a run goes on


def watcher(runs: Sequence[Run], console: Console) -> _Lines | _Bars:
    """What shows a grid: bars on a terminal, lines elsewhere."""
    return (_Bars if console.is_terminal else _Lines)(len(runs), console)


def outcome_line(outcome: Outcome) -> str:
    """How a run ended, in one line."""
    if outcome.summary is not None and outcome.state is State.DONE:
        headline = outcome.summary.headline
        scored = outcome.summary.kind == "loglikelihood"
        unit = "scored tokens/s" if scored else "tokens/s"
        what = f"{100 * headline.value:.1f} %, {outcome.summary.speed:.1f} {unit}"
        return f"{outcome.run}: done, {what}, {outcome.num_computed} computed"
    log = f" (log: {outcome.log})" if outcome.log else ""
    return f"{outcome.run}: {outcome.state.value}: {outcome.reason}{log}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.0f} s"
    if seconds < 5400:  # noqa: PLR2004
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class _Lines:
    """Plain lines, each complete by itself."""

    def __init__(self, num_runs: int, console: Console) -> None:
        self._num_runs = num_runs
        self._console = console
        self._started = time.monotonic()
        self._ended = 0
        self._total = self._done = self._fresh = 0
        self._begun = self._said = self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def start(self, run: Run) -> None:
        self._say(f"[{self._ended + 1}/{self._num_runs}] {run}")
        self._begun = self._said = time.monotonic()

    def begin(self, total: int, done: int) -> None:
        self._total, self._done, self._fresh = total, done, 0
        self._begun = self._said = time.monotonic()
        if done:
            self._say(f"    {done} of {total} requests are answered already")

    def advance(self, entry: dict[str, Any]) -> None:  # noqa: ARG002 - the protocol's
        self._done += 1
        self._fresh += 1
        now = time.monotonic()
        if now - self._said < _QUIET_S:
            return
        self._said = now
        left = (now - self._begun) / self._fresh * (self._total - self._done)
        self._say(f"    {self._done} of {self._total} requests, {duration(left)} left in this run")

    def note(self, text: str) -> None:
        self._say(f"    {text}")

    def end(self, outcome: Outcome) -> None:
        self._ended += 1
        spent = time.monotonic() - self._started
        left = spent / self._ended * (self._num_runs - self._ended)
        more = f"; about {duration(left)} left in the grid" if self._ended < self._num_runs else ""
        self._say(f"    {outcome_line(outcome)}{more}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """A bar for the grid and one for the run, each with the time left."""

    def __init__(self, num_runs: int, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._grid = self._progress.add_task("grid", total=num_runs)
        self._run: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, run: Run) -> None:
        self._drop()
        self._run = self._progress.add_task(f"{run.task} {run.cell.name}", total=None)

    def begin(self, total: int, done: int) -> None:
        if self._run is not None:
            self._progress.reset(self._run, total=total, completed=done)

    def advance(self, entry: dict[str, Any]) -> None:  # noqa: ARG002 - the protocol's
        if self._run is not None:
            self._progress.advance(self._run)

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def end(self, outcome: Outcome) -> None:
        self._drop()
        self._progress.advance(self._grid)
        self._console.print(outcome_line(outcome), markup=False, highlight=False)

    def _drop(self) -> None:
        if self._run is not None:
            self._progress.remove_task(self._run)
            self._run = None

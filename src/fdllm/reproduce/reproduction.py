"""Claims, what the records have, and whether that is the same (``fdllm reproduce``)."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fdllm.errors import FdllmError
from fdllm.report.stats import Estimate
from fdllm.reproduce.found import NoFigureError, TaskFigures, certain
from fdllm.reproduce.stated import StatedFigure, Statement, Statements, plain

Holding = Literal["holds", "differs", "cannot tell"]
FiguresOf = Callable[[str, str], TaskFigures]
"""The figures of an experiment and a task."""


@dataclass(frozen=True)
class CheckedFigure:
    """A figure of a sentence beside that of the records."""

    claim: str  # the sentence, or a part of it
    figure: str  # as it stands there
    of: str  # experiment / task / config: field
    experiment: str
    task: str
    command: str  # computes it
    expected: tuple[float, ...]  # what it states, see :attr:`StatedFigure.numbers`
    tolerance: float  # how far each may lie off
    found: tuple[float, ...]  # as many; empty where the records do not tell
    words: str  # ``figure`` as the records would have it; empty where they do not tell
    verdict: Holding
    why: str = ""  # why it cannot be told

    def as_dict(self) -> dict[str, Any]:
        """JSON form; what is one number is no list."""
        one = {
            name: value[0] if len(value) == 1 else list(value) or None
            for name, value in (("expected", self.expected), ("found", self.found))
        }
        return {**vars(self), **one}


def chosen(statements: Statements, experiment: str | None) -> list[tuple[Statement, StatedFigure]]:
    """The figures, all or those of one experiment."""
    return [
        (one, figure)
        for one in statements.finding
        for figure in one.figures
        if experiment in (None, figure.experiment or one.experiment)
    ]


def places(pairs: Iterable[tuple[Statement, StatedFigure]]) -> list[tuple[str, str]]:
    """Experiments and tasks whose records are needed, those that stand beside too; in order."""
    found: set[tuple[str, str]] = set()
    for one, figure in pairs:
        task = figure.task or one.task
        found.add((figure.experiment or one.experiment, task))
        if figure.beside:
            found.add((figure.beside.partition("/")[0], task))
    return sorted(found)


def reproduce(
    statements: Statements,
    pairs: Iterable[tuple[Statement, StatedFigure]],
    figures: FiguresOf,
    *,
    exact: bool,
) -> list[CheckedFigure]:
    """Set each stated figure beside that of the records.

    ``exact`` leaves no tolerance but rounding: for the records that sentences were written from.

    Raises:
        FdllmError: a record is broken.
    """
    return [_claim(statements, one, figure, figures, exact=exact) for one, figure in pairs]


def command(experiment: str, task: str, model: str) -> str:
    """What computes an experiment's records of a task, its timing study among them."""
    words = ["fdllm", "sweep", "--experiment", experiment, "--task", task, "--model", model]
    return shlex.join(words)


def _claim(
    statements: Statements, one: Statement, figure: StatedFigure, figures: FiguresOf, *, exact: bool
) -> CheckedFigure:
    experiment, task = figure.experiment or one.experiment, figure.task or one.task
    found, words, why = tuple[float, ...](), "", ""
    tolerance = figure.tolerance
    if tolerance is None:
        known = [n for n in statements.tolerance if figure.field.startswith(n)]
        tolerance = statements.tolerance[max(known, key=len)] if known else 0.0
    verdict: Holding = "cannot tell"
    try:
        found, why = _numbers(figure, experiment, task, figures)
        words = figure.with_numbers(found)
        if not why:
            near = all(abs(a - b) <= tolerance for a, b in zip(found, figure.numbers, strict=True))
            holds = words == figure.expected or (near and not exact)
            verdict = "holds" if holds else "differs"
    except NoFigureError as error:
        why = str(error)
    return CheckedFigure(
        claim=plain(one.text),
        figure=figure.expected,
        of=f"{experiment} / {task} / {figure.config}: {figure.field}"
        + (f" beside {figure.beside}" if figure.beside else ""),
        experiment=experiment,
        task=task,
        command=command(experiment, task, statements.model),
        expected=figure.numbers,
        tolerance=tolerance,
        found=found,
        words=words,
        verdict=verdict,
        why=why,
    )


def _numbers(
    figure: StatedFigure, experiment: str, task: str, figures: FiguresOf
) -> tuple[tuple[float, ...], str]:
    """What the records have for it, and why that cannot be trusted; empty where it can."""
    own = figures(experiment, task)
    names = own.configs(figure.config)
    why = [(f"{experiment} / {name}", own.why_stale(name)) for name in names]
    if figure.beside:
        where, _, config = figure.beside.partition("/")
        other = figures(where, task)
        [name] = other.configs(config)
        why.append((figure.beside, other.why_stale(name)))
        if figure.field == "equal_answers":
            values = [own.figure(n, figure.field, other.records[name]) for n in names]
        else:
            less = other.figure(name, figure.field).value
            values = [certain(own.figure(n, figure.field).value - less) for n in names]
    else:
        values = [own.figure(one, figure.field) for one in names]
    stale = [f"{name} is stale: {reason}" for name, reason in why if reason]
    return _as_stated(figure, values), stale[0] if stale else ""


def _as_stated(figure: StatedFigure, values: Sequence[Estimate]) -> tuple[float, ...]:
    """The numbers of some configs in the form that a sentence has them."""
    numbers, every = figure.numbers, [one.value for one in values]
    if figure.is_range:
        ends = min(every), max(every)
        return ends if numbers[0] <= numbers[-1] else ends[::-1]
    if figure.has_interval:
        [one] = values
        return one.value, one.low, one.high
    if len(numbers) > 1:
        if len(numbers) != len(every):
            raise FdllmError(
                f"'{figure.expected}' lists {len(numbers)} figures and '{figure.config}' is "
                f"{len(every)} configs; a range is written '1 to 2'"
            )
        return tuple(every)
    # One figure of several configs: the one that lies farthest off.
    return (max(every, key=lambda one: abs(one - numbers[0])),)

"""Tables for the terminal. A table of figures is refused where its rows are not comparable."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from fdllm.plan import CellState, State
from fdllm.record.summary import Headline, Summary
from fdllm.report.agreement import stated
from fdllm.report.grid import Twins, identical, mixtures, twins
from fdllm.report.records import Record, finished

if TYPE_CHECKING:  # numpy
    from fdllm.report.speed import Floor

_STYLE = {
    State.DONE: ("✓", "green"),
    State.PENDING: ("·", "dim"),
    State.QUEUED: ("…", "cyan"),
    State.RUNNING: ("▶", "cyan"),
    State.PARTIAL: ("◐", "yellow"),
    State.FAILED: ("✗", "red"),
    State.STALE: ("!", "yellow"),
    State.INVALID: ("✗", "red"),
    State.NOT_APPLICABLE: ("-", "dim"),
}


def heading(cells: Sequence[CellState]) -> str:
    """What stands over a table: experiment, task, limit, model, preset, estimator."""
    run = cells[0].run
    limit = "all rows" if run.limit is None else f"limit {run.limit}, a smoke test"
    preset = "" if run.preset is None else f", preset {run.preset_words}"
    scored = {record.summary.estimator_words for record in finished(cells)} - {None}
    estimator = "".join(f", estimator {name}" for name in scored if name)
    return f"{run.experiment} / {run.task} ({limit}) on {run.model.name}{preset}{estimator}"


def state_text(state: State) -> Text:
    """A state with its mark."""
    mark, style = _STYLE[state]
    return Text(f"{mark} {state.value}", style=style)


def status_table(cells: Sequence[CellState]) -> Table:
    """State, progress and reason of each cell of one task."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("config", "state", "requests", "reason"):
        table.add_column(name, overflow="fold")
    for cell in cells:
        reason = cell.reason + (f" (log: {cell.log})" if cell.log else "")
        table.add_row(cell.run.cell.name, state_text(cell.state), requests_text(cell), Text(reason))
    return table


def requests_text(cell: CellState) -> str:
    """Requests answered, of how many; empty where nobody has counted."""
    if cell.done is None:
        return ""
    total = "?" if cell.total is None else str(cell.total)
    return str(cell.done) if cell.state is State.DONE else f"{cell.done} of {total}"


def figures_table(cells: Sequence[CellState]) -> Table:
    """Figures of each cell of one task.

    Returns:
        The table. Where the finished cells are not comparable its rows hold states only, and its
        caption says why.
    """
    records = {record.name: record.summary for record in finished(cells)}
    problems = mixtures(finished(cells))
    scored = any(summary.kind == "loglikelihood" for summary in records.values())
    table = Table(box=box.SIMPLE_HEAD)
    if problems:
        table.caption = (
            "no figures: these records do not belong into one table. "
            + "; ".join(problems)
            + ". Compute them anew on one machine: fdllm sweep --force"
        )
        table.caption_style = "red"
        records = {}
    speed = ("scored tokens/s", "requests/s") if scored else ("tokens/s", "tokens/forward")
    table.add_column("config")
    boxed = has_boxes(records.values())
    names = ("accuracy [95 %]", *(("boxed_match",) if boxed else ()), *speed)
    for name in (*names, "layer calls saved", "by k=1"):
        table.add_column(name, justify="right")
    if not scored:
        table.add_column("truncated", justify="right")
        table.add_column("repetitive", justify="right")
    table.add_column("state")
    base = next((r for r in records.values() if not r.strategy.reuses), None)
    for cell in cells:
        summary = records.get(cell.run.cell.name)
        figures = [""] * (len(table.columns) - 2)
        if summary is not None:
            figures = figure_row(summary, base, boxed=boxed)
        table.add_row(cell.run.cell.name, *figures, state_text(cell.state))
    return table


def has_boxes(summaries: Iterable[Summary]) -> bool:
    """Whether ``boxed_match`` stands beside the headline of any."""
    return any(summary.boxed_match is not None for summary in summaries)


def boxed_text(summary: Summary) -> str:
    """``boxed_match`` in a table; empty where there is none."""
    return "" if summary.boxed_match is None else percent(summary.boxed_match)


def figure_row(summary: Summary, base: Summary | None, *, boxed: bool = False) -> list[str]:
    """Accuracy with its interval, speed, share of layer calls saved, signs of degeneration.

    Layer calls stand twice: the share that the run saved of its own, and those it made in the end
    by those of ``base``, which reuses nothing.
    """
    speed = summary.throughput
    if summary.kind == "generate":
        figures = [_number(speed.tokens_per_second), _number(speed.tokens_per_forward, 2)]
    else:
        figures = [_number(speed.scored_tokens_per_second), _number(speed.requests_per_second)]
    calls = summary.layer_calls
    made = "" if base is None else _number(calls.made / base.layer_calls.made, 2)
    accuracy = [with_interval(summary.headline), *([boxed_text(summary)] if boxed else [])]
    row = [*accuracy, *figures, percent(calls.saved_share), made]
    if summary.quality is not None:
        row += [percent(summary.quality.truncation_rate), percent(summary.quality.repetition_rate)]
    return row


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def with_interval(headline: Headline) -> str:
    """A headline figure with its interval, where it has one."""
    from fdllm.report.intervals import wilson  # noqa: PLC0415 - numpy; each command imports this

    interval = wilson(headline)
    if interval is None:
        return percent(headline.value)
    return f"{percent(headline.value)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def check_lines(cells: Sequence[CellState]) -> list[Text]:
    """The A/A check and the other findings of one task, a line each."""
    records = finished(cells)
    if mixtures(records):
        return []
    lines = twins_lines(records)
    lines += [Text(f"! {r.name}: {text}", "yellow") for r in records for text in r.summary.warnings]
    for group in identical(records):
        reuse_nothing = [
            r.name for r in records if r.name in group and not r.summary.strategy.reuses
        ]
        if reuse_nothing:
            text = f"{', '.join(group)} agree in every output: did the reuse reach this task?"
            lines.append(Text(f"! {text}", style="yellow"))
        else:
            text = f"{', '.join(group)} agree in every output: count them as one result"
            lines.append(Text(f"! {text}", style="yellow"))
    return lines


def twins_lines(records: Sequence[Record]) -> list[Text]:
    """The A/A check, a line for each set of cells that are one computation."""
    from fdllm.report.speed import noise_floor  # noqa: PLC0415 - numpy; each command imports this

    found = twins(records)
    floor = noise_floor(records) if found else None
    return [_twins_line(pair, floor) for pair in found]


def _twins_line(pair: Twins, floor: Floor | None) -> Text:
    names = " = ".join(pair.names)
    if not pair.equal:
        text = (
            f"✗ A/A: {', '.join(pair.names)} are one computation, yet {pair.num_differing} of "
            f"{pair.num_samples} samples differ{stated(pair.tolerance)}: "
            f"{'; '.join(pair.differing)}"
        )
        return Text(text, style="red")
    text = f"✓ A/A: {names} in all {pair.num_samples} samples{stated(pair.tolerance)}"
    if floor is not None and set(floor.names) <= set(pair.names):
        speeds = ", ".join(f"{speed:.1f}" for speed in floor.speeds)
        text += (
            f"; speeds {speeds}: noise floor {percent(floor.floor)}, no speed-up below it is "
            "claimed"
        )
    return Text(text, style="green")


def twins_agree(cells: Sequence[CellState]) -> bool:
    """Whether the A/A check of one task holds, or there is nothing to check."""
    records = finished(cells)
    return bool(mixtures(records)) or all(pair.equal for pair in twins(records))


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"

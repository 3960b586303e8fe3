"""Tables for the terminal. A table of figures is refused where its rows are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def requests_text(cell: CellState) -> str:
    """Requests answered, of how many; empty where nobody has counted."""
    if cell.done is None:
        return ""
    total = "?" if cell.total is None else str(cell.total)
    return str(cell.done) if cell.state is State.DONE else f"{cell.done} of {total}"


@dataclass(frozen=True)
class Column:
    """A column of figures, a text for each record.

    Attributes:
        name: its head.
        texts: what stands below.
        is_wide: left out where there is little room: in the terminal.
    """

    name: str
    texts: tuple[str, ...]
    is_wide: bool = False


def figure_columns(records: Sequence[Record]) -> list[Column]:
    """Figures of the records of one task: the table that the terminal and ``results.md`` show.

    Layer calls stand twice: the share that a run saved of its own, and those it made in the end by
    those of the first run that reuses nothing. Speeds are by the mean of all of these.
    """
    summaries = [record.summary for record in records]
    plain = [one for one in summaries if not one.strategy.reuses]
    speeds = [one.speed for one in plain]
    mean = sum(speeds) / len(speeds) if speeds and all(speeds) else None
    scored = bool(records) and summaries[0].kind == "loglikelihood"

    def column(name: str, text: Callable[[Summary], str], *, is_wide: bool = False) -> Column:
        return Column(name, tuple(text(one) for one in summaries), is_wide)

    def pace(name: str, figure: str) -> Column:
        return column(name, lambda one: f"{getattr(one.throughput, figure) or 0.0:.2f}")

    def quality(name: str, rate: str) -> Column:
        return column(name, lambda one: _share(getattr(one.quality, rate, None)))

    def beside_plain(text: Callable[[Summary, Summary], str]) -> Callable[[Summary], str]:
        return lambda one: text(one, plain[0]) if plain else ""

    def change(one: Summary, base: Summary) -> str:
        return f"{100 * (one.headline.value - base.headline.value):+.1f}"

    columns = [
        column("Accuracy [95 %]", lambda one: with_interval(one.headline)),
        column("Change", beside_plain(change), is_wide=True),
    ]
    if any(one.boxed_match is not None for one in summaries):
        columns.append(column("boxed_match", lambda one: _share(one.boxed_match)))
    if scored:
        columns.append(pace("Scored tokens/s", "scored_tokens_per_second"))
        columns.append(pace("Requests/s", "requests_per_second"))
    else:
        columns.append(pace("Tokens/s", "tokens_per_second"))
        columns.append(pace("Tokens/forward", "tokens_per_forward"))
    columns += [
        column(
            "Speed by k=1",
            lambda one: "" if mean is None else f"{one.speed / mean:.2f}",
            is_wide=True,
        ),
        column("Layer calls saved", lambda one: percent(one.layer_calls.saved_share)),
        column(
            "Layer calls by k=1",
            beside_plain(lambda one, base: f"{one.layer_calls.made / base.layer_calls.made:.2f}"),
        ),
    ]
    if not scored:
        columns += [
            quality("Truncated", "truncation_rate"),
            quality("Repetitive", "repetition_rate"),
        ]
    return columns


def counter_columns(records: Sequence[Record]) -> list[Column]:
    """Which layers each record could skip, its forwards by phase, and its layer calls."""
    summaries = [record.summary for record in records]
    forwards = [
        Column(
            f"{phase} forwards",
            tuple(str(one.counts.get(phase, {}).get("forwards", 0)) for one in summaries),
        )
        for phase in ("prefill", "refresh", "denoise", "commit")
    ]
    return [
        *forwards,
        Column("computed", tuple(str(one.layer_calls.computed) for one in summaries)),
        Column("reused", tuple(str(one.layer_calls.reused) for one in summaries)),
    ]


def figures_table(cells: Sequence[CellState]) -> Table:
    """Figures of each cell of one task.

    Returns:
        The table. Where the finished cells are not comparable its rows hold states only, and its
        caption says why.
    """
    records = finished(cells)
    table = Table(box=box.SIMPLE_HEAD)
    if problems := mixtures(records):
        table.caption = (
            "no figures: these records do not belong into one table. "
            + "; ".join(problems)
            + ". Compute them anew on one machine: fdllm sweep --force"
        )
        table.caption_style = "red"
        records = []
    columns = [column for column in figure_columns(records) if not column.is_wide]
    table.add_column("config")
    for column in columns:
        table.add_column(column.name[:1].lower() + column.name[1:], justify="right")
    table.add_column("state")
    rows = zip(*(column.texts for column in columns), strict=True)
    figures = dict(zip((record.name for record in records), rows, strict=True))
    for cell in cells:
        name = cell.run.cell.name
        table.add_row(name, *figures.get(name, [""] * len(columns)), state_text(cell.state))
    return table


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def with_interval(headline: Headline) -> str:
    """A headline figure with its interval, where it has one."""
    from fdllm.report.stats import wilson  # noqa: PLC0415 - numpy; each command imports this

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
    return lines + [Text(f"! {text}", "yellow") for text in identical_texts(records)]


def identical_texts(records: Sequence[Record]) -> list[str]:
    """Cells that reuse differently and agree all the same, a sentence for each group."""
    plain = {record.name for record in records if not record.summary.strategy.reuses}
    return [
        f"{', '.join(group)} agree in every output: "
        + ("did the reuse reach this task?" if plain & {*group} else "one result, not several")
        for group in identical(records)
    ]


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

"""Tables for the terminal. A table of figures is refused where its rows are not comparable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.text import Text

from fdllm.plan import RECORDED, CellState, State
from fdllm.record.summary import Headline, Summary
from fdllm.report.columns import Column, Fitted, Table
from fdllm.report.grid import GridFinding, checks, choose_baseline, mixtures
from fdllm.report.made import made_by
from fdllm.report.records import Record, finished

_STYLE = {
    State.DONE: ("✓", "green"),
    State.DECIDED: ("◆", "green"),
    State.PENDING: ("·", "dim"),
    State.QUEUED: ("…", "cyan"),
    State.RUNNING: ("▶", "cyan"),
    State.PARTIAL: ("◐", "yellow"),
    State.FAILED: ("✗", "red"),
    State.STALE: ("!", "yellow"),
    State.INVALID: ("✗", "red"),
    State.NOT_APPLICABLE: ("-", "dim"),
}
BY_BASELINE = (
    "By k=1: made by the config over made by {baseline}, on the same documents; above 1 where "
    "skipping costs more forwards than it saves. Bytes are moved at batch 1: of weights, of keys "
    "and values, of what reuse keeps. Tokens/s are described, of runs one after the other, and "
    "never compared."
)
_PACE = {
    True: ("scored_tokens_per_second", "requests_per_second"),
    False: ("tokens_per_second", "tokens_per_forward"),
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


def named_text(cell: CellState) -> Text:
    """A config behind its state's mark."""
    mark, style = _STYLE[cell.state]
    return Text.assemble((mark, style), f" {cell.run.cell.name}")


def requests_text(cell: CellState) -> str:
    """Requests answered, of how many; empty where nobody has counted."""
    if cell.done is None:
        return ""
    total = "?" if cell.total is None else str(cell.total)
    return str(cell.done) if cell.state is State.DONE else f"{cell.done} of {total}"


def _decided(cell: CellState) -> str:
    """How many documents decided a cell, and how many it saved; empty of any other."""
    known = cell.summary if cell.state in RECORDED else None
    return "" if known is None or known.decided is None else f" {saved_words(known)}"


def saved_words(summary: Summary) -> str:
    """Where a cell was decided and how many documents that saved; empty where it is whole."""
    found = summary.decided
    return "" if found is None else f"{found.documents} of {found.of}, saved {found.saved} rows"


def figure_columns(records: Sequence[Record], baseline: str | None) -> list[Column]:
    """Figures of the records of one task, the same in the terminal, ``results.md`` and the page.

    ``baseline`` counts as k=1. Tokens/s describe a run; they are compared nowhere
    (docs/running.md section 8).
    """
    every = [record.summary for record in records]
    plain = next((record for record in records if record.name == baseline), None)
    made = [None if plain is None else made_by(record, plain) for record in records]
    scored = bool(every) and every[0].kind == "loglikelihood"

    def column(name: str, text: Callable[[Summary], str], *, shown: bool = True) -> list[Column]:
        return [Column(name, [text(one) for one in every])] if shown else []

    def pace(name: str, figure: str) -> list[Column]:
        return column(name, lambda one: f"{getattr(one.throughput, figure) or 0.0:.2f}")

    def quality(name: str, rate: str) -> list[Column]:
        return column(name, lambda one: percent(getattr(one.quality, rate, None)), shown=not scored)

    def by_plain(name: str, figure: str) -> Column:
        ratios = [None if one is None else getattr(one, figure) for one in made]
        return Column(f"{name} by k=1", ["" if one is None else f"{one:.2f}" for one in ratios])

    return [
        *column("Accuracy [95 %]", lambda one: with_interval(one.headline)),
        *column(
            "boxed_match",
            lambda one: percent(one.boxed_match),
            shown=any(one.boxed_match is not None for one in every),
        ),
        by_plain("Layer calls", "layer_calls"),
        by_plain("FLOPs", "flops"),
        by_plain("Bytes", "bytes"),
        *pace("Requests/s" if scored else "Tokens/forward", _PACE[scored][1]),
        *pace(
            "Scored tokens/s (described)" if scored else "Tokens/s (described)", _PACE[scored][0]
        ),
        *quality("Truncated", "truncation_rate"),
        *quality("Repetitive", "repetition_rate"),
    ]


def figures_table(cells: Sequence[CellState], baseline: str | None = None) -> Fitted:
    """Figures of each cell of one task, against ``baseline``; None is the first without reuse.

    Where the finished cells are not comparable rows hold states only, and the caption says why.
    """
    records, caption = finished(cells), ""
    if problems := mixtures(records):
        caption = (
            "no figures: these records do not belong into one table. "
            + "; ".join(problems)
            + ". Compute them anew on one machine: fdllm sweep --force"
        )
        records = []
    at = {record.name: i for i, record in enumerate(records)}
    names = [cell.run.cell.name for cell in cells]
    columns = [Column("config", names, is_words=True)]
    plain = choose_baseline(records, baseline)
    for one in figure_columns(records, None if plain is None else plain.name):
        texts = [one.texts[at[name]] if name in at else "" for name in names]
        columns.append(Column(one.name, texts))
    states = [state_text(cell.state) for cell in cells]
    shown = [f"{state.plain}{_decided(cell)}" for state, cell in zip(states, cells, strict=True)]
    columns.append(Column("state", shown, is_words=True, styles=[str(s.style) for s in states]))
    return Table(columns, caption).terminal()


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; nothing where it is not known."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def with_interval(headline: Headline) -> str:
    """A headline figure with its interval, where it has one."""
    from fdllm.report.stats import wilson  # noqa: PLC0415 - scipy; each command imports this

    interval = wilson(headline)
    return percent(headline.value) if interval is None else interval.shown(100, ".1f", " %")


def cell_checks(cells: Sequence[CellState]) -> list[GridFinding]:
    """The A/A check and the other findings of one task; none where its cells do not compare."""
    records = finished(cells)
    return [] if mixtures(records) else checks(records)

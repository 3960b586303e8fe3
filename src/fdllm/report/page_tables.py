"""The tables of a report: what was measured, what it means, where it went, where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple

from fdllm.record.measure import made
from fdllm.report.alternative import CONTROLS, Alternative
from fdllm.report.bounds import Bound, Bounds
from fdllm.report.build import TablePage
from fdllm.report.columns import Column, Table
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.records import Record
from fdllm.report.table import BY_BASELINE, figure_columns, percent, saved_words
from fdllm.report.times import shown
from fdllm.report.verdict import Judgement

_PHASES = ("prefill", "refresh", "denoise", "commit")
VERDICTS = {"same-or-better": "met", "worse": "missed", "cannot-tell": "open"}
"""The page's class of each verdict."""


def page_tables(table: TablePage, records: Sequence[Record]) -> dict[str, Table | None]:
    """The tables of one task by name; None where there is nothing to show."""
    return {
        "grid": grid_table(table, records),
        "bounds": bounds_table(table),
        "alternative": alternative_table(table),
        "saved": _saved(table),
        "shares": _by_config(
            table,
            "How many tokens a denoising step unmasks, in percent of the steps.",
            [*map(str, range(1, 8)), "8+"],
            lambda cell: (
                [f"{100 * share:.0f}" for share in cell.steps.shares] if cell.steps else None
            ),
        ),
        "tenths": _by_config(
            table,
            "Mean tokens a step unmasks, from the first tenth of an answer's steps to the last.",
            [*map(str, range(1, 11))],
            lambda cell: [_figure(mean) for mean in cell.steps.tenths] if cell.steps else None,
        ),
        "lengths": _by_config(
            table,
            "Tokens of an answer: the lengths below which so many answers stay, and the mean. "
            "Speed is no merit where answers only grow longer. Truncated, in the grid: answers "
            "that ended at their token limit. Repetitive: answers of which more than half of all "
            "8-token windows have occurred before.",
            ["5 %", "25 %", "half", "75 %", "95 %", "mean"],
            lambda cell: (
                [f"{tokens:.0f}" for tokens in astuple(cell.lengths)] if cell.lengths else None
            ),
        ),
        "subjects": _subjects(table),
        "differing": Table(
            [
                _names(table.cells),
                *(
                    Column(name, [values[cell.name] for cell in table.cells], is_words=True)
                    for name, values in table.origin.differing.items()
                ),
            ],
            "What differs between the cells.",
        ),
        "same": Table(
            [
                Column("fact", list(table.origin.same), is_words=True),
                Column("value", list(table.origin.same.values()), is_words=True),
            ],
            "What all cells share.",
        ),
    }


def criteria_table(verdict: Judgement) -> Table:
    """The criteria, cell by cell."""
    columns = [
        Column("Config", [one.config for one in verdict.cells], is_words=True),
        Column("Task", [one.task for one in verdict.cells], is_words=True),
    ]
    for judged in zip(*(one.findings for one in verdict.cells), strict=True):
        texts = [f"{one.outcome}: {one.text}" for one in judged]
        styles = [one.outcome for one in judged]
        columns.append(Column(judged[0].criterion, texts, is_words=True, styles=styles))
    words = [one.words for one in verdict.cells]
    styles = ["soft" if one.left_out else one.outcome for one in verdict.cells]
    columns.append(Column("Together", words, is_words=True, styles=styles))
    return Table(columns, "The criteria, cell by cell.")


def _names(cells: Sequence[CellFigures]) -> Column:
    return Column("Config", [cell.name for cell in cells], is_words=True)


def _figure(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else f"{value:{form}}"


def _by_config(
    table: TablePage,
    caption: str,
    heads: Sequence[str],
    texts: Callable[[CellFigures], Sequence[str] | None],
) -> Table | None:
    """A row for each config that has these figures; None where none has."""
    rows = {cell.name: row for cell in table.cells if (row := texts(cell))}
    if not rows:
        return None
    columns = zip(heads, zip(*rows.values(), strict=True), strict=True)
    names = Column("Config", [*rows], is_words=True)
    return Table([names, *(Column(head, column) for head, column in columns)], caption)


def grid_table(table: TablePage, records: Sequence[Record]) -> Table:
    """Each config against the baseline, in accuracy and in time, and its own figures."""
    base = table.baseline or "the baseline"
    against = [table.against.get(cell.name) for cell in table.cells]

    def column(name: str, text: Callable[[Comparison], str]) -> Column:
        return Column(name, ["" if one is None else text(one) for one in against])

    def time(one: Comparison) -> str:
        return "" if one.speed is None else shown(one.speed.ratio)

    verdicts = ["" if one is None else one.verdict for one in against]
    said = [
        "baseline" if cell.name == table.baseline else verdict.replace("-", " ")
        for cell, verdict in zip(table.cells, verdicts, strict=True)
    ]
    accuracy, *figures = figure_columns(records, table.baseline)
    ended = [saved_words(record.summary) for record in records]
    columns = [
        _names(table.cells),
        *([Column("Decided", ended)] if any(ended) else []),
        accuracy,
        column("Change [95 %]", lambda one: one.difference.shown(100, "+.1f")),
        column("p (Holm)", lambda one: "< 0.001" if one.p_holm < 0.001 else f"{one.p_holm:.3f}"),  # noqa: PLR2004 - three places
        Column("Accuracy is", said, styles=[VERDICTS.get(one, "soft") for one in verdicts]),
    ]
    if table.times.pairs:
        columns += [column("Time by k=1 [95 %]", time), column("Claim", lambda one: one.claim)]
    text = f"Change: accuracy less {base}'s, in points, on the same documents."
    if any(ended):
        text += (
            " Decided: the config ended where its criteria were decided; the verdict takes that "
            "decision, and intervals here are those of a fixed number of documents."
        )
    if table.times.pairs:
        text += f" Time: {table.times.sentence}; {table.times.reach}."
    return Table([*columns, *figures], f"{text} {BY_BASELINE.format(baseline=base)}")


def alternative_table(table: TablePage) -> Table | None:
    """Each config beside the best threshold that takes no more time."""
    found, cells = table.alternative.against, {c.name: c for c in table.alternative.cells}
    if not found:
        return None
    times = [shown(table.times.pairs[one.config].ratio) for one in found]
    theirs = [shown(cells[one.rival].cost) if one.rival else "" for one in found]
    changes = [one.difference.shown(100, "+.1f") if one.difference else "" for one in found]
    return Table(
        [
            Column("Config", [one.config for one in found], is_words=True),
            Column("Time by k=1 [95 %]", times),
            Column("Threshold", [one.rival or "none" for one in found]),
            Column("Its time by k=1 [95 %]", theirs),
            Column("Accuracy against it [95 %]", changes),
            Column("Accuracy is", [one.word for one in found]),
        ],
        "Against lowering the threshold instead (05_threshold): the most accurate threshold that "
        "is not shown to be slower, by both intervals and both noise floors. The two experiments' "
        "times were taken apart, so each is by its own k=1.",
    )


def _saved(table: TablePage) -> Table | None:
    """What skipping could bring, and where the layer calls went."""
    unit = "generated" if table.kind == "generate" else "scored"

    def row(cell: CellFigures) -> list[str]:
        tokens = max(cell.tokens, 1)
        calls = [made(cell.calls.get(phase, {})) / tokens for phase in _PHASES]
        saved = sum(_unmade(count) for count in cell.calls.values()) / tokens
        return [
            *((_figure(cell.ideal, ".2f"), f"{cell.possible:.2f}") if cell.reuses else ("", "")),
            f"{100 * cell.saved_share:.1f} %" if cell.reuses else "",
            *(f"{number:.2f}" for number in (*calls, sum(calls), saved)),
        ]

    return _by_config(
        table,
        "Ideal: the factor that layer calls allow if every step but each k-th skips the layers. "
        "Possible: by the share of its own calls that the config really skipped. Then layer calls "
        f"for each {unit} token: made, by phase and together, and reused.",
        ["Ideal", "Possible", "Skipped", *_PHASES, "made", "reused"],
        row,
    )


def _unmade(count: Mapping[str, float]) -> float:
    return count.get("reused", 0) + count.get("trimmed", 0)


def _subjects(table: TablePage) -> Table | None:
    """Each config's accuracy by subject, and its change from the baseline."""
    names = sorted({name for cell in table.cells for name in cell.subjects})
    base = {} if table.base is None else table.base.subjects
    if not names:
        return None

    def text(cell: CellFigures, name: str) -> str:
        value = cell.subjects.get(name, (0.0, 0))[0]
        if cell.name == table.baseline or name not in base:
            return f"{100 * value:.1f}"
        return f"{100 * value:.1f} [{100 * (value - base[name][0]):+.1f}]"

    counts = [max(cell.subjects.get(n, (0.0, 0))[1] for cell in table.cells) for n in names]
    return Table(
        [
            Column("Subject", names, is_words=True),
            Column("n", [*map(str, counts)]),
            *(Column(cell.name, [text(cell, name) for name in names]) for cell in table.cells),
        ],
        f"Accuracy, %. In brackets, points above or below {table.baseline or 'the baseline'}.",
    )


def bounds_table(table: TablePage) -> Table | None:
    """A row for each config but the baseline; None where there is none."""
    found = table.bounds
    if not found.rows:
        return None
    made = [one.made for one in found.rows]
    saved = ["" if one.layer_calls is None else percent(1 - one.layer_calls) for one in made]
    oracle = Column("Of the oracle's saving", [oracle_share(one) for one in found.rows])
    columns = [
        Column("Config", [one.config for one in found.rows], is_words=True),
        Column("Answers changed", [str(one.changed) for one in found.rows]),
        Column("Layer calls saved", saved),
        *([] if found.oracle is None else [oracle]),
        Column("Forwards by k=1", [_ratio(one.forwards, 1) for one in made]),
        Column("Calls a forward by k=1", [_ratio(one.layer_calls, one.forwards) for one in made]),
        *(
            Column(f"Against {CONTROLS[one.experiment]}", _against(one, found.rows), is_words=True)
            for one in found.controls
        ),
    ]
    return Table(columns, _words(found, str(table.baseline)))


def _ratio(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.2f}" if part is not None and whole else ""


def oracle_share(one: Bound) -> str:
    """Its saving by the oracle's, in brackets where it changes answers; empty where unknown."""
    if one.of_oracle is None:
        return ""
    return f"({percent(one.of_oracle)})" if one.changed else percent(one.of_oracle)


def _against(control: Alternative, rows: Sequence[Bound]) -> list[str]:
    said = {
        one.config: one.word
        if one.difference is None
        else f"{one.rival}: {one.difference.shown(100, '+.1f')}"
        for one in control.against
    }
    return [said.get(one.config, "") for one in rows]


def _words(found: Bounds, base: str) -> str:
    """How to read it."""
    text = (
        f"Bounds and controls. Layer calls saved: those that {base} made and the config did not. "
        "What it made by k=1 is its forwards by k=1 times the calls of each by k=1: whether "
        "forwards were cheaper, and how many more or fewer there were."
    )
    if (oracle := found.oracle) is not None:
        text += (
            " The oracle knows what each step will unmask, and reuses the longest run of layers "
            f"that leaves all of that as it is: it saves {percent(oracle.saved)} of the layer "
            f"calls of {oracle.num_documents} documents ({percent(oracle.in_denoise, 0)} of that "
            f"in DENOISE), and its plan, run, gives {oracle.equal_texts} of their texts. Shares of "
            "its saving are of the same documents; in brackets where a config changes answers, "
            "which the oracle never does."
        )
    if found.controls:
        names = ", ".join(one.experiment for one in found.controls)
        text += (
            f" Against a control ({names}): accuracy in points, with 95 % intervals, less that of "
            "the control's most accurate config that makes no more layer calls by its own k=1."
        )
    return text

"""The table of bounds and controls: each config's saving beside what it is worth."""

from __future__ import annotations

from collections.abc import Sequence

from fdllm.report.alternative import CONTROLS, Alternative
from fdllm.report.bounds import Bound, Bounds
from fdllm.report.build import TablePage
from fdllm.report.columns import Column, Table
from fdllm.report.table import percent


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

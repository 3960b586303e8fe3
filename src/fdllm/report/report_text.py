"""What a report says in words about a table: its summary, its notices, its captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fdllm.report.build import TablePage
from fdllm.runs import CONFIG_NAME


@dataclass(frozen=True)
class Missing:
    """A cell of the grid that has no record.

    Attributes:
        name: the config.
        state: its state.
        reason: why.
    """

    name: str
    state: str
    reason: str


@dataclass(frozen=True)
class Notice:
    """Something a reader must know before the figures.

    Attributes:
        text: a sentence.
        kind: ``good``, ``bad`` or empty.
    """

    text: str
    kind: str = ""


def notices(table: TablePage, overlap: str | None) -> list[Notice]:
    """A/A check, identical cells, overlapping subsets, speed without accuracy."""
    names = {cell.name for cell in table.cells}
    found = [Notice(f"{_sentence(one.text, names)}.", "bad") for one in table.findings]
    floor = table.floor
    if floor is not None and not any(one.kind == "twins-differ" for one in table.findings):
        speeds = ", ".join(f"{speed:.1f}" for speed in floor.speeds)
        noise = (
            f"set the noise floor at {100 * floor.floor:.1f} %; no speed-up below it is claimed."
            if floor.floor <= 1
            else "lie so far apart that nothing can be said about speed here."
        )
        text = (
            f"A/A check: {' = '.join(floor.names)} in every output, as they must. Their speeds "
            f"({speeds} {table.unit}) {noise}"
        )
        # Equal outputs are good news; speeds that far apart are none.
        found.append(Notice(text, "good" if floor.odd is None else ""))
    elif floor is None:
        text = "No two cells here are one computation, so the noise of the speeds is unknown and "
        found.append(Notice(text + "no speed-up is claimed."))
    collapsed = [f"{n} ({'; '.join(a.collapsed)})" for n, a in table.against.items() if a.collapsed]
    if collapsed:
        text = f"Collapsed, so that their speed is no merit: {', '.join(collapsed)}."
        found.append(Notice(text, "bad"))
    if overlap:
        found.append(Notice(f"{overlap[:1].upper()}{overlap[1:]}."))
    if table.kind == "generate" and any(cell.repetition is None for cell in table.cells):
        found.append(
            Notice("Some journals are not here: repetition and unmasking cannot be shown for them.")
        )
    return found


def _sentence(text: str, names: set[str]) -> str:
    """Begins with a capital, unless it begins with a config's name."""
    return text if text.split(" ", 1)[0].rstrip(",") in names else text[:1].upper() + text[1:]


def summary_sentence(table: TablePage) -> str:
    """The table in two sentences."""
    reusing = [(cell, table.against.get(cell.name)) for cell in table.cells if cell.reuses]
    if not reusing:
        speeds = [cell.speed for cell in table.cells]
        best = max(table.cells, key=lambda cell: cell.accuracy)
        return (
            f"nothing is reused here. Accuracy is at best {100 * best.accuracy:.1f} % "
            f"({best.name}), speed {min(speeds):.1f} to {max(speeds):.1f} {table.unit}."
        )
    if table.base is None:
        return "no cell without reuse is done, so nothing can be compared yet."
    held = [cell for cell, a in reusing if a is not None and a.verdict == "same-or-better"]
    worse = [cell for cell, a in reusing if a is not None and a.verdict == "worse"]
    unsure = len(reusing) - len(held) - len(worse)
    text = (
        f"{table.baseline} reaches {100 * table.base.accuracy:.1f} % at "
        f"{table.base.speed:.1f} {table.unit}. Of {len(reusing)} configs that reuse, {len(held)} "
        f"hold its accuracy, {len(worse)} lose some, {unsure} cannot be told."
    )
    ratios = [
        (a.speed.ratio, a.speed.claim, cell)
        for cell, a in reusing
        if a is not None and a.speed is not None and not a.collapsed
    ]
    if not ratios:
        return f"{text} None of them is worth a word on speed."
    ratio, claim, cell = max(ratios, key=lambda one: one[0].value)
    rest = "" if len(ratios) == len(reusing) else " that did not collapse"
    said = {
        "faster": f"takes {_times(1 / ratio.value)} of the time",
        "slower": f"takes {_times(1 / ratio.value)} of the time",
    }.get(claim, f"is not shown to be faster ({ratio.value:.2f} times the speed)")
    saved = f"{100 * cell.saved_share:.0f} % of its layer calls saved"
    made = f"it makes {cell.made / table.base.made:.2f} times {table.baseline}'s"
    return f"{text} The fastest{rest}, {cell.name}, {said}, with {saved}; {made}."


def _times(share: float) -> str:
    return f"{100 * share:.0f} %"


def legend(table: TablePage) -> list[tuple[str, str, str]]:
    """Class, sign and text of the marks in the scatter plot."""
    entries = []
    if any(not cell.reuses for cell in table.cells):
        entries.append(("s0", "●", "no reuse"))
    reusing = [cell for cell in table.cells if cell.reuses]
    if reusing and all(CONFIG_NAME.match(cell.name) for cell in reusing):
        subsets = {cell.subset for cell in reusing}
        colours = (("s1", "first"), ("s2", "middle"), ("s3", "last"))
        entries += [(kind, "▬", name) for kind, name in colours if name in subsets]
    elif reusing:
        entries.append(("s1", "▬", "reuse"))
    signs = {2: "■", 3: "▲"}
    periods = sorted({cell.k for cell in reusing if cell.k > 1})
    entries += [("soft", signs.get(k, "◆"), f"k = {k}") for k in periods]
    if table.alternative.cells:
        entries.append(("s4", "\N{MULTIPLICATION SIGN}", "threshold lowered instead"))
    return entries


def subject_rows(table: TablePage) -> list[dict[str, Any]]:
    """The table by subject: each config's accuracy, and its change from the baseline."""
    names = sorted({name for cell in table.cells for name in cell.subjects})
    base: Mapping[str, tuple[float, int]] = {} if table.base is None else table.base.subjects
    rows = []
    for name in names:
        cells = []
        for cell in table.cells:
            value = cell.subjects.get(name, (0.0, 0))[0]
            own = cell.name == table.baseline or name not in base
            cells.append((value, None if own else value - base[name][0]))
        num = max(cell.subjects.get(name, (0.0, 0))[1] for cell in table.cells)
        rows.append({"name": name, "n": num, "cells": cells})
    return rows

"""What a report says in words about a table: its one-sentence summary, its notices, its captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fdllm.config import CONFIG_NAME
from fdllm.report.measured import Measured
from fdllm.report.page import TablePage


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
    found = [_same_work(table, i) for i in range(len(table.same_work))]
    for group in table.identical:
        plain = [cell.name for cell in table.cells if cell.name in group and not cell.reuses]
        what = "did the reuse reach this task?" if plain else "count them as one result"
        number = "cells agree" if len(group) < len(table.cells) else "identical cells"
        found.append(Notice(f"{len(group)} {number} in every output ({', '.join(group)}): {what}", "bad"))
    collapsed = [c for c in table.cells if _collapsed(c, table.base)]
    if collapsed:
        names = ", ".join(cell.name for cell in collapsed)
        text = (
            f"Collapsed: {names}. Less than half of {table.baseline}'s accuracy is left, or the "
            "answers degenerate; their speed is no merit."
        )
        found.append(Notice(text, "bad"))
    if overlap:
        found.append(Notice(f"{overlap[0].upper()}{overlap[1:]}."))
    if table.kind == "generate" and any(cell.repetition is None for cell in table.cells):
        found.append(
            Notice("Some journals are not here: repetition and unmasking cannot be shown for them.")
        )
    return found


def _same_work(table: TablePage, index: int) -> Notice:
    check = table.same_work[index]
    names = " = ".join(check.names)
    if check.num_differing:
        return Notice(
            f"A/A check failed: {', '.join(check.names)} are one computation, yet "
            f"{check.num_differing} of {check.num_samples} documents differ "
            f"({'; '.join(check.examples)}).",
            "bad",
        )
    speeds = ", ".join(f"{speed:.1f}" for speed in check.speeds)
    return Notice(
        f"A/A check: {names} in all {check.num_samples} documents. Their speeds ({speeds} "
        f"{table.unit}) set the noise floor at {100 * check.noise:.1f} %; no speed-up below it is "
        "claimed.",
        "good",
    )


def _collapsed(cell: Measured, base: Measured | None) -> bool:
    if base is None or cell.name == base.name or not cell.reuses:
        return False
    degenerate = (cell.repetition or 0.0) > 0.5 > (base.repetition or 0.0)  # noqa: PLR2004 - most
    return cell.accuracy.value < base.accuracy.value / 2 or degenerate


def summary_sentence(table: TablePage) -> str:
    """The table in two sentences."""
    reusing = [(cell, table.against.get(cell.name)) for cell in table.cells if cell.reuses]
    if not reusing:
        speeds = [cell.speed for cell in table.cells]
        best = max(table.cells, key=lambda cell: cell.accuracy.value)
        return (
            f"nothing is reused here. Accuracy is at best {100 * best.accuracy.value:.1f} % "
            f"({best.name}), speed {min(speeds):.1f} to {max(speeds):.1f} {table.unit}."
        )
    if table.base is None:
        return "no cell without reuse is done, so nothing can be compared yet."
    held = [cell for cell, a in reusing if a is not None and a.verdict == "same-or-better"]
    worse = [cell for cell, a in reusing if a is not None and a.verdict == "worse"]
    unsure = len(reusing) - len(held) - len(worse)
    text = (
        f"{table.baseline} reaches {100 * table.base.accuracy.value:.1f} % at "
        f"{table.base.speed:.1f} {table.unit}. Of {len(reusing)} configs that reuse, {len(held)} "
        f"hold its accuracy, {len(worse)} lose some, {unsure} cannot be told."
    )
    ratios = [
        (a.speed_ratio, cell)
        for cell, a in reusing
        if a is not None and a.speed_ratio is not None and not _collapsed(cell, table.base)
    ]
    if not ratios:
        return text
    ratio, cell = max(ratios, key=lambda pair: pair[0].value)
    rest = "" if len(ratios) == len(reusing) else " that did not collapse"
    noise = max((check.noise for check in table.same_work), default=0.0)
    claim = (
        f"runs at {ratio.value:.2f} times the speed" if ratio.value > 1 + noise
        else f"is no faster than noise ({ratio.value:.2f} times)"
    )  # fmt: skip
    return f"{text} The fastest{rest}, {cell.name}, {claim} and saves {100 * cell.saved_share:.0f} % of the layer calls."


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
    signs = {2: "■ k = 2", 3: "▲ k = 3"}
    periods = sorted({cell.k for cell in reusing})
    entries += [
        ("soft", *signs.get(k, f"◆ k = {k}").split(" ", 1)) for k in periods if k > 1
    ]
    if table.alternative.cells:
        entries.append(("s4", "×", "threshold lowered instead"))
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


def heat_captions(table: TablePage) -> Sequence[str]:
    """What stands under the three heat maps."""
    return (
        "Accuracy, % of the documents.",
        f"Speed, {table.unit} of model time.",
        "Layer calls that were not computed, % of all.",
    )

"""Reuse against the plain alternative: lowering the confidence threshold, at equal speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fdllm.report.compare import compare
from fdllm.report.figures import CellFigures, cell_figures
from fdllm.report.grid import mixtures
from fdllm.report.records import Record, load_records
from fdllm.report.stats import Estimate

EXPERIMENT = "05_threshold"


@dataclass(frozen=True)
class EqualSpeed:
    """One config against the curve of thresholds."""

    config: str  # the config
    speed: float  # its speed
    accuracy: float  # its accuracy
    # the curve's accuracy at that speed, between its two nearest cells; None where the speed lies
    # outside the curve
    curve_accuracy: float | None
    # the slowest threshold cell that is at least as fast; None where there is none
    rival: str | None
    # the config's accuracy less the rival's, paired; None without a rival
    difference: Estimate | None
    sentence: str  # in words


@dataclass(frozen=True)
class Alternative:
    """The alternative's cells."""

    cells: tuple[CellFigures, ...]  # figures of the threshold cells, the slowest first
    against: tuple[EqualSpeed, ...]  # each config of the table against them
    note: str  # why nothing is drawn; empty where it is


def find_alternative(
    results: Path, table: Sequence[Record], figures: Sequence[CellFigures]
) -> Alternative:
    """The threshold cells that may stand beside a table.

    Raises:
        FdllmError: a record of the alternative is broken.
    """
    first = table[0]
    if first.summary.experiment == EXPERIMENT:
        return Alternative((), (), "")
    found = [
        cell
        for cell in load_records(results, EXPERIMENT, first.task, first.limit)
        if cell.folder.parent.name == first.folder.parent.name and cell.limit == first.limit
    ]
    if not found:
        return Alternative((), (), f"{EXPERIMENT} has no records of this task, model and limit")
    if problems := mixtures([first, *found], varying=frozenset({"experiment"})):
        note = f"{EXPERIMENT} has records, yet not comparable ones: {'; '.join(problems)}"
        return Alternative((), (), note)
    curve = sorted(((cell_figures(cell), cell) for cell in found), key=lambda pair: pair[0].speed)
    pairs = zip(figures, table, strict=True)
    against = tuple(_at_equal_speed(one, cell, curve) for one, cell in pairs if one.reuses)
    return Alternative(tuple(one for one, _ in curve), against, "")


def _at_equal_speed(
    one: CellFigures, cell: Record, curve: Sequence[tuple[CellFigures, Record]]
) -> EqualSpeed:
    speeds, heights = zip(*((found.speed, found.accuracy) for found, _ in curve), strict=True)
    inside = speeds[0] <= one.speed <= speeds[-1]
    between = float(np.interp(one.speed, speeds, heights)) if inside else None
    unit = "tokens/s" if cell.summary.kind == "generate" else "scored tokens/s"
    text = f"{one.name}: {100 * one.accuracy:.1f} % at {one.speed:.1f} {unit}"
    if between is not None:
        text += f"; thresholds alone give {100 * between:.1f} % at that speed"
    faster = next((pair for pair in curve if pair[0].speed >= one.speed), None)
    if faster is None:
        text += ". No threshold of the curve is as fast."
        return EqualSpeed(one.name, one.speed, one.accuracy, between, None, None, text)
    rival, record = faster
    difference = compare(record, cell).difference
    word = (
        "less accurate" if difference.high < 0
        else "more accurate" if difference.low > 0
        else "not told apart"
    )  # fmt: skip
    text += f". Against {rival.name}, at least as fast: "
    text += f"{difference.shown(100, '+.1f', ' points')}, {word}."
    return EqualSpeed(one.name, one.speed, one.accuracy, between, rival.name, difference, text)

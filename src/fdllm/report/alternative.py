"""Reuse against the plain alternative: lowering the confidence threshold, at equal speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from fdllm.report.compare import compare
from fdllm.report.measured import Measured, measured
from fdllm.report.records import Record, load_records
from fdllm.report.stats import Estimate

EXPERIMENT = "05_threshold"
_SAME_FIELDS = (
    "source", "lock", "model", "revision", "task", "dtype", "limit", "fewshot_seed",
    "scoring", "num_fewshot", "chat_template", "asking", "preset",
)  # fmt: skip


@dataclass(frozen=True)
class EqualSpeed:
    """One config against the curve of thresholds.

    Attributes:
        config: the config.
        speed: its speed.
        accuracy: its accuracy.
        curve_accuracy: the curve's accuracy at that speed, between its two nearest cells; None
            where the speed lies outside the curve.
        rival: the slowest threshold cell that is at least as fast; None where there is none.
        difference: the config's accuracy less the rival's, paired; None without a rival.
        sentence: in words.
    """

    config: str
    speed: float
    accuracy: float
    curve_accuracy: float | None
    rival: str | None
    difference: Estimate | None
    sentence: str


@dataclass(frozen=True)
class Alternative:
    """The alternative's cells.

    Attributes:
        cells: figures of the threshold cells, the slowest first.
        against: each config of the table against them.
        note: why nothing is drawn; empty where it is.
    """

    cells: tuple[Measured, ...]
    against: tuple[EqualSpeed, ...]
    note: str


def find_alternative(results: Path, table: Sequence[Record]) -> Alternative:
    """The threshold cells that may stand beside a table.

    Args:
        results: folder of all records.
        table: finished cells of one task, model and limit.

    Raises:
        FdllmError: a record of the alternative is broken.
    """
    first = table[0]
    if first.summary.experiment == EXPERIMENT:
        return Alternative((), (), "")
    place = first.folder.parent.name
    same_place = [
        cell
        for cell in load_records(results, EXPERIMENT, first.task, first.limit)
        if cell.folder.parent.name == place and cell.limit == first.limit
    ]
    if not same_place:
        return Alternative((), (), f"{EXPERIMENT} has no records of this task, model and limit")
    problems = sorted({what for cell in same_place for what in _differences(first, cell)})
    if problems:
        note = f"{EXPERIMENT} has records, yet not comparable ones: {', '.join(problems)} differ"
        return Alternative((), (), note)
    curve = sorted(((measured(cell), cell) for cell in same_place), key=lambda pair: pair[0].speed)
    against = tuple(_at_equal_speed(cell, curve) for cell in table if cell.summary.strategy.reuses)
    return Alternative(tuple(one for one, _ in curve), against, "")


def _differences(one: Record, other: Record) -> list[str]:
    mine, theirs = one.summary.fingerprint.fields, other.summary.fingerprint.fields
    found = [
        name for name in _SAME_FIELDS
        if None not in (mine.get(name), theirs.get(name)) and mine[name] != theirs[name]
    ]  # fmt: skip
    if one.summary.dataset != other.summary.dataset:
        found.append("documents")
    if one.summary.machines != other.summary.machines:
        found.append("machine")
    if one.summary.estimator != other.summary.estimator:
        found.append("estimator")
    return found


def _at_equal_speed(cell: Record, curve: Sequence[tuple[Measured, Record]]) -> EqualSpeed:
    one = measured(cell)
    unit = "tokens/s" if cell.summary.kind == "generate" else "scored tokens/s"
    between = _interpolate(one.speed, [found for found, _ in curve])
    faster = next((pair for pair in curve if pair[0].speed >= one.speed), None)
    difference = None
    if faster is not None:
        difference = compare(faster[1], cell).difference
    return EqualSpeed(
        config=one.name,
        speed=one.speed,
        accuracy=one.accuracy,
        curve_accuracy=between,
        rival=None if faster is None else faster[0].name,
        difference=difference,
        sentence=_sentence(one, between, faster[0] if faster else None, difference, unit),
    )


def _interpolate(speed: float, curve: Sequence[Measured]) -> float | None:
    for slow, fast in pairwise(curve):
        if slow.speed <= speed <= fast.speed:
            room = fast.speed - slow.speed
            share = (speed - slow.speed) / room if room else 0.0
            return slow.accuracy + share * (fast.accuracy - slow.accuracy)
    return None


def _sentence(
    one: Measured,
    between: float | None,
    rival: Measured | None,
    difference: Estimate | None,
    unit: str,
) -> str:
    text = f"{one.name}: {100 * one.accuracy:.1f} % at {one.speed:.1f} {unit}"
    if between is not None:
        text += f"; thresholds alone give {100 * between:.1f} % at that speed"
    if rival is None or difference is None:
        return f"{text}. No threshold of the curve is as fast."
    shown = (
        f"{100 * difference.value:+.1f} points "
        f"[{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    )
    word = (
        "less accurate" if difference.high < 0
        else "more accurate" if difference.low > 0
        else "not told apart"
    )  # fmt: skip
    return f"{text}. Against {rival.name}, at least as fast: {shown}, {word}."

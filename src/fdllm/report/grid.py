"""What the cells of a grid say about each other before anything is compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fdllm.report.agreement import agree, stated, tolerance_of
from fdllm.report.checks import identical, mixtures
from fdllm.report.pairs import NotComparableError, same_computation
from fdllm.report.records import Record
from fdllm.report.speed import noise_floor

Kind = Literal["warning", "identical", "twins-differ", "twins-speed"]

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Finding:
    """Something about a grid that a reader must know ahead of its figures.

    Attributes:
        kind: ``warning`` where a few rows did not pass a check, ``identical`` cells that should
            differ, ``twins-differ`` where one computation gave several outputs, ``twins-speed``
            where it took very different times.
        cells: the cells it is about.
        text: the sentence.
    """

    kind: Kind
    cells: tuple[str, ...]
    text: str


def check_grid(cells: Sequence[Record]) -> None:
    """Refuse a table over records that do not belong together.

    Raises:
        NotComparableError: code, versions, model, documents, estimator or machine differ.
    """
    problems = mixtures(cells)
    if problems:
        raise NotComparableError(
            f"these records do not belong into one table: {'; '.join(problems)}. Compute the cells "
            "anew under one state of the code, on one machine: fdllm sweep --force"
        )


def findings(cells: Sequence[Record]) -> list[Finding]:
    """What is suspicious in a grid of one task."""
    return [*_warnings(cells), *_identical(cells), *_twins_differ(cells), *_twins_speed(cells)]


def _warnings(cells: Sequence[Record]) -> list[Finding]:
    return [
        Finding("warning", (cell.name,), f"{cell.name}: {text}")
        for cell in cells
        for text in cell.summary.warnings
    ]


def _identical(cells: Sequence[Record]) -> list[Finding]:
    found = []
    by_name = {cell.name: cell for cell in cells}
    for group in identical(cells):
        number = _NUMBERS[len(group)] if len(group) < len(_NUMBERS) else str(len(group))
        value = by_name[group[0]].summary.headline.value
        plain = [name for name in group if not by_name[name].summary.strategy.reuses]
        agrees = f"every output agrees{stated(tolerance_of(by_name[n].summary for n in group))}"
        why = (
            "cells that reuse agree with cells that do not, so the reuse may never have reached "
            "this task"
            if plain
            else "they are one result, not several"
        )
        found.append(
            Finding(
                "identical",
                group,
                f"{number} identical cells ({', '.join(group)}): {agrees}, at "
                f"{100 * value:.2f} %; {why}",
            )
        )
    return found


def _twins_differ(cells: Sequence[Record]) -> list[Finding]:
    found = []
    for i, one in enumerate(cells):
        for other in cells[i + 1 :]:
            if not same_computation(one, other):
                continue
            shared = one.by_key.keys() & other.by_key.keys()
            tolerance = tolerance_of((one.summary, other.summary))
            number = sum(not agree(one.by_key[key], other.by_key[key], tolerance) for key in shared)
            if number:
                found.append(
                    Finding(
                        "twins-differ",
                        (one.name, other.name),
                        f"{one.name} and {other.name} are one computation, yet {number} of "
                        f"{len(shared)} outputs differ{stated(tolerance)}",
                    )
                )
    return found


def _twins_speed(cells: Sequence[Record]) -> list[Finding]:
    floor = noise_floor(cells, sum(cell.summary.strategy.reuses for cell in cells))
    if floor is None or floor.odd is None or floor.warning is None:
        return []
    return [Finding("twins-speed", (floor.odd,), floor.warning)]

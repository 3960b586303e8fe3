"""Paired comparisons, as plain values for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.report import paired
from fdllm.report.data import CellData, SampleKey
from fdllm.report.measured import Estimate


@dataclass(frozen=True)
class Against:
    """One config against the baseline, on the same documents.

    Attributes:
        difference: accuracy less the baseline's.
        p_value: of no difference.
        p_holm: the same, Holm-corrected over the grid.
        test: its name.
        speed_ratio: speed by the baseline's; None where it cannot be told.
        noise: spread of the cells that do the same work; None where there is one only.
        smallest: smallest difference that the sample could have shown.
        verdict: ``same-or-better``, ``worse`` or ``cannot-tell``.
        sentence: in words.
        lost: documents that only the baseline gets right.
        gained: documents that only the config gets right.
    """

    difference: Estimate
    p_value: float | None
    p_holm: float | None
    test: str
    speed_ratio: Estimate | None
    noise: float | None
    smallest: float | None
    verdict: str
    sentence: str
    lost: tuple[SampleKey, ...]
    gained: tuple[SampleKey, ...]


def compare_cells(baseline: CellData, others: Sequence[CellData]) -> dict[str, Against]:
    """Every other cell against the baseline.

    Raises:
        FdllmError: the cells were not asked the same prompts.
    """
    if not others:
        return {}
    found = paired.compare_grid(baseline, others)
    return {other.config: _plain(one) for other, one in zip(others, found, strict=True)}


def compare_pair(one: CellData, other: CellData) -> Against:
    """``other`` against ``one``.

    Raises:
        FdllmError: the cells were not asked the same prompts.
    """
    return _plain(paired.compare(one, other))


def _plain(found: paired.Comparison) -> Against:
    return Against(
        difference=Estimate(*found.difference),
        p_value=found.p_value,
        p_holm=found.p_holm,
        test=found.test,
        speed_ratio=Estimate(*found.speed_ratio),
        noise=found.noise,
        smallest=found.smallest,
        verdict=found.verdict,
        sentence=found.sentence,
        lost=tuple(found.lost),
        gained=tuple(found.gained),
    )

"""Paired comparisons, as plain values for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.report import intervals, paired
from fdllm.report.measured import Estimate
from fdllm.report.records import Record, SampleKey


@dataclass(frozen=True)
class Against:
    """One config against the baseline, on the same documents.

    Attributes:
        difference: accuracy less the baseline's.
        p_value: of no difference.
        p_holm: the same, Holm-corrected over the grid.
        test: its name.
        speed_ratio: the baseline's model time by the config's, on the same documents; above 1
            where the config is faster. None where times must not be compared.
        speed_claim: ``faster`` or ``slower`` where the whole interval is beyond the noise floor.
        floor: the noise floor as a share; None where no two cells are one computation.
        smallest: smallest difference that the sample would have shown.
        collapsed: reasons to call the config collapsed; its speed is no merit then.
        verdict: ``same-or-better``, ``worse`` or ``cannot-tell``.
        sentence: in words.
        lost: documents that only the baseline gets right.
        gained: documents that only the config gets right.
    """

    difference: Estimate
    p_value: float
    p_holm: float
    test: str
    speed_ratio: Estimate | None
    speed_claim: str
    floor: float | None
    smallest: float
    collapsed: tuple[str, ...]
    verdict: str
    sentence: str
    lost: tuple[SampleKey, ...]
    gained: tuple[SampleKey, ...]


def compare_cells(baseline: Record, others: Sequence[Record]) -> dict[str, Against]:
    """Every other cell against the baseline.

    Raises:
        FdllmError: the cells were not asked the same prompts.
    """
    if not others:
        return {}
    found = paired.compare_grid(baseline, others)
    return {other.name: _plain(one) for other, one in zip(others, found, strict=True)}


def compare_pair(one: Record, other: Record) -> Against:
    """``other`` against ``one``.

    Raises:
        FdllmError: the cells were not asked the same prompts.
    """
    return _plain(paired.compare(one, other))


def _plain(found: paired.Comparison) -> Against:
    speed = found.speed
    return Against(
        difference=_estimate(found.difference),
        p_value=found.p_value,
        p_holm=found.p_holm,
        test=found.test,
        speed_ratio=None if speed is None else _estimate(speed.ratio),
        speed_claim="none" if speed is None else speed.claim,
        floor=None if speed is None or speed.floor is None else speed.floor.floor,
        smallest=found.smallest_detectable,
        collapsed=found.collapsed,
        verdict=found.verdict,
        sentence=found.sentence,
        lost=found.losses,
        gained=found.gains,
    )


def _estimate(figure: intervals.Estimate) -> Estimate:
    return Estimate(figure.value, figure.low, figure.high)

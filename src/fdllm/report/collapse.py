"""When a cell has collapsed: then its speed says nothing, however high it is.

A model that writes gibberish, or the same line again and again, or never stops, can be the fastest
of a table. Speed without accuracy rewards exactly that.
"""

from __future__ import annotations

from fdllm.report.difference import ALPHA, Difference
from fdllm.report.records import Record

FAR = 0.1
"""A loss of accuracy whose whole interval is beyond 10 points is a collapse."""
RISE = 0.05
"""So is a rise of the truncation or repetition rate whose interval is beyond 5 points."""


def collapse_reasons(a: Record, b: Record, difference: Difference) -> tuple[str, ...]:
    """Why B has collapsed against A; empty where it has not."""
    reasons = []
    change = difference.difference
    halved = difference.value_b < difference.value_a / 2 and difference.p_value < ALPHA
    if change.high < -FAR or (halved and change.value < 0):
        reasons.append(
            f"accuracy fell from {100 * difference.value_a:.1f} to {100 * difference.value_b:.1f} %"
        )
    for name, (one, other) in _rates(a, b).items():
        if _rise(one, a, other, b) > RISE:
            reasons.append(f"{name} answers rose from {100 * one:.1f} to {100 * other:.1f} %")
    return tuple(reasons)


def _rates(a: Record, b: Record) -> dict[str, tuple[float, float]]:
    one, other = a.summary.quality, b.summary.quality
    if one is None or other is None:
        return {}
    return {
        "truncated": (one.truncation_rate, other.truncation_rate),
        "repetitive": (one.repetition_rate, other.repetition_rate),
    }


def _rise(one: float, a: Record, other: float, b: Record) -> float:
    """Lower end of Newcombe's interval of the rise: at least so much is certain."""
    if other - one <= RISE:
        return 0.0
    from statsmodels.stats.proportion import confint_proportions_2indep  # noqa: PLC0415

    num_a, num_b = a.summary.num_requests, b.summary.num_requests
    low, _ = confint_proportions_2indep(
        round(other * num_b), num_b, round(one * num_a), num_a, method="newcomb", compare="diff"
    )
    return float(low)

"""Intervals, by statsmodels; it loads in a second, so only when a figure is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from fdllm.record.summary import Headline


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a share.

    Attributes:
        low: lower end, in [0, 1].
        high: upper end.
    """

    low: float
    high: float


def wilson(headline: Headline) -> Interval | None:
    """Wilson's interval of a share of right documents; None where documents are not yes or no."""
    if headline.num_correct is None or headline.num_samples == 0:
        return None
    from statsmodels.stats.proportion import proportion_confint  # noqa: PLC0415

    low, high = proportion_confint(
        headline.num_correct, headline.num_samples, alpha=0.05, method="wilson"
    )
    return Interval(float(low), float(high))


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f} %"


def with_interval(headline: Headline) -> str:
    """A headline figure with its interval, where it has one."""
    interval = wilson(headline)
    if interval is None:
        return percent(headline.value)
    return f"{percent(headline.value)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

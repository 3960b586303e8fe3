"""How much faster: what a timing study shows, and what its noise lets be said.

Times of runs that were not taken in turn are compared nowhere (docs/running.md section 8): every
claim of a speed in this project is one of :func:`judge_pairs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats.mstats import median_cihs

from fdllm.record.study import Study
from fdllm.report.stats import ALPHA, Estimate, Floats

Claim = Literal["faster", "slower", "none"]

LEAST_DOCUMENTS = 6  # values whose median has a 95 % interval: 2 / 2**6 is less than 5 %


@dataclass(frozen=True)
class TimedPair:
    """One config's time by the baseline's, on the same documents in turn."""

    a: str  # the baseline
    b: str  # the config
    ratio: Estimate  # time of ``b`` by time of ``a``, below 1 where ``b`` is faster
    twins: bool  # whether both are one computation
    claim: Claim

    def as_dict(self, task: str) -> dict[str, Any]:
        """JSON form."""
        return {"task": task, "a": self.a, "b": self.b} | {
            "ratio": self.ratio.value, "low": self.ratio.low, "high": self.ratio.high,
            "claim": self.claim,
        }  # fmt: skip


@dataclass(frozen=True)
class TimedPairs:
    """What a timing study shows. Every claim of a speed in this project is one of these."""

    # what noise alone may look like, as a ratio less one: as far as any twin's interval reaches.
    # None where the study has no twins, and nothing is claimed then.
    floor: float | None
    pairs: tuple[TimedPair, ...]

    def __getitem__(self, config: str) -> TimedPair:
        return next(pair for pair in self.pairs if pair.b == config)


def judge_pairs(study: Study, baseline: str | None = None) -> TimedPairs:
    """Compare every config of a study with one of them.

    Of each document the median over repeats counts, of the documents the median of the logarithms
    of their ratios: one stalled document moves nothing. A claim needs an interval off 1 and a ratio
    beyond the floor, which is that of the study's own baseline and its twins.

    Args:
        study: the times.
        baseline: the config to compare with; None is the study's own.
    """
    times = {
        name: np.log(np.median(np.array(one.seconds), axis=1))
        for name, one in study.configs.items()
    }
    a = study.baseline if baseline is None else baseline
    again = [
        median_of(times[n] - times[study.baseline]) for n in study.twins if n != study.baseline
    ]
    floor = max((abs(end) for one in again for end in (one.low, one.high)), default=None)
    twins = study.twins if a in study.twins else ()
    found = {name: median_of(time - times[a]) for name, time in times.items() if name != a}
    pairs = tuple(
        TimedPair(
            a,
            name,
            Estimate(*(math.exp(min(x, 700.0)) for x in (log.value, log.low, log.high))),
            name in twins,
            claim_of(log, floor),
        )
        for name, log in found.items()
    )
    return TimedPairs(None if floor is None else math.expm1(min(floor, 700.0)), pairs)


def noise_words(found: TimedPairs) -> str:
    """How much noise a study shows, and so what is not claimed."""
    if found.floor is None:
        return "no config repeats the baseline, so the noise is unknown and nothing is claimed"
    if found.floor > 1:
        return "too few documents, or too much noise, to claim anything"
    return (
        f"noise floor {found.floor:.1%}, as far as one computation done twice may lie apart: "
        "nothing below is claimed"
    )


def median_of(values: Floats) -> Estimate:
    """A median with its 95 % interval, by interpolated order statistics.

    Hettmansperger and Sheather (1986): no form of noise is assumed, and the interval holds the
    median in 94-96 % of cases from six values on, where the exact order statistics hold it in up to
    99 %. Fewer than six have no such interval; it is everything then.
    """
    known = len(values) >= LEAST_DOCUMENTS
    low, high = median_cihs(values, ALPHA) if known else (-math.inf, math.inf)
    return Estimate(float(np.median(values)), float(low), float(high))


def claim_of(log: Estimate, floor: float | None) -> Claim:
    """What may be said of a logarithm of a ratio: nothing without a floor, nothing within it."""
    if floor is None or abs(log.value) <= floor or log.low <= 0 <= log.high:
        return "none"
    return "faster" if log.value < 0 else "slower"

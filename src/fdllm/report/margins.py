"""How many rows can show that at most a margin is lost, and how strongly given rows do.

Both ask the intervals of :mod:`fdllm.report.stats`: before a run, that of rows in which nothing
flips; after it, at which level the interval still ends on one side of the margin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from fdllm.report.stats import (
    FEW,
    LEVEL,
    RESAMPLES,
    Estimate,
    Floats,
    Ints,
    clustered_mean,
    is_binary,
    mean_and_error,
    studentised,
    tango,
    tango_score,
)


@dataclass(frozen=True)
class Evidence:
    """Two-sided p-values: the smallest levels at which the whole interval is on one side."""

    within: float  # above the margin: at most so much is lost
    beyond: float  # below it: more is lost


@dataclass(frozen=True)
class Marked:
    """Documents whose answers bear a mark (cut off, repetitive) on one side alone."""

    more: int  # on side B
    fewer: int  # on side A
    n: int  # documents of both

    @property
    def rise(self) -> Estimate:
        """How much larger B's share of marked documents is, with Tango's interval."""
        ends = tango(np.array(self.fewer), np.array(self.more), np.array(self.n))
        return Estimate((self.more - self.fewer) / self.n, *(float(end) for end in ends))

    def weigh(self, limit: float) -> Evidence:
        """How strongly the documents show that the share rises by at most ``limit``, or by more."""
        z = tango_score(np.array(self.fewer), np.array(self.more), self.n, limit)
        return _evidence(norm.cdf(z), norm.sf(z))


def rows_needed(margin: float, share: float) -> int | None:
    """The fewest rows by which a loss of at most ``margin`` can be decided; None where none can.

    Two bounds. Where nothing is lost and a ``share`` of the rows flips, half of them either way,
    the interval's half-width 1.96 sqrt(share / n) must not exceed the margin. And where no row
    flips at all, the interval of the verdict itself, Tango's, must end above it.

    Args:
        margin: share of rows that may be lost.
        share: of rows that one side has right and the other wrong.
    """
    if margin <= 0:
        return None
    critical = float(norm.ppf((1 + LEVEL) / 2)) ** 2
    bounds = critical * share / margin**2, critical * (1 - margin) / margin
    rows = max(1, *(math.ceil(bound - 1e-9) for bound in bounds))
    while tango(np.array(0), np.array(0), np.array(rows))[0] < -margin:
        rows += 1
    return rows


def weigh(a: Floats, b: Floats, groups: Ints | None, margin: float) -> Evidence:
    """How strongly rows show that B loses at most ``margin``, or more: as their interval does.

    Args:
        a: a figure a document, shape (n,).
        b: the same documents of the other side.
        groups: the group of each document; None where documents stand alone.
        margin: loss of the mean that is allowed.
    """
    change = b - a
    losses, gains = int(np.sum(change < 0)), int(np.sum(change > 0))
    alone = None
    if is_binary(a, b):
        z = tango_score(np.array(losses), np.array(gains), len(a), -margin)
        alone = _evidence(norm.sf(z), norm.sf(-z))
    if groups is None or len(np.unique(groups)) == 1:
        return alone or _by_bootstrap(a, b, margin)
    mean = clustered_mean(change, np.unique(groups, return_inverse=True)[1])
    distance = mean.mean + margin
    errors = distance / mean.error if mean.error else math.copysign(math.inf, distance)
    inside = _evidence(t.sf(errors, mean.degrees), t.sf(-errors, mean.degrees))
    if alone is not None and losses + gains < FEW:
        return Evidence(max(alone.within, inside.within), max(alone.beyond, inside.beyond))
    return inside


def _by_bootstrap(a: Floats, b: Floats, margin: float) -> Evidence:
    value, error = (float(x) for x in mean_and_error(b - a))
    distance = value + margin
    if error <= 1e-12 * max(1.0, abs(value)):
        return Evidence(float(distance < 0), float(distance >= 0))
    further = np.sum(studentised(b - a) >= abs(distance) / error)
    p_value = (1 + float(further)) / (1 + RESAMPLES)
    return Evidence(p_value, 1.0) if distance >= 0 else Evidence(1.0, p_value)


def _evidence(*tails: float) -> Evidence:
    """Of the probabilities of both tails."""
    return Evidence(*(min(1.0, 2 * float(tail)) for tail in tails))

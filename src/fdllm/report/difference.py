"""Two columns of figures of the same documents: do they differ, and could one have seen it.

Arrays in, figures out; what may be compared is decided in :mod:`fdllm.report.pairs`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fdllm.report.intervals import (
    SEED,
    Clustered,
    Estimate,
    Floats,
    Ints,
    bootstrap_t,
    clustered_mean,
    mean_difference,
    tango,
)
from fdllm.report.power import smallest_binary, smallest_clustered, smallest_mean

ALPHA = 0.05
_FEW = 10  # documents that differ; fewer cannot show how they lie in the groups
_FLIPS = 9999


@dataclass(frozen=True)
class Difference:
    """How much B differs from A.

    Attributes:
        n: documents.
        value_a: mean of A.
        value_b: mean of B.
        difference: ``value_b - value_a`` with its 95 % interval.
        p_value: two-sided, of the test against no difference.
        test: its name.
        interval: the interval's name.
        losses: documents A has right and B wrong; None where figures are not yes or no.
        gains: documents A has wrong and B right.
        smallest: the smallest difference that the sample could have shown with 80 % power.
    """

    n: int
    value_a: float
    value_b: float
    difference: Estimate
    p_value: float
    test: str
    interval: str
    losses: int | None
    gains: int | None
    smallest: float


def is_binary(*columns: Floats) -> bool:
    """Whether all figures are 0 or 1."""
    return all(bool(np.isin(column, (0.0, 1.0)).all()) for column in columns)


def find_difference(
    a: Floats, b: Floats, groups: Ints | None = None, level: float = ALPHA
) -> Difference:
    """Compare two columns.

    Args:
        a: a figure a document, shape (n,); n of 2 or more where figures are not yes or no.
        b: the same documents of the other side.
        groups: the group of each document, numbered from 0; None where documents stand alone.
        level: two-sided level at which ``smallest`` is meant: 0.05, or less in a grid.
    """
    grouped = groups is not None and len(np.unique(groups)) > 1
    found = _binary(a, b, level) if is_binary(a, b) else _plain(a, b, level)
    if not grouped or groups is None:
        return found
    clustered = clustered_mean(b - a, np.unique(groups, return_inverse=True)[1])
    few = found.losses is not None and found.losses + (found.gains or 0) < _FEW
    return _in_groups(found, clustered, level, few=few)


def _binary(a: Floats, b: Floats, level: float) -> Difference:
    n = len(a)
    losses, gains = int(np.sum((a == 1) & (b == 0))), int(np.sum((a == 0) & (b == 1)))
    low, high = tango(np.array(losses), np.array(gains), np.array(n))
    return Difference(
        n=n,
        value_a=float(a.mean()),
        value_b=float(b.mean()),
        difference=Estimate((gains - losses) / n, float(low), float(high)),
        p_value=mcnemar_p(losses, gains),
        test="exact McNemar",
        interval="Tango's score interval",
        losses=losses,
        gains=gains,
        smallest=smallest_binary(n, losses + gains, level),
    )


def mcnemar_p(losses: int, gains: int) -> float:
    """Two-sided exact McNemar test; documents on which both sides agree do not matter."""
    from statsmodels.stats.contingency_tables import mcnemar  # noqa: PLC0415 - a second to load

    return float(mcnemar([[0, losses], [gains, 0]], exact=True).pvalue)


def _plain(a: Floats, b: Floats, level: float) -> Difference:
    n = len(a)
    return Difference(
        n=n,
        value_a=float(a.mean()),
        value_b=float(b.mean()),
        difference=bootstrap_t(a, b, mean_difference),
        p_value=_permutation_p(a, b),
        test="paired permutation test",
        interval="studentised paired bootstrap",
        losses=None,
        gains=None,
        smallest=smallest_mean(n, float((b - a).std(ddof=1)), level),
    )


def _permutation_p(a: Floats, b: Floats) -> float:
    """Exchange the sides of each document at random; all ways where there are few."""
    from scipy.stats import permutation_test  # noqa: PLC0415

    def mean_change(x: Floats, y: Floats, axis: int = -1) -> Floats:
        change: Floats = np.mean(y - x, axis=axis)
        return change

    found = permutation_test(
        (a, b),
        mean_change,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=max(1, 4_000_000 // len(a)),
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def _in_groups(found: Difference, clustered: Clustered, level: float, *, few: bool) -> Difference:
    """Let documents of one group go together.

    Where few documents differ their spread over the groups cannot be judged: then the wider of the
    two intervals stands, and the larger of the two p-values.
    """
    inside, plain = clustered.interval, found.difference
    smallest = smallest_clustered(clustered, level)
    if few:
        return replace(
            found,
            difference=Estimate(
                plain.value, min(plain.low, inside.low), max(plain.high, inside.high)
            ),
            p_value=max(found.p_value, clustered.p_value),
            test=f"{found.test} or t test clustered by subject, whichever is larger",
            interval=f"{found.interval} or clustered by subject (CR2), whichever is wider",
            smallest=max(found.smallest, smallest),
        )
    return replace(
        found,
        difference=inside,
        p_value=clustered.p_value,
        test="t test clustered by subject (CR2)",
        interval="clustered by subject (CR2)",
        smallest=smallest,
    )


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjustment: each p-value as it counts in a family of so many."""
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # noqa: PLC0415

    return [float(p) for p in multipletests(p_values, alpha=ALPHA, method="holm")[1]]

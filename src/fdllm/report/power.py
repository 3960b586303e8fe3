"""The smallest difference that a sample could have shown: with 80 % power, at a two-sided level."""

from __future__ import annotations

import numpy as np

from fdllm.report.intervals import Clustered

POWER = 0.8
_TAIL = 1e-9


def smallest_binary(n: int, discordant: int, level: float) -> float:
    """For the exact McNemar test of yes-or-no pairs.

    Args:
        n: documents.
        discordant: documents that one side has right and the other wrong. Their share is estimated
            by (discordant + 2) / (n + 4), so that a sample without any promises no miracle; a
            difference larger than the share brings its own.
        level: of the test.

    Returns:
        A difference in accuracy, in [0, 1]; 1 where the sample could not have shown any.
    """
    from scipy.optimize import brentq  # noqa: PLC0415 - scipy takes its time to load

    share = (discordant + 2) / (n + 4)
    if mcnemar_power(n, 1.0, 1.0, level) < POWER:
        return 1.0

    def missing(difference: float) -> float:
        return mcnemar_power(n, difference, max(share, difference), level) - POWER

    return float(brentq(missing, 1e-9, 1.0, xtol=1e-5))


def mcnemar_power(n: int, difference: float, share: float, level: float) -> float:
    """How often the exact McNemar test finds a loss of ``difference``.

    Args:
        n: documents.
        difference: accuracy that is really lost, at most ``share``.
        share: probability that a document differs.
        level: of the test, two-sided.
    """
    from scipy.stats import binom  # noqa: PLC0415

    first, last = binom.ppf([_TAIL, 1 - _TAIL], n, share)
    counts = np.arange(int(first), int(last) + 1)
    # Most gains at which so many losses are still significant; below 0 where none are.
    most = binom.ppf(level / 2, counts, 0.5)
    most = np.where(2 * binom.cdf(most, counts, 0.5) <= level, most, most - 1)
    found = binom.cdf(most, counts, (1 - difference / share) / 2)
    return float(np.sum(binom.pmf(counts, n, share) * np.where(most >= 0, found, 0.0)))


def smallest_mean(n: int, deviation: float, level: float) -> float:
    """For a mean of differences of which one has the standard deviation ``deviation``."""
    from statsmodels.stats.power import TTestPower  # noqa: PLC0415

    effect = TTestPower().solve_power(nobs=n, alpha=level, power=POWER)
    return float(effect) * deviation


def smallest_clustered(mean: Clustered, level: float) -> float:
    """For a mean of clustered differences, by its standard error and degrees of freedom."""
    return (mean.quantile(1 - level / 2) + mean.quantile(POWER)) * mean.error

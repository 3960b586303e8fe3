"""Two columns of figures of the same documents: do they differ, and could one have seen it.

Arrays in, figures out; what may be compared is decided in :mod:`fdllm.report.compare`. Each 95 %
interval was chosen by its simulated coverage (tests/test_coverage.py repeats it):

- Tango's score interval for yes-or-no pairs: 94-96 % from five documents that differ upwards. That
  of Wald collapses to a point where no document differs, and the usual cure (two pseudo-pairs)
  covers 96-99 % there. Neither scipy nor statsmodels has an interval for paired proportions.
- The symmetric studentised bootstrap (Hall, JRSS B 50, 1988) for everything else: 95-96 % from
  thirty documents, where Student's t covered 94-95 %, and the percentile and BCa bootstraps of
  scipy 92-94 %. Where one answer in twenty runs away to many times its length, no interval covers
  below a few hundred documents.
- CR2 standard errors with Bell and McCaffrey's degrees of freedom for documents that come in
  subjects. Resampling seven subjects covered 84-90 %; the CR1 errors of statsmodels, which are the
  same for subjects of equal size, 94 %, and alarm too often in the tails that Holm looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, elementwise
from scipy.stats import binom, norm, permutation_test, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from fdllm.record.summary import Headline

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ALPHA = 0.05
LEVEL = 1 - ALPHA
POWER = 0.8
RESAMPLES = 2000
SEED = 20240
_CHUNK = 4_000_000  # resampled values in memory at once
FEW = 10  # documents that differ; fewer cannot show how they lie in the groups
_FLIPS = 9999
_TAIL = 1e-9


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def shown(self, scale: float = 1.0, form: str = ".2f", unit: str = "") -> str:
        """The figure times ``scale`` with its unit, and its interval."""
        value, low, high = (f"{scale * x:{form}}" for x in (self.value, self.low, self.high))
        return f"{value}{unit} [{low}, {high}]"


@dataclass(frozen=True)
class Difference:
    """How much B differs from A."""

    n: int  # documents both have
    value_a: float  # mean of A's figures
    value_b: float  # of B's
    difference: Estimate  # ``value_b - value_a`` with its 95 % interval
    interval: str  # the interval's name
    p_value: float  # two-sided, of the test against no difference
    test: str  # its name
    # the difference that so many documents would have shown with 80 % power
    smallest_detectable: float


def find_difference(
    a: Floats, b: Floats, groups: Ints | None = None, level: float = ALPHA
) -> Difference:
    """Compare two columns.

    Where documents come in groups, those of one go together; where fewer than ten differ their
    spread over the groups cannot be judged, and the wider interval and the larger p-value stand.

    Args:
        a: a figure a document, shape (n,); n of 2 or more where figures are not yes or no.
        b: the same documents of the other side.
        groups: the group of each document; None where documents stand alone.
        level: two-sided level of the smallest detectable difference: 0.05, or less in a grid.
    """
    n, change = len(a), b - a
    losses, gains = int(np.sum(change < 0)), int(np.sum(change > 0))
    binary = is_binary(a, b)
    if binary:
        ends = tango(np.array(losses), np.array(gains), np.array(n))
        estimate = Estimate((gains - losses) / n, *(float(end) for end in ends))
        named, tested = "Tango's score interval", "exact McNemar"
        p_value, smallest = mcnemar_p(losses, gains), smallest_binary(n, losses + gains, level)
    else:
        estimate = bootstrap_t(change)
        named, tested = "studentised paired bootstrap", "paired permutation test"
        p_value, smallest = permutation_p(a, b), smallest_mean(n, float(change.std(ddof=1)), level)
    means = float(a.mean()), float(b.mean())
    found = Difference(n, *means, estimate, named, p_value, tested, smallest)
    if groups is None or len(np.unique(groups)) == 1:
        return found
    mean = clustered_mean(change, np.unique(groups, return_inverse=True)[1])
    inside, smallest = mean.interval, smallest_clustered(mean, level)
    if binary and losses + gains < FEW:
        low, high = min(estimate.low, inside.low), max(estimate.high, inside.high)
        return replace(
            found,
            difference=Estimate(estimate.value, low, high),
            interval=f"{named} or clustered by subject (CR2), whichever is wider",
            p_value=max(p_value, mean.p_value),
            test=f"{tested} or t test clustered by subject, whichever is larger",
            smallest_detectable=max(found.smallest_detectable, smallest),
        )
    return replace(
        found,
        difference=inside,
        interval="clustered by subject (CR2)",
        p_value=mean.p_value,
        test="t test clustered by subject (CR2)",
        smallest_detectable=smallest,
    )


def is_binary(*columns: Floats) -> bool:
    """Whether all figures are 0 or 1."""
    return all(bool(np.isin(column, (0.0, 1.0)).all()) for column in columns)


def mcnemar_p(losses: int, gains: int) -> float:
    """Two-sided exact McNemar test; documents on which both sides agree do not matter."""
    return float(mcnemar([[0, losses], [gains, 0]], exact=True).pvalue)


def permutation_p(a: Floats, b: Floats) -> float:
    """Exchange the sides of each document at random; all ways where there are few."""

    def mean_change(x: Floats, y: Floats, axis: int = -1) -> Floats:
        change: Floats = np.mean(y - x, axis=axis)
        return change

    found = permutation_test(
        (a, b),
        mean_change,
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=max(1, _CHUNK // len(a)),
        rng=np.random.default_rng(SEED),
    )
    return float(found.pvalue)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjustment: each p-value as it counts in a family of so many."""
    # statsmodels' multipletests collects garbage at each call: minutes where many records are held.
    order = np.argsort(p_values)
    adjusted = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    result = np.empty(len(p_values))
    result[order] = np.minimum(np.maximum.accumulate(adjusted), 1.0)
    found: list[float] = result.tolist()
    return found


def tango(losses: Ints, gains: Ints, n: Ints) -> tuple[Floats, Floats]:
    """Tango's score interval of the difference of two paired proportions, (gains - losses) / n.

    All (δ) that a score test does not reject: Tango, Statistics in Medicine 17 (1998), 891-908.

    Args:
        losses: pairs that were right and are wrong; any shape.
        gains: pairs that were wrong and are right.
        n: all pairs.

    Returns:
        Lower and upper ends, in that shape.
    """
    b, c, size = np.broadcast_arrays(*(np.asarray(v, dtype=np.float64) for v in (gains, losses, n)))
    critical = float(norm.ppf((1 + LEVEL) / 2))

    def excess(delta: Floats, b: Floats, c: Floats, n: Floats, sign: Floats) -> Floats:
        """How far the score statistic at ``delta`` is from the critical value."""
        return b - c - n * delta - sign * critical * _score_error(delta, b, c, n)

    centre, tiny = (b - c) / size, 1e-9  # where nothing differs the centre itself is a root
    one = np.ones_like(centre)
    below = (np.full_like(centre, -1 + 1e-12), np.maximum(centre - tiny, -1 + 2e-12))
    above = (np.minimum(centre + tiny, 1 - 2e-12), np.full_like(centre, 1 - 1e-12))
    low = elementwise.find_root(excess, below, args=(b, c, size, one))
    high = elementwise.find_root(excess, above, args=(b, c, size, -one))
    # No sign change: every document differs in one direction, and the end is that of the scale.
    return (
        np.where(low.success, low.x, -1.0).astype(np.float64),
        np.where(high.success, high.x, 1.0).astype(np.float64),
    )


def _score_error(delta: Floats, b: Floats, c: Floats, n: Floats) -> Floats:
    """Standard error of gains less losses, were ``delta`` the true difference."""
    linear = (2 * n - b + c) * delta - b - c
    root = np.sqrt(np.maximum(linear**2 + 8 * n * c * delta * (1 - delta), 0))
    share = (root - linear) / (4 * n)  # most likely share of losses, given delta
    error: Floats = np.sqrt(np.maximum(n * (2 * share + delta * (1 - delta)), 0))
    return error


def tango_score(losses: Ints, gains: Ints, n: int, delta: float) -> Floats:
    """The score statistic against a true difference of ``delta``: what :func:`tango` inverts.

    The arguments are those of :func:`tango`; 0 where no outcome could tell.
    """
    b, c = (np.asarray(flips, dtype=np.float64) for flips in (gains, losses))
    error = _score_error(np.full_like(b, delta), b, c, np.full_like(b, n))
    found: Floats = (b - c - n * delta) / np.where(error > 0, error, np.inf)
    return found


def wilson(headline: Headline) -> Estimate | None:
    """Wilson's interval of a share of right documents; None where documents are not yes or no."""
    if headline.num_correct is None or headline.num_samples == 0:
        return None
    low, high = proportion_confint(
        headline.num_correct, headline.num_samples, alpha=1 - LEVEL, method="wilson"
    )
    return Estimate(headline.value, float(low), float(high))


def mean_and_error(change: Floats) -> tuple[Floats, Floats]:
    """Mean over the last axis of (…, n), and its standard error, (…)."""
    return change.mean(axis=-1), change.std(axis=-1, ddof=1) / np.sqrt(change.shape[-1])


def bootstrap_t(change: Floats, *, resamples: int = RESAMPLES, seed: int = SEED) -> Estimate:
    """A mean difference with its symmetric studentised bootstrap interval.

    Args:
        change: of each document, shape (n,), n of 2 or more.
        resamples: how many.
        seed: of the resampling.
    """
    value, error = (float(x) for x in mean_and_error(change))
    if error <= 1e-12 * max(1.0, abs(value)):  # all agree, but for the rounding of a sum
        return Estimate(value, value, value)
    drawn = studentised(change, resamples=resamples, seed=seed)
    half = float(np.quantile(drawn, LEVEL)) * error
    return Estimate(value, value - half, value + half)


def studentised(change: Floats, *, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """How many of its own standard errors each resample's mean is from that of all, (resamples,).

    The arguments are those of :func:`bootstrap_t`.
    """
    value, error = mean_and_error(change)
    draw, n = np.random.default_rng(seed), len(change)
    found: list[Floats] = []
    left = resamples
    while left:
        rows = min(left, max(1, _CHUNK // n))
        values, errors = mean_and_error(change[draw.integers(n, size=(rows, n))])
        # A resample of equal changes has no error; its distance counts in the whole sample's.
        found.append(np.abs(values - value) / np.where(errors > 0, errors, error))
        left -= rows
    return np.concatenate(found)


@dataclass(frozen=True)
class Clustered:
    """A mean of clustered values."""

    mean: float  # over all values
    error: float  # its CR2 standard error; 0 where every cluster has the same mean
    degrees: float  # Bell and McCaffrey's degrees of freedom

    def quantile(self, probability: float) -> float:
        """Of Student's t with these degrees."""
        return float(t.ppf(probability, self.degrees))

    @property
    def interval(self) -> Estimate:
        """The mean with its interval."""
        half = self.quantile((1 + LEVEL) / 2) * self.error
        return Estimate(self.mean, self.mean - half, self.mean + half)

    @property
    def p_value(self) -> float:
        """Of the two-sided test against 0."""
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return float(2 * t.sf(abs(self.mean) / self.error, self.degrees))


def clustered_mean(values: Floats, groups: Ints) -> Clustered:
    """A mean whose error allows for values of one group that go together.

    Bell and McCaffrey, Survey Methodology 28 (2002), 169-181, for a model with a mean alone: a
    group's residuals are divided by 1 less its share of the values, and Satterthwaite's degrees of
    freedom are those of independent values.

    Args:
        values: shape (n,).
        groups: number of each value's group, 0 to G - 1, G of 2 or more; shape (n,).
    """
    sizes = np.bincount(groups).astype(np.float64)
    total = sizes.sum()
    share = sizes / total
    mean = float(values.mean())
    residuals = np.bincount(groups, weights=values) - sizes * mean
    weights = 1 / (1 - share)
    centring = np.eye(len(sizes)) - share[:, None]
    # Var(residuals) for independent values of variance 1, times the weights of the estimator.
    spread = weights[:, None] * ((centring * sizes) @ centring.T)
    degrees = np.trace(spread) ** 2 / np.sum(spread * spread.T)
    error = float(np.sqrt(np.sum(weights * residuals**2)) / total)
    return Clustered(mean, 0.0 if error < 1e-14 else error, float(degrees))  # noqa: PLR2004 - rounding


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
    first, last = binom.ppf([_TAIL, 1 - _TAIL], n, share)
    counts = np.arange(int(first), int(last) + 1)
    # Most gains at which so many losses are still significant; below 0 where none are.
    most = binom.ppf(level / 2, counts, 0.5)
    most = np.where(2 * binom.cdf(most, counts, 0.5) <= level, most, most - 1)
    found = binom.cdf(most, counts, (1 - difference / share) / 2)
    return float(np.sum(binom.pmf(counts, n, share) * np.where(most >= 0, found, 0.0)))


def smallest_mean(n: int, deviation: float, level: float) -> float:
    """For a mean of differences of which one has the standard deviation ``deviation``."""
    effect = TTestPower().solve_power(nobs=n, alpha=level, power=POWER)
    return float(effect) * deviation


def smallest_clustered(mean: Clustered, level: float) -> float:
    """For a mean of clustered differences, by its standard error and degrees of freedom."""
    return (mean.quantile(1 - level / 2) + mean.quantile(POWER)) * mean.error

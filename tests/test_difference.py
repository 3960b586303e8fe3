"""The statistics on arrays, against published answers and against other libraries' code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm

from fdllm.report.stats import (
    bootstrap_t,
    clustered_mean,
    find_difference,
    holm,
    mcnemar_p,
    mcnemar_power,
    smallest_binary,
    smallest_mean,
    tango,
)


@pytest.mark.parametrize(
    ("losses", "gains", "p_value"),
    [
        (2, 9, 0.06543),  # the example of R's exact2x2
        (150, 86, 3.716e-05),  # Agresti, Categorical Data Analysis: approval of a prime minister
        (10, 2, 0.03857),
        (5, 0, 0.0625),  # five of five is not enough
        (0, 6, 0.03125),
        (7, 7, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_textbook(losses: int, gains: int, p_value: float) -> None:
    assert mcnemar_p(losses, gains) == pytest.approx(p_value, rel=1e-3)
    assert mcnemar_p(gains, losses) == pytest.approx(p_value, rel=1e-3)


def one_tango(losses: int, gains: int, n: int) -> tuple[float, float]:
    low, high = tango(np.array(losses), np.array(gains), np.array(n))
    return float(low), float(high)


def test_tango_published() -> None:
    """Airway reactivity, 1 and 7 of 21: Bentur 2009, in Fagerland, Lydersen and Laake 2014."""
    assert one_tango(7, 1, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


def quartic(losses: int, gains: int, n: int) -> tuple[float, float]:
    """Tango's ends without iteration: roots of Yang, Sun and Hardin's polynomial (2013)."""
    g, d, s = norm.ppf(0.975) ** 2, gains - losses, gains + losses
    coefficients = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    roots = np.roots(coefficients)
    real = roots[np.abs(roots.imag) < 1e-9].real
    return float(real.min()), float(real.max())


@pytest.mark.parametrize(
    ("losses", "gains", "n"),
    [(7, 1, 21), (9, 16, 100), (86, 150, 1600), (0, 3, 50), (4, 4, 10), (60, 130, 1319)],
)
def test_tango_without_iteration(losses: int, gains: int, n: int) -> None:
    assert one_tango(losses, gains, n) == pytest.approx(quartic(losses, gains, n), abs=1e-6)


@pytest.mark.parametrize("n", [1, 10, 1319])
def test_tango_where_nothing_differs(n: int) -> None:
    """A sample without flips excludes little, and the less the smaller it is."""
    bound = norm.ppf(0.975) ** 2 / (n + norm.ppf(0.975) ** 2)
    assert one_tango(0, 0, n) == pytest.approx((-bound, bound), abs=1e-6)


def test_tango_ends_stay_on_the_scale() -> None:
    low, high = one_tango(5, 0, 5)
    assert low == pytest.approx(-1.0)
    assert -1 < high < 0
    assert one_tango(0, 5, 5) == pytest.approx((-high, -low))


def test_power_is_the_share_of_significant_samples() -> None:
    """Counted over simulated samples."""
    n, share, loss = 200, 0.2, 0.08
    draw = np.random.default_rng(3)
    flips = draw.multinomial(n, [(share + loss) / 2, (share - loss) / 2, 1 - share], size=4000)
    pairs, index = np.unique(flips[:, :2], axis=0, return_inverse=True)
    found = np.array([mcnemar_p(b, c) < 0.05 and b > c for b, c in pairs])[index]
    assert mcnemar_power(n, loss, share, 0.05) == pytest.approx(found.mean(), abs=0.025)


@pytest.mark.parametrize(("n", "discordant"), [(50, 5), (300, 30), (1319, 130)])
def test_smallest_difference_is_found_in_80_percent(n: int, discordant: int) -> None:
    smallest = smallest_binary(n, discordant, 0.05)
    share = max(smallest, (discordant + 2) / (n + 4))
    assert mcnemar_power(n, smallest, share, 0.05) == pytest.approx(0.8, abs=1e-3)
    assert smallest_binary(n, discordant, 0.01) > smallest
    assert smallest_binary(4 * n, 4 * discordant, 0.05) < smallest


def test_smallest_difference_of_a_tiny_sample() -> None:
    """Five documents cannot show anything at 5 %: five of five is p = 0.0625."""
    assert smallest_binary(5, 0, 0.05) == 1.0
    assert 0.5 < smallest_binary(10, 0, 0.05) < 0.8


def test_smallest_mean_textbook() -> None:
    """A paired t test of 34 pairs finds half a standard deviation in 80 %: Cohen's table."""
    assert smallest_mean(34, 2.0, 0.05) == pytest.approx(1.0, abs=0.02)


def test_equal_clusters_agree_with_statsmodels() -> None:
    """For groups of one size CR2 is CR1 and the degrees of freedom are groups less one."""
    draw = np.random.default_rng(5)
    groups = np.repeat(np.arange(8), 25)
    values = draw.normal(0.1, 1, 200) + draw.normal(size=8)[groups]
    fit = sm.OLS(values, np.ones(200)).fit(
        cov_type="cluster", cov_kwds={"groups": groups}, use_t=True
    )
    mean = clustered_mean(values, groups)
    assert mean.degrees == pytest.approx(7)
    assert mean.error == pytest.approx(float(fit.bse[0]))
    assert mean.p_value == pytest.approx(float(fit.pvalues[0]))
    assert (mean.interval.low, mean.interval.high) == pytest.approx(tuple(fit.conf_int()[0]))


def test_unequal_clusters_by_the_definition() -> None:
    """CR2: residuals of each group by the inverse root of I - H; BM's degrees by the matrix."""
    draw = np.random.default_rng(6)
    sizes = [3, 5, 9, 20]
    groups = np.repeat(np.arange(4), sizes)
    n = len(groups)
    values = draw.normal(size=n)
    centring = np.eye(n) - np.ones((n, n)) / n
    residuals = centring @ values
    parts, columns = [], []
    for group in range(4):
        rows = groups == group
        eigen, vectors = np.linalg.eigh(centring[np.ix_(rows, rows)])
        root = vectors @ np.diag(eigen**-0.5) @ vectors.T
        parts.append(np.ones(rows.sum()) / n @ root @ residuals[rows])
        columns.append(centring[:, rows] @ root @ np.ones(rows.sum()) / n)
    gram = np.array(columns) @ np.array(columns).T
    mean = clustered_mean(values, groups)
    assert mean.error == pytest.approx(np.sqrt(np.sum(np.square(parts))))
    assert mean.degrees == pytest.approx(np.trace(gram) ** 2 / np.sum(gram**2))


def test_bootstrap_of_a_normal_mean_is_the_t_interval() -> None:
    draw = np.random.default_rng(7)
    a = draw.normal(size=400)
    b = a + draw.normal(0.2, 1, 400)
    found = bootstrap_t(b - a)
    half = 1.966 * (b - a).std(ddof=1) / 20
    assert found.value == pytest.approx((b - a).mean())
    assert found.low == pytest.approx(found.value - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.value + half, abs=0.1 * half)


def test_bootstrap_is_repeatable_and_knows_a_constant() -> None:
    a = np.random.default_rng(8).lognormal(size=50)
    twice = [bootstrap_t(a * np.linspace(-0.5, 0.5, 50)) for _ in range(2)]
    assert twice[0] == twice[1]
    exact = bootstrap_t((a + 0.25) - a)
    assert (exact.low, exact.high) == pytest.approx((0.25, 0.25))


def test_holm_textbook() -> None:
    """p of 0.01, 0.04, 0.03, 0.005: Holm gives 0.03, 0.06, 0.06, 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def pairs_of(losses: int, gains: int, n: int) -> tuple[Any, Any]:
    a, b = np.zeros(n), np.zeros(n)
    a[:losses] = 1
    b[losses : losses + gains] = 1
    a[losses + gains :: 2] = b[losses + gains :: 2] = 1
    return a, b


def test_yes_or_no_is_told_by_the_figures() -> None:
    a, b = pairs_of(30, 10, 200)
    found = find_difference(a, b)
    assert found.test == "exact McNemar"
    assert found.difference.value == pytest.approx(-0.1)
    other = find_difference(a, b * 0.5)
    assert other.test == "paired permutation test"
    assert "bootstrap" in other.interval


def test_graded_figures_are_tested_by_exchanging_sides() -> None:
    """Six documents, all worse: 2 of 64 exchanges are as extreme."""
    a = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.4])
    assert find_difference(a, a - [0.1, 0.2, 0.3, 0.1, 0.2, 0.1]).p_value == pytest.approx(2 / 64)


def test_a_loss_in_one_subject_alone_is_weaker_evidence() -> None:
    """The same forty flips: spread over all subjects, and in one of them."""
    groups = np.repeat(np.arange(20), 50)
    a = np.ones(1000)
    spread, heaped = a.copy(), a.copy()
    spread[::25] = 0
    heaped[:40] = 0
    even, odd = find_difference(a, spread, groups), find_difference(a, heaped, groups)
    assert even.p_value < 0.001
    assert odd.p_value > 0.2
    assert odd.difference.high - odd.difference.low > 3 * (
        even.difference.high - even.difference.low
    )
    assert odd.smallest_detectable > even.smallest_detectable


def test_few_flips_in_subjects_never_give_a_point() -> None:
    groups = np.arange(100) % 5
    same = np.ones(100)
    found = find_difference(same, same, groups)
    assert found.difference.low == pytest.approx(one_tango(0, 0, 100)[0])
    assert found.p_value == 1.0
    assert found.smallest_detectable > 0


def test_one_subject_alone_is_no_cluster() -> None:
    a, b = pairs_of(20, 5, 60)
    assert find_difference(a, b, np.zeros(60, dtype=int)) == find_difference(a, b)

"""How many rows decide a margin, and p-values that say what the intervals say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fdllm.report.margins import rows_needed, weigh
from fdllm.report.stats import bootstrap_t, find_difference, tango


@pytest.mark.parametrize(
    ("margin", "share", "rows"),
    [
        (0.02, 0.10, 961),  # 1.96 sqrt(0.1 / 961) = 2 points
        (0.01, 0.10, 3842),
        (0.05, 0.10, 154),
        (0.02, 0.001, 189),  # nothing flips, and Tango's interval is wide all the same
        (0.0, 0.10, None),
    ],
)
def test_rows_that_a_margin_needs(margin: float, share: float, rows: int | None) -> None:
    assert rows_needed(margin, share) == rows


def test_164_rows_cannot_exclude_a_loss_of_two_points_even_without_a_flip() -> None:
    low, _ = tango(np.array(0), np.array(0), np.array(164))
    assert low < -0.02
    needed = rows_needed(0.02, 1e-9)
    assert needed is not None
    assert needed > 164
    ends = [float(tango(np.array(0), np.array(0), np.array(n))[0]) for n in (needed - 1, needed)]
    assert ends[0] < -0.02 <= ends[1]


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(12, 400),
    losses=st.integers(0, 30),
    gains=st.integers(0, 30),
    margin=st.floats(0.005, 0.2),
    subjects=st.booleans(),
)
def test_a_p_value_is_the_level_at_which_the_interval_leaves_the_margin(
    n: int, losses: int, gains: int, margin: float, subjects: bool
) -> None:
    """Within 5 % exactly where the whole 95 % interval is above -margin."""
    losses, gains = min(losses, n // 3), min(gains, n // 3)
    a, b = np.zeros(n), np.zeros(n)
    a[:losses], b[losses : losses + gains] = 1, 1
    groups = np.arange(n) % 4 if subjects else None
    found = find_difference(a, b, groups).difference
    shown = weigh(a, b, groups, margin)
    if min(abs(found.low + margin), abs(found.high + margin)) > 1e-6:
        assert (shown.within <= 0.05) == (found.low >= -margin)
        assert (shown.beyond <= 0.05) == (found.high < -margin)


@pytest.mark.parametrize("seed", range(4))
def test_so_it_is_where_figures_are_no_yes_or_no(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a = draw.random(60)
    b = a + draw.normal(0, 0.2, 60)
    found = bootstrap_t(b - a)
    for end in (found.low, found.high):
        for off in (-0.02, 0.02):
            shown = weigh(a, b, None, -(end + off))
            assert (shown.within <= 0.05) == (end + off <= found.low)
            assert (shown.beyond <= 0.05) == (end + off > found.high)


def test_a_clear_loss_and_a_clear_hold() -> None:
    a, b = np.ones(1000), np.ones(1000)
    assert weigh(a, b, None, 0.02).within < 0.001
    b[:100] = 0
    assert weigh(a, b, None, 0.02).beyond < 0.001
    assert weigh(a, b, None, 0.02).within == pytest.approx(1.0, abs=1e-6)
    assert weigh(a * 0.5, b * 0.5, None, 0.02).beyond < 0.001
    assert weigh(a * 0.5, a * 0.5, None, 0.02).within == 0.0

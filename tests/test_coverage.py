"""How often the intervals hold the truth, and how often a grid of equals raises an alarm.

Everything is drawn with a fixed seed. 95 % intervals hold it in 95 ± 1.5 %; a grid in which nothing
differs is called worse, or faster, in 5 % at most.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from fdllm.record.summary import Headline
from fdllm.report.compare import decide
from fdllm.report.compare_text import MARGIN
from fdllm.report.stats import (
    Estimate,
    bootstrap_t,
    clustered_mean,
    holm,
    mcnemar_p,
    tango,
    wilson,
)

pytestmark = pytest.mark.slow

NUM_GRIDS = 2000
NOMINAL = pytest.approx(0.95, abs=0.015)
MATH = np.array([1187, 474, 479, 903, 540, 871, 546]) // 10
MMLU = np.array([1534, 895, 783, *range(100, 316, 4)]) // 10


def distinct(*counts: Any) -> tuple[list[Any], Any]:
    """Each combination of counts once, and how often it was drawn."""
    values, times = np.unique(np.stack(counts), axis=1, return_counts=True)
    return list(values), times / times.sum()


@pytest.mark.parametrize("n", [50, 100, 300, 1319])
@pytest.mark.parametrize(("share", "change"), [(0.2, 0.0), (0.2, -0.1), (0.4, -0.03), (0.4, 0.1)])
def test_tango_covers(n: int, share: float, change: float) -> None:
    """Yes-or-no figures of which ten documents or more may be expected to differ."""
    draw = np.random.default_rng(1)
    odds = [(share - change) / 2, (share + change) / 2, 1 - share]
    flips = draw.multinomial(n, odds, size=20_000)
    (losses, gains), weight = distinct(flips[:, 0], flips[:, 1])
    low, high = tango(losses, gains, np.array(n))
    assert float(weight[(low <= change) & (change <= high)].sum()) == NOMINAL


@pytest.mark.parametrize(("n", "share"), [(10, 0.05), (30, 0.05), (100, 0.02), (1319, 0.002)])
def test_tango_is_careful_where_hardly_anything_differs(n: int, share: float) -> None:
    """There counts are too coarse for 95 %; the interval is too wide then, and never a point."""
    flips = np.random.default_rng(2).multinomial(n, [share / 2, share / 2, 1 - share], size=20_000)
    (losses, gains), weight = distinct(flips[:, 0], flips[:, 1])
    low, high = tango(losses, gains, np.array(n))
    assert float(weight[(low <= 0) & (high >= 0)].sum()) >= 0.935
    assert np.all(low < high)


@pytest.mark.parametrize("n", [100, 1319])
def test_wilson_covers(n: int) -> None:
    """Over accuracies between 30 and 90 %: at a single one, counts make it jump by a percent."""
    draw = np.random.default_rng(3)
    truth = draw.uniform(0.3, 0.9, 6000)
    right = draw.binomial(n, truth)
    ends = {}
    for count in np.unique(right):
        headline = Headline(metric="acc", value=count / n, num_samples=n, num_correct=int(count))
        found = wilson(headline)
        assert found is not None
        ends[count] = (found.low, found.high)
    hits = [ends[k][0] <= p <= ends[k][1] for k, p in zip(right, truth, strict=True)]
    assert np.mean(hits) == NOMINAL


def draw_clustered(sizes: Any, change: float, between: float, trials: int) -> tuple[Any, Any]:
    """Losses (-1), gains (1) and agreements (0) of documents; subjects differ in their change."""
    draw = np.random.default_rng(4)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    local = change + between * draw.standard_normal((trials, len(sizes)))
    gain = np.clip((0.2 + local) / 2, 0, 1)[:, groups]
    loss = np.clip((0.2 - local) / 2, 0, 1)[:, groups]
    chance = draw.random(gain.shape)
    return (chance < gain).astype(float) - (chance > 1 - loss), groups


@pytest.mark.parametrize("sizes", [MATH, MMLU], ids=["minerva_math", "mmlu"])
@pytest.mark.parametrize(("change", "between"), [(0.0, 0.0), (-0.03, 0.05)])
def test_clustered_covers(sizes: Any, change: float, between: float) -> None:
    values, groups = draw_clustered(sizes, change, between, 3000)
    found = [clustered_mean(row, groups).interval for row in values]
    assert np.mean([one.low <= change <= one.high for one in found]) == NOMINAL


def test_documents_taken_alone_would_not_cover_subjects() -> None:
    """What the clustered interval is for: the one for single documents is far too narrow."""
    values, _ = draw_clustered(MATH, 0.0, 0.1, 1000)
    low, high = tango((values < 0).sum(1), (values > 0).sum(1), np.array(values.shape[1]))
    assert np.mean((low <= 0) & (high >= 0)) < 0.85


def test_bootstrap_covers_a_mean() -> None:
    """Graded figures whose changes are skewed."""
    draw = np.random.default_rng(5)
    hits = []
    for seed in range(1500):
        a = draw.random(100)
        b = a + draw.exponential(0.1, 100)
        found = bootstrap_t(b - a, resamples=400, seed=seed)
        hits.append(found.low <= 0.1 <= found.high)
    assert np.mean(hits) == NOMINAL


@cache
def cached_p(losses: int, gains: int) -> float:
    return mcnemar_p(losses, gains)


def is_alarm(p_values: list[float], signs: list[float]) -> bool:
    """Whether any cell is called worse."""
    return any(
        decide(Estimate(sign, -1.0, 1.0), p, MARGIN, certain=False) == "worse"
        for p, sign in zip(p_values, signs, strict=True)
    )


@pytest.mark.parametrize("n", [100, 1319])
def test_equal_cells_are_not_called_worse(n: int) -> None:
    """Nine cells that are equally good and disagree on a fifth of the documents."""
    draw = np.random.default_rng(7)
    adjusted = raw = 0
    for _ in range(NUM_GRIDS):
        chance = draw.beta(2, 0.6, n)
        cells = draw.random((9, n)) < chance
        losses = (cells[0] & ~cells[1:]).sum(axis=1)
        gains = (~cells[0] & cells[1:]).sum(axis=1)
        p_values = [cached_p(int(b), int(c)) for b, c in zip(losses, gains, strict=True)]
        signs = list((gains - losses).astype(float))
        adjusted += is_alarm(holm(p_values), signs)
        raw += is_alarm(p_values, signs)
    assert adjusted / NUM_GRIDS <= 0.05
    assert raw / NUM_GRIDS > 0.05  # it is Holm that keeps it there


@pytest.mark.parametrize("sizes", [MATH, MMLU // 2], ids=["minerva_math", "mmlu"])
def test_equal_cells_with_subjects_are_not_called_worse(sizes: Any) -> None:
    """As above, and every cell is by chance better at some subjects than at others."""
    draw = np.random.default_rng(8)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    alarms = 0
    for _ in range(NUM_GRIDS):
        skill = 0.7 + 0.05 * draw.standard_normal((9, len(sizes)))
        cells = (draw.random((9, len(groups))) < skill[:, groups]).astype(float)
        means = [clustered_mean(cell - cells[0], groups) for cell in cells[1:]]
        alarms += is_alarm(holm([m.p_value for m in means]), [m.mean for m in means])
    assert alarms / NUM_GRIDS <= 0.05

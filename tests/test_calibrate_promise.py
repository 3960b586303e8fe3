"""How often a promise is kept, and how often one is made: many draws with fixed seeds.

With 95 % confidence 190 of 200 draws keep it on the bound; a sound procedure keeps fewer than 184
in 2.4 % of all seeds (binomial). The seeds here are fixed, so that no run fails by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom

from fdllm.calibrate.loss_test import documents_needed, exact_p, p_value
from fdllm.calibrate.promise import choose_safe, split
from fdllm.record.paths import Layout
from fdllm.report.compare import join
from fdllm.report.grid import choose_baseline, same_computation
from fdllm.report.made import made_by
from fdllm.report.records import load_records
from fdllm.report.stats import Floats
from helpers import ROOT

pytestmark = pytest.mark.slow

DRAWS, KEPT, CONFIDENCE = 200, 184, 0.95


def test_a_sound_procedure_rarely_keeps_fewer() -> None:
    assert binom.cdf(KEPT - 1, DRAWS, CONFIDENCE) == pytest.approx(0.024, abs=0.001)


# --- made-up populations --------------------------------------------------------------------------


def drawn(draw: np.random.Generator, loss: float, differing: float, n: int) -> Floats:
    """What each of n documents loses: a mean ``loss`` where a share of them differs."""
    odds = [(differing + loss) / 2, (differing - loss) / 2, 1 - differing]
    found: Floats = draw.choice([1.0, -1.0, 0.0], n, p=odds)
    return found


def chosen(
    given: Sequence[Floats], saved: Sequence[float], allowed: float, calibrating: int, seed: int
) -> int | None:
    """The number of the promised candidate that saves most."""
    parts = split(len(given[0]), calibrating, several=len(given) > 1, seed=seed)
    found = choose_safe(given, saved, parts, allowed, CONFIDENCE)
    promised = [i for i, one in enumerate(found) if one.standing == "promised"]
    return max(promised, key=lambda i: saved[i], default=None)


@pytest.mark.parametrize(
    ("allowed", "n", "populations"),
    [
        # One candidate, on the bound: without a gain, and with as many as may be.
        (0.01, 1000, [(0.01, 0.01)]),
        (0.01, 1000, [(0.01, 0.02)]),
        (0.01, 1000, [(0.01, 0.10)]),
        (0.02, 300, [(0.02, 0.50)]),
        # Bolder and bolder ones that are all on the bound, so that none may be taken.
        (0.01, 1000, [(0.01, share) for share in (0.01, 0.02, 0.05, 0.10, 0.20)]),
        # Safe ones lead up to them.
        (0.02, 800, [(0.0, 0.01), (0.0, 0.02), (0.02, 0.02), (0.02, 0.03), (0.05, 0.06)]),
        (0.01, 1500, [(0.0, 0.005), (0.01, 0.01), (0.01, 0.03), (0.01, 0.2)]),
    ],
)
def test_the_promise_is_kept_where_the_loss_is_exactly_the_bound(
    allowed: float, n: int, populations: list[tuple[float, float]]
) -> None:
    """Whoever stands on the bound counts as broken, and saves more than all that do not."""
    draw = np.random.default_rng(1)
    saved = [0.05 * (1 + i) for i in range(len(populations))]
    taken = [
        chosen([drawn(draw, *one, n) for one in populations], saved, allowed, n, seed)
        for seed in range(DRAWS)
    ]
    kept = sum(one is None or populations[one][0] < allowed for one in taken)
    assert kept >= KEPT


@pytest.mark.parametrize(
    ("n", "others"),
    [
        (1000, []),
        (1000, [(0.05, 0.06, 0.10), (0.15, 0.20, 0.02)]),  # bolder and bad; gentler and worse
        (1000, [(0.0, 0.01, 0.03), (0.03, 0.10, 0.20)]),
    ],
)
def test_a_candidate_that_saves_a_twentieth_and_loses_nothing_is_found(
    n: int, others: list[tuple[float, float, float]]
) -> None:
    """Of n documents 2 % differ, as many won as lost, and one point may be lost."""
    draw = np.random.default_rng(2)
    populations = [(0.0, 0.02, 0.05), *others]
    saved = [one[2] for one in populations]
    taken = [
        chosen([drawn(draw, *one[:2], n) for one in populations], saved, 0.01, n, seed)
        for seed in range(DRAWS)
    ]
    found = sum(one is not None and saved[one] >= 0.05 for one in taken)
    assert found >= DRAWS / 2


@pytest.mark.parametrize(("loss", "differing"), [(0.0, 0.02), (0.004, 0.03), (0.0, 0.10)])
def test_the_documents_that_are_named_promise_it_in_four_of_five_draws(
    loss: float, differing: float
) -> None:
    odds = [(differing + loss) / 2, (differing - loss) / 2, 1 - differing]
    seen = np.repeat([1.0, -1.0, 0.0], [round(10_000 * share) for share in odds])
    n = documents_needed(seen, 0.01, 1 - CONFIDENCE)
    assert n is not None
    flips = np.random.default_rng(3).multinomial(n, odds, size=DRAWS)
    shown = sum(exact_p(int(lost), int(won), n, 0.01) <= 1 - CONFIDENCE for lost, won, _ in flips)
    assert 0.72 * DRAWS <= shown <= 0.9 * DRAWS


# --- the records in git ---------------------------------------------------------------------------


@cache
def recorded(experiment: str, task: str) -> tuple[Floats, tuple[float, ...]]:
    """Candidates of an experiment: what each document loses, and what each saves."""
    cells = load_records(Layout.of(ROOT), experiment, task)
    baseline = choose_baseline(cells, "t0.97" if experiment == "05_threshold" else None)
    assert baseline is not None
    others = [cell for cell in cells if not same_computation(cell, baseline)]
    saved = {cell.name: 1 - (made_by(cell, baseline).layer_calls or 1) for cell in others}
    pairs = [join(baseline, cell) for cell in others if saved[cell.name] > 0]
    lost = np.array([pair.values[0] - pair.values[1] for pair in pairs])
    return lost, tuple(saved[pair.b.name] for pair in pairs)


RECORDS = [
    ("01_adaptive_skip", "tiny_arithmetic"),
    ("02_residual", "tiny_choice"),
    ("03_trim", "tiny_arithmetic"),
    ("05_threshold", "tiny_arithmetic"),
]


@pytest.mark.parametrize(("experiment", "task"), RECORDS)
@pytest.mark.parametrize("allowed", [0.01, 0.02])
def test_one_half_of_real_documents_keeps_what_the_other_promised(
    experiment: str, task: str, allowed: float
) -> None:
    """The other half has a sampling error of its own: it breaks a promise where it shows more loss.

    By the exact test at 5 %, so that of sound promises up to a tenth might seem broken.
    """
    lost, saved = recorded(experiment, task)
    n, broken = lost.shape[1], 0
    for seed in range(DRAWS):
        taken = chosen(list(lost), saved, allowed, n // 2, seed)
        if taken is None:
            continue
        parts = split(n, n // 2, several=True, seed=seed)
        other = lost[taken][parts.held_out]
        broken += p_value(-other, -allowed) < 1 - CONFIDENCE
    assert DRAWS - broken >= KEPT


@pytest.mark.parametrize(("experiment", "task"), RECORDS[::3])
def test_a_promise_holds_in_the_population_that_real_documents_make(
    experiment: str, task: str
) -> None:
    """Documents drawn again and again from the recorded ones, whose loss is known.

    The bound is put on the loss of a candidate itself, the hard case, with all that is real about
    how candidates go together.
    """
    lost, saved = recorded(experiment, task)
    truth = lost.mean(axis=1)
    bounds = sorted(float(loss) for loss in truth if 0.003 <= loss <= 0.06)[:3]
    draw = np.random.default_rng(4)
    kept = 0
    for allowed in bounds:
        for seed in range(DRAWS):
            again = lost[:, draw.integers(lost.shape[1], size=800)]
            taken = chosen(list(again), saved, allowed, 800, seed)
            kept += taken is None or truth[taken] < allowed - 1e-12
    assert kept >= KEPT * len(bounds) > 0

"""The rule that ends a run: a random order, bets, and what a task has figures of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from early_verdicts import Cell, replay, simulate
from fdllm.criteria import ALPHA
from fdllm.errors import FdllmError
from fdllm.record.deciding import (
    Merits,
    Rule,
    decide,
    draw_order,
    look_size,
    merits_of,
    twin_rows,
)

# --- the order ----------------------------------------------------------------------------------


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(1, 40), max_size=6))
@settings(max_examples=60, deadline=None)
def test_every_document_is_drawn_once_and_every_prefix_has_its_share_of_each_leaf(
    sizes: dict[str, int],
) -> None:
    order = draw_order(sizes)
    assert sorted(order) == sorted((leaf, n) for leaf, size in sizes.items() for n in range(size))
    for end in range(len(order)):
        for leaf, size in sizes.items():
            drawn = sum(name == leaf for name, _ in order[:end])
            # Each leaf keeps to its own place in the order within one document; the prefix's end is
            # a matter of all leaves, each of which may be off by one.
            assert abs(drawn - size * end / len(order)) <= 1 + size * len(sizes) / len(order)


def test_the_order_is_the_same_everywhere() -> None:
    """Else cells of one task, on two machines, would answer different documents."""
    assert draw_order({"a": 3, "b": 2}) == [("b", 0), ("a", 2), ("a", 1), ("a", 0), ("b", 1)]


def test_the_order_of_a_leaf_does_not_follow_its_file() -> None:
    places = np.array([n for _, n in draw_order({"sums": 1000})])
    assert abs(np.corrcoef(places, np.arange(1000))[0, 1]) < 0.1


def test_there_are_at_most_twenty_looks() -> None:
    assert [look_size(n) for n in (5, 200, 250, 14042)] == [10, 10, 13, 703]


# --- the bets -----------------------------------------------------------------------------------


def flips(n: int, losses: float, gains: float, seed: int) -> Any:
    draw = np.random.default_rng(seed).random(n)
    return np.where(draw < losses, -1.0, np.where(draw < losses + gains, 1.0, 0.0))


def verdict(change: Any, margin: float, alpha: float) -> str:
    return decide(change, margin, alpha)[0]


def test_what_is_clear_is_decided_and_what_is_close_stays_open() -> None:
    alpha = ALPHA / 6
    assert verdict(flips(1000, 0.12, 0.02, 0), 0.02, alpha) == "missed"
    assert verdict(np.zeros(1000), 0.02, alpha) == "met"
    assert verdict(flips(1000, 0.05, 0.03, 0), 0.02, alpha) == "open"
    assert verdict(flips(1000, 0.02, 0.12, 0), 0.02, alpha) == "met"
    assert verdict(np.zeros(50), 0.02, alpha) == "open"
    assert verdict(np.zeros(0), 0.02, alpha) == "open"


def test_the_first_decision_stands_whatever_comes_after_it() -> None:
    bad, good = np.full(40, -1.0), np.full(2000, 1.0)
    found, when = decide(np.concatenate([bad, good]), 0.02, 0.05)
    assert (found, when) == decide(bad, 0.02, 0.05)
    assert 1 < when < 40
    assert verdict(np.concatenate([bad, good]), 0.02, 0.05) == "missed"
    assert verdict(np.concatenate([good, bad]), 0.02, 0.05) == "met"


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.5])
def test_graded_figures_are_bet_on_as_flips_are(margin: float) -> None:
    """A loss of half a point on every document is what it says, and has no spread at all."""
    assert verdict(np.full(3000, -margin - 0.02), margin, 0.01) == "missed"
    assert verdict(np.full(3000, 0.02 - margin), margin, 0.01) == "met"
    assert verdict(np.array([-1.0, 0.0, 0.0]), 1.0, 0.01) == "met", "no loss is larger"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("losses", "gains", "margin", "wrong"),
    [
        (0.07, 0.05, 0.02, "missed"),  # the margin to a hair: it is met
        (0.0201, 0.0, 0.02, "met"),  # a hair more
        (0.12, 0.08, 0.02, "met"),
        (0.03, 0.03, 0.02, "missed"),
    ],
)
def test_looking_after_every_document_errs_no_more_often_than_stated(
    losses: float, gains: float, margin: float, wrong: str
) -> None:
    alpha, tries = 0.05, 400
    errors = sum(
        verdict(flips(800, losses, gains, seed), margin, alpha) == wrong for seed in range(tries)
    )
    assert errors <= 1.3 * alpha * tries


# --- a cell -------------------------------------------------------------------------------------


def rows(values: Any, **rises: Any) -> Merits:
    return {
        ("t", n): {"max_accuracy_drop": float(value)} | {k: float(v[n]) for k, v in rises.items()}
        for n, value in enumerate(values)
    }


def test_a_cell_ends_when_all_of_its_criteria_are_decided() -> None:
    rule = Rule({"max_accuracy_drop": 0.02, "max_truncation_rise": 0.05}, "lock", sharing=3)
    n = 400
    base = rows(np.ones(n), max_truncation_rise=np.zeros(n))
    same = rule.judge(base, rows(np.ones(n), max_truncation_rise=np.zeros(n)), 1000)
    assert same is not None
    assert same.outcomes == {"max_accuracy_drop": "met", "max_truncation_rise": "met"}
    assert (same.identity, same.saved) == ("400 of 1000, criteria lock", 600)
    cut = np.where(np.arange(n) % 3 == 0, -1.0, 0.0)
    found = rule.judge(base, rows(np.ones(n), max_truncation_rise=cut), 1000)
    assert found is not None
    assert found.outcomes == {"max_accuracy_drop": "met", "max_truncation_rise": "missed"}
    close = np.where(np.arange(n) % 20 == 0, -1.0, 0.0)  # at the margin
    assert rule.judge(base, rows(np.ones(n), max_truncation_rise=close), 1000) is None


def test_only_documents_that_both_sides_have_are_compared() -> None:
    rule = Rule({"max_accuracy_drop": 0.02}, "lock")
    assert rule.judge(rows(np.ones(30)), rows(np.ones(500)), 1000) is None
    assert rule.judge({}, rows(np.ones(500)), 1000) is None


def test_the_more_verdicts_share_the_errors_the_later_each_is_decided() -> None:
    def enough(sharing: int) -> int:
        rule = Rule({"max_accuracy_drop": 0.02}, "lock", sharing)
        return next(
            n for n in range(50, 900, 10) if rule.judge(rows(np.ones(n)), rows(np.ones(n)), 1000)
        )

    assert enough(1) < enough(6) < enough(18)


def test_a_twin_ends_where_the_margin_is_excluded_by_documents_none_of_which_differs() -> None:
    assert [twin_rows(m) for m in (0.01, 0.02, 0.1, 0.0)] == [381, 189, 100, 100]
    rule = Rule({"max_accuracy_drop": 0.02}, "lock", is_twin=True)
    base = rows(np.arange(400) % 2)
    assert rule.judge(base, rows(np.arange(188) % 2), 1000) is None
    found = rule.judge(base, rows(np.arange(189) % 2), 1000)
    assert found is not None
    assert found.outcomes == {}
    assert rule.judge(base, rows(np.arange(399) % 2) | rows([1]), 1000) is None, "a flip"


def test_figures_of_texts_and_of_choices() -> None:
    rows: list[dict[str, Any]] = [
        {"task": "t", "doc_id": n, "metrics": {"acc,none": n / 2}, "requests": 2} for n in (0, 1)
    ]
    told = ({"truncated": 1, "repetitive": 2}, {"truncated": 0, "repetitive": 0})
    texts = [row | signs for row, signs in zip(rows, told, strict=True)]
    names = ("max_accuracy_drop", "max_truncation_rise", "max_repetition_rise")
    found = merits_of("acc,none", texts)
    assert [found["t", 0][name] for name in names] == [0.0, -0.5, -1.0]
    assert [found["t", 1][name] for name in names] == [0.5, 0.0, 0.0]
    assert merits_of("acc,none", rows)["t", 1] == {"max_accuracy_drop": 0.5}
    with pytest.raises(FdllmError, match=r"acc,none = 1.5; a run can end early only where"):
        merits_of("acc,none", [rows[0] | {"metrics": {"acc,none": 1.5}}])


# --- what it costs and saves (benchmarks/early_verdicts.py measures all of it) --------------------


def test_few_simulated_grids_have_a_wrong_verdict() -> None:
    """Nine cells at the margin and around it; a rule that is easily convinced is often wrong."""
    assert simulate(grids=40, documents=400) <= 3
    assert simulate(grids=40, documents=400, alpha=4.0) > 8


def test_a_whole_run_is_never_contradicted_and_much_of_it_is_saved() -> None:
    cells = [
        Cell("same", flips(1000, 0.0, 0.0, 0), 0.02, 6),
        Cell("much worse", flips(1000, 0.14, 0.02, 1), 0.02, 6),
        Cell("better", flips(1000, 0.02, 0.06, 2), 0.02, 6),
        Cell("close", flips(1000, 0.05, 0.03, 3), 0.02, 6),
    ]
    assert [cell.whole for cell in cells] == ["met", "missed", "met", "open"]
    ends, saved = replay(cells, orders=20)
    assert ends["opposite"] == 0
    assert ends["same"] >= 55
    assert saved > 0.3

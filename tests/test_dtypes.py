"""The same answers in every data type, on every kernel path, at every batch size.

The promise of docs/algorithm.md section 3.1.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from dtypes import BATCHES, CASES, TYPES, Case, Deep, answers, named
from fdllm.core.torch_backend import pairs_of

# More than the largest batch, so that freed rows are taken by others; four choices a question.
SUMS, QUESTIONS = 18, 5
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=named)
ONE_QUICKLY = pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if case == ("plain", torch.float32) else pytest.mark.slow)
        for case in CASES
    ],
    ids=named,
)
alone = cache(answers)


@ONE_QUICKLY
def test_answers(case: Case) -> None:
    """Right ones; the same tokens and choices whatever the batch; no others than float32's.

    In half types a last bit is a hundredth: scores, too, are the same whatever the batch. Float32's
    products of one to three rows are summed in another order than those of more.
    """
    want = alone(("plain", torch.float32), 1, SUMS, QUESTIONS)
    assert want.right >= SUMS - 1
    assert want.right_choices == QUESTIONS
    single = alone(case, 1, SUMS, QUESTIONS)
    # Rounding may turn a step where two columns are about as likely; not an answer that is clear.
    assert abs(single.right - want.right) <= 1
    assert single.right_choices == want.right_choices
    for batch in BATCHES[1:]:
        got = answers(case, batch, SUMS, QUESTIONS)
        assert got.tokens == single.tokens
        assert got.counts == single.counts
        assert got.choices == single.choices
        room = 1e-4 if case[1] == torch.float32 else 0.0
        torch.testing.assert_close(got.scores, single.scores, rtol=0, atol=room)


@pytest.fixture(scope="module")
def deep() -> Deep:
    return Deep()


@pytest.fixture(scope="module")
def plain_error(deep: Deep) -> dict[torch.dtype, float]:
    """What rounding costs a plain eager model; that of float32, whose errors are last bits."""
    return {
        dtype: 1e-6 if dtype == torch.float32 else deep.error(deep.eager(dtype), deep.exact)
        for dtype in TYPES
    }


@pytest.mark.slow
@EVERY_CASE
def test_errors_of_28_layers(deep: Deep, plain_error: dict[torch.dtype, float], case: Case) -> None:
    """At most a quarter more than a plain eager model of the type has."""
    for batch in BATCHES[:2]:
        assert max(deep.path_error(case, batch)) <= 1.25 * plain_error[case[1]]


def test_pairs_that_would_be_a_copy_are_refused() -> None:
    """Where pairs are written must be where they are read."""
    x = torch.zeros(3, 8)
    pairs_of(x).fill_(1j)
    assert x.tolist() == [[0.0, 1.0] * 4] * 3
    with pytest.raises((ValueError, RuntimeError), match="copy|stride"):
        pairs_of(torch.zeros(8, 3).t())

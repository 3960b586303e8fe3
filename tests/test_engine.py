"""The engine against the plain oracle, and the promises of docs/algorithm.md sections 3 to 5.

Shapes are drawn here, each with a strategy of the list; every strategy has its course compared in
test_oracle.py.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fdllm
from fdllm.core.config import Estimator
from fdllm.core.reuse import PeriodicReuse, ReuseStrategy
from fdllm.core.schedule import Phase
from models import DECODING, MASK, random_model, random_prompt
from reference import reference_denoise_score, reference_generate
from strategies import STRATEGIES, every_strategy


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    length=st.sampled_from([1, 3, 15, 16, 17, 31, 32, 36]),
    threshold=st.sampled_from([0.3, 0.6, 0.9, 1.0]),
    width=st.sampled_from([2, 4, 8, 16]),
    cached=st.booleans(),
    name=st.sampled_from(list(STRATEGIES)),
    stop=st.integers(3, MASK - 1),
)
def test_generation_equals_oracle(
    seed: int, length: int, threshold: float, width: int, cached: bool, name: str, stop: int
) -> None:
    model = random_model(seed % 7)
    decoding = fdllm.Decoding(
        block_size=16,
        small_block_size=width,
        threshold=threshold,
        use_block_cache=cached,
        max_new_tokens=20,
        stop_token=stop,
        mask_id=MASK,
    )
    prompt = random_prompt(seed, length)
    want = reference_generate(model, prompt, decoding, STRATEGIES[name])
    [got] = fdllm.generate(model, [prompt], decoding, STRATEGIES[name])
    assert got.tokens == want


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    prefix=st.sampled_from([1, 5, 15, 16, 20, 33]),
    target=st.integers(1, 20),
    rounds=st.integers(0, 6),
    name=st.sampled_from(list(STRATEGIES)),
)
def test_denoise_score_equals_oracle(
    seed: int, prefix: int, target: int, rounds: int, name: str
) -> None:
    model = random_model(seed % 7)
    decoding = fdllm.Decoding(block_size=16, small_block_size=4, mask_id=MASK, scoring_steps=rounds)
    pair = (random_prompt(seed, prefix), random_prompt(seed + 1, target))
    want, greedy = reference_denoise_score(model, *pair, decoding, STRATEGIES[name])
    [got] = fdllm.score(model, [pair], "denoise", decoding, STRATEGIES[name])
    assert got.loglikelihood == pytest.approx(want, abs=1e-3)
    assert got.is_greedy == greedy
    assert got.tokens == target


@every_strategy
def test_batch_equals_single(strategy: ReuseStrategy[Any]) -> None:
    """Eight prompts of different lengths together give the tokens that each gives alone."""
    model = random_model(3)
    prompts = [random_prompt(i, n) for i, n in enumerate([1, 7, 16, 17, 30, 32, 33, 50])]
    alone = [fdllm.generate(model, [p], DECODING, strategy)[0] for p in prompts]
    for batch_size in (8, 3):
        together = fdllm.generate(model, prompts, DECODING, strategy, batch_size=batch_size)
        assert [t.tokens for t in together] == [a.tokens for a in alone]
        assert [t.counts for t in together] == [a.counts for a in alone]


@every_strategy
def test_counts_add_up(strategy: ReuseStrategy[Any]) -> None:
    model = random_model(4)
    prompts = [random_prompt(i, n) for i, n in enumerate([5, 16, 40])]
    outs = fdllm.generate(model, prompts, DECODING, strategy)
    for out in outs:
        for phase in Phase:
            count = out.counts[phase]
            assert count.computed + count.reused == count.forwards * model.n_layers
        assert out.counts["prefill"].reused == out.counts["commit"].reused == 0
        assert sum(out.steps) >= len(out.tokens) - out.counts["commit"].forwards - 1
        denoising = out.counts["denoise"].forwards + out.counts["refresh"].forwards
        assert len(out.steps) == denoising
    saved = sum(out.counts.reused + out.counts.trimmed for out in outs)
    assert (saved > 0) == strategy.reuses


@pytest.mark.parametrize("scoring", get_args(Estimator))
def test_k1_is_bit_identical_to_no_reuse(scoring: Any) -> None:
    model = random_model(5)
    prompts = [random_prompt(i, n) for i, n in enumerate([5, 16, 40])]
    pairs = [(p, random_prompt(9, 3)) for p in prompts]
    plain = fdllm.generate(model, prompts, DECODING)
    base = fdllm.score(model, pairs, scoring, DECODING)
    for start in (1, 2, 4):
        strategy = PeriodicReuse(1, start, start + 2)
        outs = fdllm.generate(model, prompts, DECODING, strategy)
        assert [o.tokens for o in outs] == [p.tokens for p in plain]
        scores = fdllm.score(model, pairs, scoring, DECODING, strategy)
        assert [s.loglikelihood for s in scores] == [b.loglikelihood for b in base]


class Ticks:
    """A clock that goes on by one at every look: a forward is looked at when it begins and ends."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter(self) -> int:
        self.now += 1
        return self.now


@pytest.fixture
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fdllm.core.engine.time", Ticks())


@pytest.mark.usefixtures("_ticking")
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_row_is_booked_its_share_of_each_forward(batch_size: int) -> None:
    """Four equal prompts go through the same forwards, each of which takes a second for all."""
    prompts = [random_prompt(1, 20)] * 4
    outs = fdllm.generate(random_model(3), prompts, DECODING, batch_size=batch_size)
    for out in outs:
        assert out.counts.forwards > 5
        assert out.seconds == pytest.approx(out.counts.forwards / batch_size)


@pytest.mark.usefixtures("_ticking")
def test_a_rows_share_of_a_forward_is_by_its_columns() -> None:
    """Prompts of one, two and three blocks are prefilled in one forward, and that is all."""
    decoding = DECODING.model_copy(update={"max_new_tokens": 1})
    outs = fdllm.generate(random_model(3), [random_prompt(1, 16 * n) for n in (1, 2, 3)], decoding)
    assert [out.counts.forwards for out in outs] == [1, 1, 1]
    assert [out.seconds for out in outs] == pytest.approx([1 / 6, 2 / 6, 3 / 6])


@pytest.mark.usefixtures("_ticking")
@pytest.mark.parametrize("scoring", ["denoise", "chain", "first-token"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_share_the_seconds_of_their_forwards(scoring: Any, batch_size: int) -> None:
    """Targets of one prefix share a forward's seconds evenly; counts are booked on the first."""
    decoding = DECODING.model_copy(update={"end_token": 2})
    prefixes = [random_prompt(seed, 10) for seed in range(3)]
    pairs = [(prefix, [token]) for prefix in prefixes for token in (5, 6)]
    scores = fdllm.score(
        random_model(3), pairs, scoring, decoding, batch_size=batch_size, prefix_cache_gib=0
    )
    assert scores[1].counts.forwards == 0
    for first, second in zip(scores[::2], scores[1::2], strict=True):
        assert first.seconds == pytest.approx(first.counts.forwards / batch_size / 2)
        assert second.seconds == pytest.approx(first.seconds)


def test_reuse_changes_what_it_should() -> None:
    """Reuse reaches the numbers: an engine that ran the layers anyway would agree with k = 1."""
    model = random_model(6)
    pairs = [(random_prompt(i, 20), random_prompt(i + 50, 3)) for i in range(6)]
    base = fdllm.score(model, pairs, "denoise", DECODING)
    for name in ("k2-output", "k3-output-last", "k2-residual"):
        scores = fdllm.score(model, pairs, "denoise", DECODING, STRATEGIES[name])
        assert all(
            abs(s.loglikelihood - b.loglikelihood) > 1e-4 for s, b in zip(scores, base, strict=True)
        )


@pytest.mark.parametrize(("k", "reused_steps"), [(2, {1, 3, 5}), (3, {1, 2, 4, 5})])
def test_scoring_step_is_a_reuse_step(k: int, reused_steps: set[int]) -> None:
    """With five rounds the sixth forward scores: index 5 is reused for k = 2 and for k = 3."""
    model = random_model(1)
    pair = (random_prompt(0, 17), random_prompt(1, 1))
    [got] = fdllm.score(model, [pair], "denoise", DECODING, PeriodicReuse(k, 2, 4))
    assert got.counts["refresh"].forwards == 1
    assert got.counts["denoise"].forwards == 5
    assert got.counts["denoise"].reused == 2 * len(reused_steps)

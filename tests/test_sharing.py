"""Sharing, batching and deduplication: the same scores with a fraction of the work."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fdllm
from fdllm.core.cache import RowCache
from fdllm.core.config import Estimator
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.model_runner import ModelRunner
from fdllm.core.prefix_cache import PrefixPool
from fdllm.core.reuse import NoReuse, ReuseStrategy
from fdllm.core.row_task import CacheRow
from fdllm.core.scorer import Score
from fdllm.core.torch_backend import TorchBackend, TorchWindow
from fdllm.errors import UsageError
from models import MASK, STOP, random_model, random_prompt
from strategies import FEW

DECODING = fdllm.Decoding(
    block_size=16, small_block_size=4, stop_token=STOP, mask_id=MASK, scoring_steps=3
)
GIB_PER_BLOCK = (
    6 * 2 * 2 * 16 * 8 * 4 / 2**30
)  # layers, k and v, kv heads, block, head dim, float32


def score_all(
    pairs: list[tuple[list[int], list[int]]],
    scoring: Estimator,
    strategy: ReuseStrategy[Any],
    *,
    batch_size: int = 1,
    share: bool = False,
    pool_blocks: float = 0,
) -> list[Score]:
    return fdllm.score(
        random_model(1),
        pairs,
        scoring,
        DECODING,
        strategy,
        batch_size=batch_size,
        deduplicate=share,
        prefix_cache_gib=pool_blocks * GIB_PER_BLOCK,
    )


@st.composite
def request_sets(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Questions behind a common text, each with answers that agree to various depths."""
    common = random_prompt(draw(st.integers(0, 5)), draw(st.sampled_from([0, 16, 40, 64])))
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        question = random_prompt(draw(st.integers(0, 9)), draw(st.sampled_from([1, 7, 15, 16, 30])))
        stem = random_prompt(draw(st.integers(0, 3)), draw(st.sampled_from([0, 1, 2, 17])))
        for _ in range(draw(st.integers(1, 3))):
            tail = random_prompt(draw(st.integers(0, 3)), draw(st.integers(1, 3)))
            pairs.append((common + question, stem + tail))
    return pairs


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    pairs=request_sets(),
    scoring=st.sampled_from(get_args(Estimator)),
    strategy=st.sampled_from(FEW),
    batch_size=st.sampled_from([1, 3, 8]),
    pool_blocks=st.sampled_from([0, 1, 2, 50]),
    order=st.randoms(use_true_random=False),
)
def test_nothing_changes_a_score(
    pairs: list[tuple[list[int], list[int]]],
    scoring: Estimator,
    strategy: ReuseStrategy[Any],
    batch_size: int,
    pool_blocks: int,
    order: Any,
) -> None:
    alone = score_all(pairs, scoring, strategy)
    shuffled = list(range(len(pairs)))
    order.shuffle(shuffled)
    together = score_all(
        [pairs[i] for i in shuffled],
        scoring,
        strategy,
        batch_size=batch_size,
        share=True,
        pool_blocks=pool_blocks,
    )
    for at, i in enumerate(shuffled):
        assert together[at].loglikelihood == pytest.approx(alone[i].loglikelihood, abs=1e-4)
        assert together[at].is_greedy == alone[i].is_greedy
        assert together[at].tokens == alone[i].tokens
    # What is fed and what is shared add up to what each request alone would have fed.
    fed = sum(s.counts.tokens + s.counts.shared for s in together)
    assert fed == sum(s.counts.tokens for s in alone)
    assert sum(s.counts.tokens for s in together) <= fed
    assert not any(s.counts.shared for s in alone)


def test_four_choices_cost_one_forward() -> None:
    prefix = random_prompt(0, 70)
    pairs = [(prefix, [token]) for token in (5, 6, 7, 8)]
    for scoring, forwards in (("first-token", 1), ("denoise", 4), ("chain", 1)):
        scores = score_all(pairs, scoring, NoReuse(), share=True)  # type: ignore[arg-type]
        assert sum(s.counts.forwards for s in scores) == 1 + forwards
        assert [s.counts.tokens > 0 for s in scores] == [True, False, False, False]
        assert len({s.loglikelihood for s in scores}) == 4


@pytest.mark.parametrize("strategy", FEW)
def test_prefixes_of_any_length_and_their_last_blocks_share_a_forward(
    strategy: ReuseStrategy[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[list[int]] = []
    forward = ModelRunner.forward

    def spy(self: ModelRunner, ids: Any, backend: Any, batch: ForwardBatch, *rest: Any) -> Any:
        widths.append([len(w.rows) * w.width for w in batch.windows])
        return forward(self, ids, backend, batch, *rest)

    monkeypatch.setattr(ModelRunner, "forward", spy)
    pairs = [(random_prompt(n, n), [5]) for n in (20, 33, 60, 61)]
    together = score_all(pairs, "denoise", strategy, batch_size=4)
    assert widths[0] == [16, 32, 48 * 2, 16, 16, 16 * 2], "four PREFILLs, then four REFRESHes"
    widths.clear()
    alone = score_all(pairs, "denoise", strategy)
    assert sorted(sum(w) for w in widths if len(w) > 1) == [32, 48, 64, 64]
    for a, b in zip(together, alone, strict=True):
        assert a.loglikelihood == pytest.approx(b.loglikelihood, abs=1e-5)
        assert a.counts == b.counts


def test_masks_of_prompts_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Window] = []
    lay_out, backends = TorchBackend._lay_out, set[TorchBackend]()  # noqa: SLF001

    def spy(self: TorchBackend, window: Window) -> TorchWindow:
        backends.add(self)
        made.append(window)
        return lay_out(self, window)

    monkeypatch.setattr(TorchBackend, "_lay_out", spy)
    model = random_model(1)
    model.compile(asked=False)
    fdllm.score(model, [(random_prompt(n, 50 + n), [5]) for n in range(4)], "denoise", DECODING)
    [backend] = backends
    prompts = [window for window in made if window.causal_block is not None]
    assert prompts
    assert backend._kept.cache_info().currsize == len(made) - len(prompts) > 0  # noqa: SLF001


def test_a_common_text_is_prefilled_once() -> None:
    """Requests of one batch that begin alike wait for the first of them."""
    common = random_prompt(0, 16 * 40)[: 16 * 20]
    pairs = [(common + random_prompt(i, 5), [7]) for i in range(6)]
    for batch_size in (1, 6):
        scores = score_all(
            pairs, "first-token", NoReuse(), batch_size=batch_size, share=True, pool_blocks=30
        )
        assert sum(s.counts["prefill"].tokens for s in scores) == len(common)
        assert sum(s.counts["prefill"].shared for s in scores) == 5 * len(common)


def finish(pool: PrefixPool, cache: RowCache, ids: tuple[int, ...]) -> None:
    """A row has computed these blocks, and the pool keeps them."""
    row = CacheRow(cache, 0)
    cache.commit(0, len(ids))
    pool.keep(row, ids)


def known(pool: PrefixPool, cache: RowCache, ids: tuple[int, ...]) -> int:
    return pool.load(CacheRow(cache, 0), ids)


def test_the_pool_is_bounded_and_keeps_what_was_used_last() -> None:
    model = random_model(1)
    like = model.network.embedding.weight
    pool = PrefixPool(model.spec, 16, 2 * GIB_PER_BLOCK * 2**30, like)
    cache = RowCache(model.spec, num_rows=1, capacity=64, block_size=16, like=like)
    cache.keys.normal_()
    a, b, c = (tuple(random_prompt(i, 16)) for i in range(3))
    finish(pool, cache, a + b)
    assert known(pool, cache, a + b + c) == 32
    finish(pool, cache, c)  # evicts b, the end of the chain, not a
    assert len(pool) == pool.num_blocks == 2
    want = cache.keys[:, 0, :, :16].clone()
    cache.keys.zero_()
    assert known(pool, cache, a + b) == 16
    assert torch.equal(cache.keys[:, 0, :, :16], want)


def test_a_block_is_known_by_what_stands_ahead_of_it() -> None:
    """The same block behind another one has other keys and values."""
    model = random_model(1)
    like = model.network.embedding.weight
    pool = PrefixPool(model.spec, 16, 50 * GIB_PER_BLOCK * 2**30, like)
    cache = RowCache(model.spec, num_rows=1, capacity=64, block_size=16, like=like)
    a, b, c = (tuple(random_prompt(i, 16)) for i in range(3))
    for ids in (a, b, a + c):
        finish(pool, cache, ids)
    assert known(pool, cache, b + c) == 16
    assert known(pool, cache, c) == 0
    finish(pool, cache, b + c)
    assert len(pool) == 4
    assert known(pool, cache, b + c) == 32

    pairs = [([*first, *c, 5], [7]) for first in (a, b)]
    alone = score_all(pairs, "chain", NoReuse())
    shared = score_all(pairs, "chain", NoReuse(), share=True, pool_blocks=50)
    assert abs(alone[0].loglikelihood - alone[1].loglikelihood) > 1e-3
    for got, want in zip(shared, alone, strict=True):
        assert got.loglikelihood == pytest.approx(want.loglikelihood, abs=1e-5)


def test_a_pool_too_small_for_a_block_is_refused() -> None:
    with pytest.raises(UsageError, match="not even one block of this model"):
        score_all([([5], [6])], "denoise", NoReuse(), pool_blocks=0.5)


def test_generation_can_share_prompts_too() -> None:
    from fdllm.core.sampler import GenerationRequest  # noqa: PLC0415

    model = random_model(1)
    common = random_prompt(0, 48)
    requests = [
        GenerationRequest(tuple(common + random_prompt(i, n))) for i, n in enumerate([3, 16, 20])
    ]
    decoding = DECODING.model_copy(update={"max_new_tokens": 20})
    alone = fdllm.generate(model, requests, decoding, batch_size=1)
    shared = fdllm.generate(
        model, requests, decoding, batch_size=3, prefix_cache_gib=50 * GIB_PER_BLOCK
    )
    assert [s.tokens for s in shared] == [a.tokens for a in alone]
    assert sum(s.counts["prefill"].shared for s in shared) == 2 * len(common)

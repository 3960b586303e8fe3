"""Plans that look behind attention: what they come to, and what they ask for and refuse."""

from __future__ import annotations

import pytest
import torch

import fdllm
from dtypes import TYPES
from fdllm.core.attention_plans import DriftPlan, SalientPlan
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.reuse import GuidedPlan, LayerPlan, LayerRun, NeverWrittenError, ReuseStrategy
from fdllm.core.row_task import CacheRow
from fdllm.tiny.vocabulary import decode
from helpers import SURE
from models import DECODING, PROMPTS, random_model
from strategies import STRATEGIES
from tiny_training.questions import held_out

LAYERS, BLOCK, LENGTH = 6, 16, 16
SALIENT = SalientPlan(LAYERS, 1, 5, 0.9)
DRIFT = DriftPlan(LAYERS, 0.95, columns=(5, 6, 7, 8), candidates=(0, 1, 2, 3, 4))
BOTH = pytest.mark.parametrize("plan", [SALIENT, DRIFT], ids=["salient", "drift"])


def window(first: int, width: int) -> ForwardBatch:
    """Columns of the second block of the only row."""
    start, extent = (LENGTH + first,), (LENGTH + BLOCK,)
    return ForwardBatch((Window((0,), start, width, extent, first_columns=(first,)),))


class Forwards:
    """A model whose row stands at its second block, behind a whole step that stored for a plan."""

    def __init__(self, plan: GuidedPlan, *, seed: int = 0) -> None:
        model = random_model(seed)
        self.backend = model.backend(num_rows=1, capacity=LENGTH + BLOCK)
        self.run, self.row = model.runner().forward, CacheRow(self.backend.cache, 0)
        prompt = ForwardBatch((Window((0,), (0,), LENGTH, (LENGTH,)),))
        self.run(torch.arange(3, 19), self.backend, prompt, LayerPlan(LAYERS), [])
        self.backend.cache.commit(0, LENGTH)
        self.ids = torch.tensor([4, 9, 5, 7, 11, *[47] * 11])
        self.run(self.ids, self.backend, window(0, BLOCK), plan.whole, [4])
        self.ids[5:7] = torch.tensor([21, 30])


@BOTH
@pytest.mark.parametrize("first", [0, 3])
@torch.inference_mode()
def test_what_it_came_to_says_all_that_was_done(plan: GuidedPlan, first: int) -> None:
    """Carried out as a plan without any decision, it gives the same numbers everywhere."""
    at = Forwards(plan)
    width = BLOCK - first
    ids, where, read = at.ids[first:], window(first, width), [6 - first, 7 - first]
    before = at.row.save()
    done = at.run(ids, at.backend, where, plan, read)
    after = at.row.save()
    at.row.restore(before)
    again = at.run(ids, at.backend, where, done.plan, read)
    assert 0 < done.plan.trimmed(width) < LAYERS - 2
    torch.testing.assert_close(again.hidden, done.hidden)
    same = at.row.save()
    torch.testing.assert_close(same.keys, after.keys)
    torch.testing.assert_close(same.values, after.values)
    for (_, mine, written), (_, other, had) in zip(same.outputs, after.outputs, strict=True):
        torch.testing.assert_close(mine, other)
        assert written == had


@torch.inference_mode()
def test_a_column_that_is_not_salient_takes_what_its_feed_forward_added_last() -> None:
    """Where nothing is salient no feed-forward matters; where all is, the step is whole."""
    none, every = (SalientPlan(LAYERS, 1, 5, cosine) for cosine in (-1.1, 1.1))
    at, where = Forwards(none), window(0, BLOCK)
    before = at.row.save()
    whole = at.run(at.ids, at.backend, where, LayerPlan(LAYERS)).hidden
    at.row.restore(before)
    torch.testing.assert_close(at.run(at.ids, at.backend, where, every).hidden, whole)
    at.row.restore(before)
    first = at.run(at.ids, at.backend, where, none)
    assert {run.columns for run in first.plan.partial} == {()}
    assert not torch.allclose(first.hidden, whole)


@torch.inference_mode()
def test_behind_a_drift_every_layer_is_computed_for_all() -> None:
    at, where = Forwards(DRIFT), window(0, BLOCK)
    before, calls = at.row.save(), list[int]()
    for cosine in (-1.1, 1.1):
        at.row.restore(before)
        plan = DriftPlan(LAYERS, cosine, DRIFT.columns, DRIFT.candidates)
        done = at.run(at.ids, at.backend, where, plan, [7, 8])
        few = {run.columns for run in done.plan.partial}
        calls.append(len(done.plan.partial))
        assert len(few) == 1
        assert set(DRIFT.columns) | {7, 8} <= set(few.pop())
        assert len(done.plan.partial) + len(done.plan.store) == LAYERS - 2
    assert calls == [LAYERS - 2, 1]


@torch.inference_mode()
def test_attention_is_shared_out_whole() -> None:
    """What the block and the prefix receive adds up to one for each head of each query."""
    at = Forwards(DRIFT)
    received = DRIFT.runs[0].watched[1]
    shares = at.backend.cache.outputs.read(received, (0,), [range(BLOCK)])
    heads = 4
    assert 0 < float(shares.sum()) < BLOCK * heads  # the rest is the prefix's
    alone = random_model(0)
    backend = alone.backend(num_rows=1, capacity=BLOCK)
    where = ForwardBatch((Window((0,), (0,), BLOCK, (BLOCK,)),))
    alone.runner().forward(at.ids, backend, where, DRIFT.whole)
    shares = backend.cache.outputs.read(received, (0,), [range(BLOCK)])
    assert float(shares.sum()) == pytest.approx(BLOCK * heads, rel=1e-4)


@BOTH
def test_nothing_is_compared_that_was_never_computed(plan: GuidedPlan) -> None:
    backend = random_model(0).backend(num_rows=1, capacity=BLOCK)
    where = ForwardBatch((Window((0,), (0,), BLOCK, (BLOCK,)),))
    with pytest.raises(NeverWrittenError, match=r"attention|received"):
        random_model(0).runner().forward(torch.arange(3, 19), backend, where, plan)


def test_the_inside_of_a_layer_is_that_of_one() -> None:
    for more in ({"watch": "share"}, {"target": "feed_forward"}):
        with pytest.raises(ValueError, match="the inside of a layer"):
            LayerRun(1, 3, **more)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="left out in part"):
        LayerPlan(LAYERS, reuse=(LayerRun(1, 2, "feed_forward"),))
    with pytest.raises(ValueError, match="has not changed"):
        DriftPlan(LAYERS, 0.9, (1, 2), ())


def test_a_layer_without_its_feed_forward_is_the_share_of_its_weights() -> None:
    run = LayerRun(1, 2, "feed_forward", columns=(0, 1))
    assert LayerPlan(LAYERS, partial=(run,)).trimmed(8, 0.6) == pytest.approx(0.45)
    assert random_model(0).spec.feed_forward_share == pytest.approx(6144 / (3072 + 64 + 6144 + 64))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("name", "cosine"), [("09_salient", 0.999), ("13_drift", 0.9)])
def test_every_type_answers_right(dtype: torch.dtype, name: str, cosine: float) -> None:
    """Of a model that is sure of itself, at settings that change little."""
    model = fdllm.load_model(SURE, device="cpu", dtype=dtype)
    strategy = fdllm.load_strategy(name, k=2, subset="middle", n_layers=12, threshold=cosine)
    rows, decoding = held_out("arithmetic", "test")[:4], fdllm.Decoding(max_new_tokens=56)
    prompts = [row.prompt_ids for row in rows]
    alone, batch = (
        fdllm.generate(model, prompts, decoding, strategy, batch_size=size) for size in (1, 4)
    )
    assert [(one.tokens, one.counts) for one in alone] == [(o.tokens, o.counts) for o in batch]
    assert sum(one.counts.trimmed for one in alone) > 0
    for one, row in zip(alone, rows, strict=True):
        assert f"#### {row.target}" in decode(one.tokens)


@pytest.mark.parametrize("name", ["salient-refresh", "drift"])
def test_rows_of_one_batch_are_each_alone(name: str) -> None:
    """What a neighbour attends to decides nothing, and costs nothing."""
    model, strategy = random_model(3), STRATEGIES[name]
    for cached in (True, False):
        decoding = DECODING.model_copy(update={"use_block_cache": cached})

        def texts(
            rows: int,
            strategy: ReuseStrategy[object] = strategy,
            decoding: fdllm.Decoding = decoding,
        ) -> list[object]:
            outs = fdllm.generate(model, PROMPTS, decoding, strategy, batch_size=rows)
            return [(out.tokens, out.counts) for out in outs]

        assert texts(len(PROMPTS)) == texts(1)

"""Layer plans, subsets, and what the layer loop really runs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

import fdllm
from fdllm.core.config import Estimator
from fdllm.core.cost import Fed, forward_costs
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.reuse import LayerPlan, LayerRun, NeverWrittenError, NoReuse, PeriodicReuse, Target
from fdllm.core.schedule import Phase, Step
from fdllm.core.subsets import subset_bounds, subset_overlaps
from fdllm.errors import UsageError
from models import MASK, SPEC, random_model


@pytest.mark.parametrize(
    ("n_layers", "size", "first", "middle", "last"),
    [
        (36, None, (1, 13), (12, 24), (24, 36)),
        (28, None, (1, 13), (8, 20), (16, 28)),
        (28, 9, (1, 10), (10, 19), (19, 28)),
        (12, None, (1, 5), (4, 8), (8, 12)),
        (24, None, (1, 13), (6, 18), (12, 24)),
    ],
)
def test_subsets(
    n_layers: int,
    size: int | None,
    first: tuple[int, int],
    middle: tuple[int, int],
    last: tuple[int, int],
) -> None:
    """docs/algorithm.md section 4.1; ``first`` has as many layers as the others (defect 3)."""
    got = [subset_bounds(name, n_layers, size) for name in ("first", "middle", "last")]
    assert got == [first, middle, last]
    assert len({stop - start for start, stop in got}) == 1


def test_overlapping_subsets_are_named() -> None:
    assert subset_overlaps(28) == [("first", "middle", 5), ("middle", "last", 4)]
    assert subset_overlaps(28, 9) == []
    assert subset_overlaps(36) == [("first", "middle", 1)]


@pytest.mark.parametrize(("subset", "size"), [("second", None), ("first", 0), ("last", 12)])
def test_bad_subset(subset: str, size: int | None) -> None:
    with pytest.raises(UsageError, match=r"choose one of|must be between 1 and 11"):
        subset_bounds(subset, 12, size)


@pytest.mark.parametrize(
    "plan",
    [
        {"reuse": (LayerRun(2, 4), LayerRun(3, 5))},
        {"reuse": (LayerRun(2, 4),), "store": (LayerRun(2, 4),)},
        {"store": (LayerRun(4, 4),)},
        {"store": (LayerRun(4, 7),)},
    ],
)
def test_impossible_plans_raise(plan: dict[str, tuple[LayerRun, ...]]) -> None:
    with pytest.raises(ValueError, match="disjoint, non-empty and inside"):
        LayerPlan(6, **plan)


def test_period() -> None:
    """Step k, 2k, ... recompute; a REFRESH never reuses unless ``refresh_reuse`` says so."""
    for k in (1, 2, 3):
        strategy = PeriodicReuse(k, 1, 3)
        state = strategy.init(6)
        for index in range(7):
            plan = strategy.plan(Step(Phase.DENOISE, index, (0, 8)), state)
            assert bool(plan.reuse) == (index % k != 0)
            assert bool(plan.store) == (index % k == 0 and k > 1)
            refresh = strategy.plan(Step(Phase.REFRESH, index, (0, 32)), state)
            assert not refresh.reuse
    through = PeriodicReuse(2, 1, 3, refresh_reuse=True)
    assert through.plan(Step(Phase.REFRESH, 1, (0, 32)), 6).reuse
    assert not through.plan(Step(Phase.REFRESH, 1, (0, 32), first=True), 6).reuse


def test_period_must_be_positive() -> None:
    with pytest.raises(UsageError, match="1 or more; got 0"):
        PeriodicReuse(0, 1, 3)
    assert not NoReuse().reuses


BLOCK = ForwardBatch((Window((0,), (0,), 16, (16,)),))


@pytest.mark.parametrize(
    ("target", "idle", "kv_only"),
    [("output", {2, 3}, {1}), ("residual", {2, 3}, set()), ("identity", {2, 3}, set())],
)
@torch.inference_mode()
def test_skipped_layers_do_not_run(target: Target, idle: set[int], kv_only: set[int]) -> None:
    """Ancestor defect 1: there the skipped layers ran all the same.

    A layer that does not run may hold anything: here its weights are no numbers. Ahead of an
    ``output`` run the last layer's attention and SwiGLU are dead work, so only its keys and values
    are computed.
    """
    model = random_model(0)
    network, ids = model.network, torch.zeros(16, dtype=torch.long)
    backend, run = model.backend(num_rows=1, capacity=16), (LayerRun(2, 4, target),)
    cache = backend.cache
    model.runner().forward(ids, backend, BLOCK, LayerPlan(6, reuse=run).whole)

    def runs(names: tuple[str, ...]) -> set[int]:
        """Layers whose weights of these names matter to what a reuse step gives and keeps."""
        found = set()
        for layer in network.stack:
            kept = {name: p.clone() for name, p in layer.named_parameters()}
            for name in names:
                layer.get_parameter(name).fill_(float("nan"))
            keys = cache.keys.clone()
            hidden = model.runner().forward(ids, backend, BLOCK, LayerPlan(6, reuse=run)).hidden
            if hidden.isnan().any() or cache.keys.isnan().any():
                found.add(layer.index)
            cache.keys.copy_(keys)
            cache.values.nan_to_num_()
            for name, parameter in layer.named_parameters():
                parameter.copy_(kept[name])
        return found

    everything = set(range(6))
    assert runs(("qkv.weight",)) == everything - idle
    assert runs(("o.weight", "gate_up.weight", "down.weight")) == everything - idle - kv_only


@torch.inference_mode()
def test_reuse_of_unchanged_input_is_exact() -> None:
    """Where nothing changed since it was stored, either target gives the computed result back."""
    model = random_model(0)
    runner, ids = model.runner(), torch.arange(3, 19)
    targets: tuple[Target, ...] = ("output", "residual")
    for target in targets:
        backend, run = model.backend(num_rows=1, capacity=16), (LayerRun(1, 4, target),)
        want = runner.forward(ids, backend, BLOCK, LayerPlan(6, store=run))
        got = runner.forward(ids, backend, BLOCK, LayerPlan(6, reuse=run))
        torch.testing.assert_close(got.hidden, want.hidden)


def test_k2_differs_between_output_and_residual() -> None:
    model = random_model(0)
    decoding = fdllm.Decoding(block_size=16, small_block_size=8, threshold=1.0, max_new_tokens=32)
    outs = {
        target: fdllm.generate(model, [[3, 4, 5]], decoding, PeriodicReuse(2, 1, 4, target))
        for target in ("output", "residual")
    }
    assert outs["output"][0].tokens != outs["residual"][0].tokens


@pytest.mark.parametrize("end", ["commit", "reset", "forget"])
@pytest.mark.parametrize("keep", [1, 2])
def test_what_a_block_stored_is_gone_with_it(end: str, keep: int) -> None:
    """A finished block, and a row that changes hands, leave nothing that a step could reuse."""
    model = random_model(0)
    cache = model.backend(num_rows=3, capacity=48).cache
    outputs = cache.outputs
    run = LayerRun(1, 4, "residual", keep=keep, extrapolate=float(keep == 2))
    rows, columns = (0, 1, 2), (range(16),) * 3
    for n in range(keep):
        outputs.note(run, rows, columns)
        outputs.write(run, rows, columns, torch.full((3, 16, 32), n + 1.0))
    cache.lengths[:] = [16, 16, 16]
    assert outputs.read(run, rows, columns).mean() == keep + (keep == 2)
    if end == "forget":
        outputs.forget(1)
    elif end == "reset":
        cache.reset(1)
    else:
        cache.commit(1, 16)
    assert cache.lengths == [16, {"forget": 16, "reset": 0, "commit": 32}[end], 16]
    with pytest.raises(NeverWrittenError, match=r"columns 3\.\.3 of row 1"):
        outputs.check(run, (1,), ([3],))
    outputs.check(run, (0, 2), (range(16),) * 2)
    assert outputs.read(run, (0, 2), (range(16),) * 2).mean() == keep + (keep == 2)


class LeftOut(PeriodicReuse):
    """Leaves the run out of every step, a block's first too."""

    def plan(self, step: Step, state: int) -> LayerPlan:  # noqa: ARG002
        return LayerPlan(state, reuse=(LayerRun(self.start, self.stop, "identity"),))


def test_layers_cannot_be_left_out_of_a_block_s_first_forward() -> None:
    """Their keys and values would never be written, and later forwards see them."""
    model, strategy = random_model(0), LeftOut(2, 2, 4)
    decoding = fdllm.Decoding(max_new_tokens=8, mask_id=MASK, stop_token=2)
    with pytest.raises(NeverWrittenError, match="left out of a block's first forward"):
        fdllm.generate(model, [[3, 4, 5]], decoding, strategy)
    estimators: tuple[Estimator, ...] = get_args(Estimator)
    for scoring in estimators:
        with pytest.raises(NeverWrittenError, match="every layer there"):
            fdllm.score(model, [([3, 4], [5])], scoring, decoding, strategy)


def test_an_identity_stores_nothing() -> None:
    run = (LayerRun(2, 4, "identity"),)
    with pytest.raises(ValueError, match="an identity stores nothing"):
        LayerPlan(6, store=run)
    with pytest.raises(ValueError, match="an identity stores nothing"):
        LayerPlan(6, partial=run)
    assert LayerPlan(6, reuse=run).whole == LayerPlan(6)
    [cost] = forward_costs(SPEC, 4, LayerPlan(6), LayerPlan(6, reuse=run), [Fed(8, 32, 4)])
    assert cost.stored_bytes == 0

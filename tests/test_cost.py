"""FLOPs and bytes by formula: what torch itself counts on the plain path, and never the batch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, fields, replace
from typing import Any, get_args

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fdllm
from fdllm.core.attention_plans import DriftPlan, SalientPlan
from fdllm.core.cache import RowCache
from fdllm.core.config import Estimator
from fdllm.core.cost import Cost, Fed, forward_costs
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.reuse import LayerPlan, LayerRun, PeriodicReuse, ReuseStrategy, Target
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.core.subsets import SUBSETS
from fdllm.core.subsets import subset_bounds as bounds
from fdllm.core.torch_backend import Accelerator, TorchBackend
from models import DECODING, MASK, PROMPTS, SPEC, random_model, random_prompt
from strategies import FEW, STRATEGIES

Results = Sequence[Generation | Score]
K2: dict[str, ReuseStrategy[Any]] = {
    f"k2-{subset}-{target}": PeriodicReuse(2, *bounds(subset, 6), target)
    for subset in SUBSETS
    for target in get_args(Target)
}
every_plan = pytest.mark.parametrize(
    "strategy", [*(STRATEGIES | K2).values()], ids=[*STRATEGIES, *K2]
)
every_estimator = pytest.mark.parametrize("scoring", get_args(Estimator))
MASKED = DECODING.model_copy(update={"mask_id": MASK})


class Watch(TorchDispatchMode, Accelerator):
    """Torch's own kernels, and the bytes that they read of weights, keys and values, and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights = self.kv = 0
        self.caches = set[int]()

    def backend(self, cache: RowCache) -> TorchBackend:
        self.caches |= {x.untyped_storage().data_ptr() for x in (cache.keys, cache.values)}
        return TorchBackend(cache)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        with self:
            parts = func.decompose(*args, **given)
        if parts is not NotImplemented:
            return parts
        out, name = func(*args, **given), func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            bias = args[0].nbytes if name == "addmm" and args[0].dim() == 1 else 0
            self.weights += args[-1].nbytes + bias
        elif name == "embedding":
            self.weights += out.nbytes
        elif name == "bmm":  # queries by keys, then shares by values
            self.kv += args[1].nbytes
        elif name in {"copy_", "index_put_"} or "out" in given:
            into = given.get("out", args[0])
            if into.untyped_storage().data_ptr() in self.caches:
                self.kv += (args[2] if name == "index_put_" else into).nbytes
        return out


def spent(results: Results) -> Cost:
    counts = [count for one in results for count in one.counts.by_phase.values()]
    return Cost(*(sum(getattr(count, f.name) for count in counts) for f in fields(Cost)))


def same_as_torch(run: Callable[[fdllm.Model], Results], *, copies: bool = False) -> None:
    """FLOPs and K/V to the last one; weights too, but for those of norms, which are folded.

    ``copies``: the caches are also written by what serves several answers, which is not counted.
    """
    model, watch = random_model(3), Watch()
    model.accelerator = watch
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, watch:
        cost = spent(run(model))
    assert cost.flops == counter.get_total_flops()
    assert cost.weight_bytes == pytest.approx(watch.weights, rel=0.01)
    assert copies or cost.kv_bytes == watch.kv


@every_plan
@pytest.mark.parametrize("use_block_cache", [True, False])
def test_a_text_costs_what_torch_counts(
    strategy: ReuseStrategy[Any], use_block_cache: bool
) -> None:
    decoding = DECODING.model_copy(update={"use_block_cache": use_block_cache})
    prompts = PROMPTS[1:4]
    same_as_torch(lambda model: fdllm.generate(model, prompts, decoding, strategy, batch_size=1))


@every_plan
@every_estimator
def test_a_score_costs_what_torch_counts(strategy: ReuseStrategy[Any], scoring: Estimator) -> None:
    """Inside a block, at its first column, across its end."""
    pairs = [(random_prompt(n, n), random_prompt(n, m)) for n, m in ((5, 4), (16, 2), (31, 3))]
    more: dict[str, Any] = {"batch_size": 1, "prefix_cache_gib": 0}
    same_as_torch(lambda model: fdllm.score(model, pairs, scoring, MASKED, strategy, **more))


@pytest.mark.parametrize("strategy", [*FEW, STRATEGIES["trim"]])
@every_estimator
def test_what_is_shared_is_paid_for_once(strategy: ReuseStrategy[Any], scoring: Estimator) -> None:
    """Answers that fork, behind a prompt of several chunks that two questions have in common."""
    common = random_prompt(1, 288)
    pairs = [
        (common + random_prompt(question, 5 + question), [7, answer])
        for question in range(2)
        for answer in range(3, 6)
    ]

    def run(model: fdllm.Model) -> Results:
        scores = fdllm.score(model, pairs, scoring, MASKED, strategy, batch_size=1)
        assert sum(one.counts.shared for one in scores) > 288
        return scores

    same_as_torch(run, copies=True)


@every_plan
def test_a_rows_cost_is_its_own_in_any_batch(strategy: ReuseStrategy[Any]) -> None:
    prompts = PROMPTS[1:6]
    pairs = [(prompt, random_prompt(i, 1 + i)) for i, prompt in enumerate(prompts)]

    def run(rows: int) -> list[Any]:
        texts = fdllm.generate(random_model(3), prompts, MASKED, strategy, batch_size=rows)
        options: dict[str, Any] = {"batch_size": rows, "prefix_cache_gib": 0}
        scores = fdllm.score(random_model(3), pairs, "denoise", MASKED, strategy, **options)
        return [one.counts for one in texts] + [one.counts for one in scores]

    assert run(3) == run(1)


RUN = LayerRun(2, 4)
PAIR = replace(RUN, keep=2)
FEEDS = SalientPlan(6, 1, 3, 0.9).runs
DRIFTS = DriftPlan(4, 0.9, (0,), (5,)).runs


@pytest.mark.parametrize(
    ("plan", "moved"),
    [
        (LayerPlan(6), 0),
        (LayerPlan(6, store=(RUN,)), 8),
        (LayerPlan(6, reuse=(RUN,)), 8),
        (LayerPlan(6, partial=(replace(RUN, columns=(0, 5)),)), 8 + 2),
        (LayerPlan(6, store=(PAIR,)), 8 * 3),  # the value before is kept: read, and written again
        (LayerPlan(6, reuse=(PAIR,)), 8),
        (LayerPlan(6, reuse=(replace(PAIR, extrapolate=0.5),)), 8 * 2),
        (LayerPlan(6, store=FEEDS), 2 * (8 + 8)),  # attention's output beside the feed-forward's
        (LayerPlan(6, partial=tuple(replace(run, columns=(0, 5)) for run in FEEDS)), 2 * (16 + 2)),
        (LayerPlan(6, store=DRIFTS), 2 * (8 + 8)),
        # the same columns go on: what is stored of the others is read once, behind the last
        (LayerPlan(6, partial=tuple(replace(run, columns=(0, 5)) for run in DRIFTS)), 2 * 4 + 8),
    ],
)
def test_what_reuse_keeps_is_moved(plan: LayerPlan, moved: int) -> None:
    [cost] = forward_costs(SPEC, 4, plan, plan, [Fed(8, 32, 4)])
    assert cost.stored_bytes == moved * SPEC.hidden_size * 4


def test_a_probe_keeps_its_residual_too() -> None:
    skip, store = LayerPlan(6, reuse=(RUN,)), LayerPlan(6, store=(RUN,))
    probe = ProbePlan(1, 0.5, calm=skip, otherwise=store)
    for plan, moved in ((skip, 8 + 8), (store, 8 + 8 + 8)):
        [cost] = forward_costs(SPEC, 4, probe, plan, [Fed(8, 32, 4)])
        assert cost.stored_bytes == moved * SPEC.hidden_size * 4


def test_what_is_compared_behind_attention_is_read() -> None:
    salient, drift = SalientPlan(6, 1, 3, 0.9), DriftPlan(6, 0.9, (0,), (5,))
    fed = LayerPlan(6, partial=tuple(replace(run, columns=(0, 5)) for run in FEEDS))
    two = drift.carried((0, 5), 2)
    for asked, plan, more in ((salient, fed, 2 * 8), (drift, two, 2)):
        costs = [forward_costs(SPEC, 4, one, plan, [Fed(8, 32, 4)])[0] for one in (plan, asked)]
        assert costs[1].stored_bytes - costs[0].stored_bytes == more * SPEC.hidden_size * 4
        assert costs[1].flops == costs[0].flops


def test_a_prefill_ahead_of_a_step_shares_its_weights_and_stores_nothing() -> None:
    plan = LayerPlan(6, store=(RUN,))
    ahead, step = forward_costs(SPEC, 4, plan, plan, [Fed(16, 16, 0, stores=False), Fed(8, 32, 4)])
    assert ahead.stored_bytes == 0
    assert ahead.weight_bytes == 16 * SPEC.hidden_size * 4  # rows of the embedding
    assert step.weight_bytes > SPEC.num_layers * SPEC.layer_parameters * 4


def test_bytes_go_by_the_type() -> None:
    plan = LayerPlan(6, store=(RUN,))
    [wide], [half] = (forward_costs(SPEC, n, plan, plan, [Fed(8, 32, 4)]) for n in (4, 2))
    assert wide == Cost(half.flops, *(2 * n for n in astuple(half)[1:]))


def test_a_whole_forward_reads_every_weight_once() -> None:
    plan = LayerPlan(6)
    [cost] = forward_costs(SPEC, 1, plan, plan, [Fed(SPEC.vocab_size, 64, 1)])
    assert cost.weight_bytes == SPEC.num_parameters

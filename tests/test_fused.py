"""The compiled kernels against torch's, and what happens where they cannot be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import fdllm
from fdllm.core.cache import RowCache, Window
from fdllm.core.layerplan import LayerPlan, LayerRun
from fdllm.core.model_spec import ModelSpec
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.unmask import choose_greedy
from fdllm.errors import UsageError
from fdllm.fast.accelerators import compiled_on
from fdllm.fast.kernels import FusedBuffers, FusedPlace, load_fused
from models import DECODING, PROMPTS, random_model, random_prompt, wide_network
from strategies import STRATEGIES, every_strategy

CPU = torch.device("cpu")
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# bfloat16 has 8 bits: where float32's last bit differs, a rounding may fall on the other side.
NEAR = {torch.float32: (1e-5, 1e-6), torch.bfloat16: (1e-2, 1e-3)}
FORWARD_NEAR = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (0.1, 0.1)}


def assert_near(got: torch.Tensor, want: torch.Tensor, near: tuple[float, float]) -> None:
    torch.testing.assert_close(got, want, rtol=near[0], atol=near[1], equal_nan=True)


def spec_of(hidden: int = 96, inner: int = 250) -> ModelSpec:
    return ModelSpec(50, hidden, 2, 4, 2, inner)


# --- each kernel ----------------------------------------------------------------------------------


@TYPES
@pytest.mark.parametrize("columns", [1, 8, 31])
def test_norm(dtype: torch.dtype, columns: int) -> None:
    spec = spec_of()
    x = (torch.randn(columns, spec.hidden_size) * torch.logspace(-3, 3, columns)[:, None]).to(dtype)
    scale = torch.rand(spec.hidden_size).to(dtype) + 0.5
    buffers = FusedBuffers(load_fused(dtype), spec, rows=1, width=columns, like=x)
    root = spec.hidden_size**0.5 if dtype == torch.float32 else 1.0
    want = scale * F.rms_norm(x.float(), x.shape[-1:], None, spec.rms_norm_eps).to(dtype)
    assert_near(buffers.norm(x, scale) * root, want, NEAR[dtype])
    bare = F.rms_norm(x.float(), x.shape[-1:], None, spec.rms_norm_eps).to(dtype)
    assert_near(buffers.norm(x, None) * root, bare, NEAR[dtype])


@TYPES
def test_gate(dtype: torch.dtype) -> None:
    spec = spec_of()
    both = (torch.randn(9, 2 * spec.intermediate_size) * 20).to(dtype)
    both[0, :8] = torch.tensor([0.0, -0.0, 88.0, -88.0, 1e4, -1e4, 1e-30, -1e-30])
    gate, up = both.chunk(2, -1)
    made = FusedBuffers(load_fused(dtype), spec, rows=3, width=3, like=both).gate(both)
    assert_near(made, F.silu(gate) * up, NEAR[dtype])


@TYPES
def test_choice(dtype: torch.dtype) -> None:
    fused = load_fused(dtype)
    logits = (torch.randn(40, 77) * torch.logspace(-2, 2, 40)[:, None]).to(dtype)
    logits[3] = 1.0  # all equal: the first of them
    logits[4, 12] = logits[4, 60] = 500.0
    logits[5, 7] = 1000.0  # the barred one is by far the most probable
    logits[6, ::2] = torch.finfo(dtype).min
    for barred in (0, 7, 76):
        tokens, confidence = fused.choose(logits, barred)
        want, sure = choose_greedy(logits.clone(), barred)
        assert tokens == want.tolist()
        assert_near(torch.tensor(confidence), sure, (1e-5, 1e-30))


@TYPES
def test_choice_tells_of_a_logit_that_is_not_finite(dtype: torch.dtype) -> None:
    """Wherever it stands, behind the best token or in the barred one's place; of no other row."""
    fused, barred = load_fused(dtype), 5
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(3, 20, generator=generator).to(dtype)
        want, sure = choose_greedy(logits.clone(), barred)
        odd = float(("nan", "inf", "-inf")[seed % 3])
        logits[1, int(torch.randint(20, (), generator=generator))] = odd
        logits[2, barred] = odd
        for tokens, confidence in (
            fused.choose(logits, barred),
            [part.tolist() for part in choose_greedy(logits.clone(), barred)],
        ):
            assert tokens[0] == want[0]
            assert confidence[0] == pytest.approx(float(sure[0]), rel=1e-5)
            assert confidence[1] != confidence[1]
            assert confidence[2] != confidence[2]


# --- whole forwards -------------------------------------------------------------------------------

WINDOWS = {
    "a row": Window((1,), (16,), 8, (32,)),
    "side by side": Window((0, 1), (16, 16), 8, (32, 32)),
    "ragged": Window((0, 1, 2), (16, 3, 40), 8, (32, 20, 60)),
    "apart": Window((2, 0), (16, 16), 16, (32, 32)),
    "a prompt": Window((1,), (0,), 48, (48,), causal_block=16),
    "prompts behind others": Window((2, 0), (16, 16), 48, (64, 64), causal_block=16),
    "prompts of odd blocks": Window((0, 1), (3, 3), 9, (12, 12), causal_block=3),
}


def caches(model: fdllm.Model, dtype: torch.dtype) -> list[RowCache]:
    """Without compiled kernels and with them, and the same in both."""
    like = model.network.embedding.weight
    made = [
        RowCache(model.spec, num_rows=3, capacity=64, block_size=16, like=like, fused=fused)
        for fused in (None, load_fused(dtype))
    ]
    for cache in made:
        torch.manual_seed(7)
        cache.keys.normal_()
        cache.values.normal_()
    return made


@TYPES
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@torch.inference_mode()
def test_forwards_are_the_same(window: Window, dtype: torch.dtype) -> None:
    network = wide_network(dtype)
    model = fdllm.Model(network, network.spec, None, "wide", CPU, dtype)
    network.freeze()
    stepper = network.prepare()
    ids = torch.arange(3, 3 + len(window.rows) * window.width) % 290
    plan, starts = LayerPlan(model.n_layers), [0] * len(window.rows)
    for columns in (range(ids.numel()), range(3)):
        plain, fused = caches(model, dtype)
        done = [
            stepper.read(ids, cache, [window], plan, starts, columns=columns)
            for cache in (plain, fused)
        ]
        assert_near(done[1].hidden, done[0].hidden, FORWARD_NEAR[dtype])
        assert_near(fused.keys, plain.keys, FORWARD_NEAR[dtype])
        assert_near(fused.values, plain.values, FORWARD_NEAR[dtype])


@torch.inference_mode()
def test_a_run_computed_in_part_and_one_that_owes_keys_alone() -> None:
    model = random_model(2)
    stepper = model.network.prepare()
    window = Window((1,), (16,), 16, (32,))
    run = LayerRun(1, 4, "output", columns=(2, 3, 9))
    whole = LayerPlan(model.n_layers, store=(LayerRun(1, 4, "output"),))
    part = LayerPlan(model.n_layers, partial=(run,))
    plain, fused = caches(model, torch.float32)
    for plan, ids in ((whole, torch.arange(3, 19)), (part, torch.arange(13, 29))):
        done = [
            stepper.read(ids, cache, [window], plan, [0], columns=range(16))
            for cache in (plain, fused)
        ]
        assert_near(done[1].hidden, done[0].hidden, FORWARD_NEAR[torch.float32])
        assert_near(fused.keys, plain.keys, FORWARD_NEAR[torch.float32])


@TYPES
@torch.inference_mode()
def test_a_row_s_numbers_do_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Bit for bit, however many rows share a forward: a near tie would fall otherwise."""
    network = wide_network(dtype)
    network.freeze()
    network.use(compiled_on(CPU, dtype, asked=True))
    stepper, spec = network.prepare(), network.spec
    plan, told = LayerPlan(spec.num_layers), []
    for rows in (1, 40):
        cache = RowCache(
            spec,
            num_rows=rows,
            capacity=16,
            block_size=16,
            like=network.embedding.weight,
            fused=stepper.fused,
        )
        window = Window(tuple(range(rows)), (0,) * rows, 16, (16,) * rows)
        ids = torch.arange(16 * rows) % 40
        hidden = stepper.read(ids, cache, [window], plan, [0] * rows, columns=range(16)).hidden
        assert stepper.fused is not None
        logits = stepper.head(hidden).repeat(rows, 1)
        told.append((hidden, stepper.fused.choose(logits, 1)[1][:16]))
    assert torch.equal(told[0][0], told[1][0])
    assert told[0][1] == told[1][1]


@pytest.mark.parametrize("batch_size", [1, 3])
@every_strategy
def test_the_same_tokens(strategy: ReuseStrategy[Any], batch_size: int) -> None:
    model = random_model(3)
    done = []
    for asked, said in ((False, "no"), (True, "C kernels")):
        assert model.compile(asked=asked) == said
        assert (model.network.prepare().fused is not None) == asked
        done.append(fdllm.generate(model, PROMPTS, DECODING, strategy, batch_size=batch_size))
    assert [one.tokens for one in done[0]] == [one.tokens for one in done[1]]
    assert [one.counts for one in done[0]] == [one.counts for one in done[1]]


def test_the_same_scores() -> None:
    model = random_model(2)
    model.network.freeze()
    pairs = [(random_prompt(n, n), random_prompt(n + 9, 3)) for n in (5, 20, 33, 47)]
    decoding = fdllm.Decoding(block_size=16, small_block_size=4, mask_id=46, scoring_steps=4)
    done = []
    for asked in (False, True):
        model.compile(asked=asked)
        done.append(fdllm.score(model, pairs, "denoise", decoding, STRATEGIES["k2-output"]))
    for a, b in zip(*done, strict=True):
        assert a.loglikelihood == pytest.approx(b.loglikelihood, rel=1e-5)


@TYPES
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    spec = ModelSpec(50, 320, 2, 10, 2, 1250)
    x = torch.randn(5 * 33, spec.hidden_size).to(dtype)
    both = torch.randn(5 * 33, 2 * spec.intermediate_size).to(dtype)
    heads = torch.randn(5 * 33, 14 * 32).to(dtype)
    buffers = FusedBuffers(load_fused(dtype), spec, rows=5, width=33, like=x)
    kv = (torch.randn(2, 5, 2, 200, 32).to(dtype), torch.randn(2, 5, 2, 200, 32).to(dtype))
    place = FusedPlace(
        buffers,
        kv,
        factors=torch.polar(torch.ones(33, 1, 16), torch.randn(33, 1, 16)),
        slots=range(5),
        positions=[range(n, n + 33) for n in (0, 7, 60, 90, 160)],
        extents=[33, 40, 101, 150, 200],
    )
    made, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        parts = [buffers.norm(x, None), buffers.gate(both), place.mix(1, heads)]
        made.append([part.clone() for part in parts])
    torch.set_num_threads(before)
    for parts in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(parts, made[0], strict=True))


def test_rows_that_are_not_one_behind_the_other_are_refused() -> None:
    spec = spec_of()
    buffers = FusedBuffers(load_fused(torch.float32), spec, rows=4, width=1, like=torch.empty(0))
    with pytest.raises(ValueError, match="not strides"):
        buffers.norm(torch.randn(spec.hidden_size, 4).t(), None)


def test_a_type_without_kernels() -> None:
    assert str(compiled_on(CPU, torch.float16)) == "no"
    with pytest.raises(UsageError, match="for float32 and bfloat16, not for torch.float16"):
        compiled_on(CPU, torch.float16, asked=True)
    with pytest.raises(UsageError, match="for a CPU or CUDA, and the model is on 'meta'"):
        compiled_on(torch.device("meta"), torch.float32, asked=True)


def test_small_numbers_stay_on() -> None:
    load_fused(torch.float32)
    tiny = torch.tensor([1e-40])
    assert (tiny * 0.5).item() > 0.0


def test_a_profiler_sees_each_function_by_its_name_and_changes_nothing() -> None:
    seen: list[str] = []

    @contextmanager
    def mark(name: str) -> Iterator[None]:
        seen.append(f"{name} begins")
        yield
        seen.append(f"{name} ends")

    fused = load_fused(torch.float32)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert fused.marked(mark).choose(logits, 3) == fused.choose(logits, 3)
    assert seen == ["kernels::choose begins", "kernels::choose ends"]

"""The compiled kernels against torch's, and what happens where they cannot be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import fdllm
from fdllm.core.attention import AttentionBackend, Norm
from fdllm.core.cache import RowCache
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.model_spec import ModelSpec
from fdllm.core.reuse import LayerPlan, LayerRun, ReuseStrategy
from fdllm.core.torch_backend import TorchBackend
from fdllm.core.unmask import choose_greedy
from fdllm.errors import UsageError
from fdllm.fast.accelerators import accelerator_on
from fdllm.fast.kernels import CpuKernelBackend, load_kernels
from models import DECODING, PROMPTS, model_of, random_model, random_prompt, wide_network
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


def backend_of(
    spec: ModelSpec, like: torch.Tensor, columns: int, rows: int = 1
) -> CpuKernelBackend:
    """Ready for so many columns."""
    cache = RowCache(spec, num_rows=rows, capacity=200, block_size=16, like=like)
    backend = CpuKernelBackend(cache, load_kernels(like.dtype))
    backend.resize(columns)
    return backend


def plain(x: torch.Tensor) -> torch.Tensor:
    raise AssertionError(f"torch's norm of {x.shape}")


# --- each kernel ----------------------------------------------------------------------------------


@TYPES
@pytest.mark.parametrize("columns", [1, 8, 31])
def test_norm(dtype: torch.dtype, columns: int) -> None:
    spec = spec_of()
    x = (torch.randn(columns, spec.hidden_size) * torch.logspace(-3, 3, columns)[:, None]).to(dtype)
    scale = torch.rand(spec.hidden_size).to(dtype) + 0.5
    backend = backend_of(spec, x, columns)
    root = spec.hidden_size**0.5 if dtype == torch.float32 else 1.0
    want = scale * F.rms_norm(x.float(), x.shape[-1:], None, spec.rms_norm_eps).to(dtype)
    assert_near(backend.norm(x, Norm(plain, scale)) * root, want, NEAR[dtype])
    bare = F.rms_norm(x.float(), x.shape[-1:], None, spec.rms_norm_eps).to(dtype)
    assert_near(backend.norm(x, Norm(plain, None)) * root, bare, NEAR[dtype])


@TYPES
def test_gate(dtype: torch.dtype) -> None:
    spec = spec_of()
    both = (torch.randn(9, 2 * spec.intermediate_size) * 20).to(dtype)
    both[0, :8] = torch.tensor([0.0, -0.0, 88.0, -88.0, 1e4, -1e4, 1e-30, -1e-30])
    gate, up = both.chunk(2, -1)
    made = backend_of(spec, both, 9).gate(both)
    assert_near(made, F.silu(gate) * up, NEAR[dtype])


@TYPES
def test_choice(dtype: torch.dtype) -> None:
    kernels = load_kernels(dtype)
    logits = (torch.randn(40, 77) * torch.logspace(-2, 2, 40)[:, None]).to(dtype)
    logits[3] = 1.0  # all equal: the first of them
    logits[4, 12] = logits[4, 60] = 500.0
    logits[5, 7] = 1000.0  # the barred one is by far the most probable
    logits[6, ::2] = torch.finfo(dtype).min
    for barred in (0, 7, 76):
        tokens, confidence = kernels.choose(logits, barred)
        want, sure = choose_greedy(logits.clone(), barred)
        assert tokens == want.tolist()
        assert_near(torch.tensor(confidence), sure, (1e-5, 1e-30))


@TYPES
def test_choice_tells_of_a_logit_that_is_not_finite(dtype: torch.dtype) -> None:
    """Wherever it stands, behind the best token or in the barred one's place; of no other row."""
    kernels, barred = load_kernels(dtype), 5
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(3, 20, generator=generator).to(dtype)
        want, sure = choose_greedy(logits.clone(), barred)
        odd = float(("nan", "inf", "-inf")[seed % 3])
        logits[1, int(torch.randint(20, (), generator=generator))] = odd
        logits[2, barred] = odd
        for tokens, confidence in (
            kernels.choose(logits, barred),
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


def backends(model: fdllm.Model) -> list[AttentionBackend[Any]]:
    """Torch's and that of the kernels, over caches that hold the same."""
    made = []
    for asked in (False, True):
        model.compile(asked=asked)
        backend = model.backend(num_rows=3, capacity=64, block_size=16)
        torch.manual_seed(7)
        backend.cache.keys.normal_()
        backend.cache.values.normal_()
        made.append(backend)
    assert [type(backend) for backend in made] == [TorchBackend, CpuKernelBackend]
    return made


def assert_same_caches(
    made: list[AttentionBackend[Any]], near: tuple[float, float] = FORWARD_NEAR[torch.float32]
) -> None:
    plain, compiled = (backend.cache for backend in made)
    assert_near(compiled.keys, plain.keys, near)
    assert_near(compiled.values, plain.values, near)


@TYPES
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@torch.inference_mode()
def test_forwards_are_the_same(window: Window, dtype: torch.dtype) -> None:
    model = model_of(wide_network(dtype))
    model.freeze()
    runner, batch = model.runner(), ForwardBatch((window,))
    ids = torch.arange(3, 3 + window.num_columns) % 290
    plan = LayerPlan(model.n_layers)
    for columns in (range(ids.numel()), range(3)):
        made = backends(model)
        done = [runner.forward(ids, backend, batch, plan, columns) for backend in made]
        assert_near(done[1].hidden, done[0].hidden, FORWARD_NEAR[dtype])
        assert_same_caches(made, FORWARD_NEAR[dtype])


@torch.inference_mode()
def test_windows_of_several_widths_share_a_forward() -> None:
    """Each as it is alone; a window sees what those ahead of it write."""
    model = random_model(2)
    runner, plan = model.runner(), LayerPlan(model.n_layers)
    prompt, tail = Window((1,), (0,), 32, (32,), causal_block=16), Window((1,), (32,), 16, (48,))
    other = Window((0, 2), (16, 3), 16, (32, 20))
    ids = torch.arange(3, 3 + 32 + 16 + 32) % 40
    for together, apart in zip(backends(model), backends(model), strict=True):
        done = runner.forward(ids, together, ForwardBatch((prompt, tail, other)), plan)
        parts = [
            runner.forward(part, apart, ForwardBatch((window,)), plan).hidden.clone()
            for window, part in zip((prompt, tail, other), ids.split((32, 16, 32)), strict=True)
        ]
        assert_near(done.hidden, torch.cat(parts), FORWARD_NEAR[torch.float32])
        assert_near(together.cache.keys, apart.cache.keys, FORWARD_NEAR[torch.float32])


@TYPES
@torch.inference_mode()
def test_a_draft_of_a_whole_block_is_drawn_back(dtype: torch.dtype) -> None:
    """Whatever stood there, of rows side by side and apart; and of no other row."""
    model = model_of(wide_network(dtype))
    runner, plan, ids = model.runner(), LayerPlan(model.n_layers), torch.arange(3, 43)
    first = Window((2, 0), (20, 36), 4, (32, 48), first_columns=(4, 4))
    second = Window((0,), (32,), 16, (48,), draft=1)
    third = Window((2, 0), (16, 32), 8, (32, 48), draft=2)
    last = Window((2, 0), (16, 32), 16, (32, 48), draft=3)
    for drafted, alone in zip(backends(model), backends(model), strict=True):
        drafted.cache.lengths = [32, 0, 16]
        runner.forward(ids[:8], alone, ForwardBatch((first,)), plan)
        batch = ForwardBatch((first, second, third, last))
        runner.forward(torch.arange(3, 75) % 40, drafted, batch, plan)
        assert not torch.equal(drafted.cache.keys, alone.cache.keys)
        drafted.cache.draw_back(0, 1)
        drafted.cache.draw_back(2, 3)
        own = (slice(None), 2, slice(None), slice(16, 24))  # the third's own columns
        for got, want in (
            (drafted.cache.keys, alone.cache.keys),
            (drafted.cache.values, alone.cache.values),
        ):
            got[own] = want[own]
            assert_near(got, want, FORWARD_NEAR[dtype])


@torch.inference_mode()
def test_a_run_computed_in_part_and_one_that_owes_keys_alone() -> None:
    model = random_model(2)
    runner, batch = model.runner(), ForwardBatch((Window((1,), (16,), 16, (32,)),))
    run = LayerRun(1, 4, "output", columns=(2, 3, 9))
    whole = LayerPlan(model.n_layers, store=(LayerRun(1, 4, "output"),))
    part = LayerPlan(model.n_layers, partial=(run,))
    made = backends(model)
    for plan, ids in ((whole, torch.arange(3, 19)), (part, torch.arange(13, 29))):
        done = [runner.forward(ids, backend, batch, plan) for backend in made]
        assert_near(done[1].hidden, done[0].hidden, FORWARD_NEAR[torch.float32])
        assert_same_caches(made)


@TYPES
@torch.inference_mode()
def test_a_row_s_numbers_do_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Bit for bit, however many rows share a forward: a near tie would fall otherwise."""
    model = model_of(wide_network(dtype))
    model.freeze()
    model.compile(asked=True)
    runner, plan, told = model.runner(), LayerPlan(model.n_layers), []
    for rows in (1, 40):
        backend = model.backend(num_rows=rows, capacity=16, block_size=16)
        window = Window(tuple(range(rows)), (0,) * rows, 16, (16,) * rows)
        ids = torch.arange(16 * rows) % 40
        hidden = runner.forward(ids, backend, ForwardBatch((window,)), plan, range(16)).hidden
        logits = runner.head(hidden).repeat(rows, 1)
        told.append((hidden, backend.choose(logits, 1)[1][:16]))
    assert torch.equal(told[0][0], told[1][0])
    assert told[0][1] == told[1][1]


@pytest.mark.parametrize("batch_size", [1, 3])
@every_strategy
def test_the_same_tokens(strategy: ReuseStrategy[Any], batch_size: int) -> None:
    model = random_model(3)
    done = []
    for asked, said in ((False, "no"), (True, "C kernels")):
        assert model.compile(asked=asked) == said
        done.append(fdllm.generate(model, PROMPTS, DECODING, strategy, batch_size=batch_size))
    assert [one.tokens for one in done[0]] == [one.tokens for one in done[1]]
    assert [one.counts for one in done[0]] == [one.counts for one in done[1]]


def test_the_same_scores() -> None:
    model = random_model(2)
    model.freeze()
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
    backend = backend_of(spec, x, 5 * 33, rows=5)
    backend.cache.keys.normal_()
    backend.cache.values.normal_()
    starts, extents = (0, 7, 60, 90, 160), (33, 40, 101, 150, 200)
    backend.prepare(ForwardBatch((Window((0, 1, 2, 3, 4), starts, 33, extents),)))
    made, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        norm = backend.norm(x, Norm(plain, None))
        parts = [norm, backend.gate(both), backend.attend(1, heads)]
        made.append([part.clone() for part in parts])
    torch.set_num_threads(before)
    for parts in made[1:]:
        assert all(torch.equal(one, other) for one, other in zip(parts, made[0], strict=True))


def test_rows_that_are_not_one_behind_the_other_are_refused() -> None:
    spec = spec_of()
    backend = backend_of(spec, torch.empty(0), 4)
    with pytest.raises(ValueError, match="not strides"):
        backend.norm(torch.randn(spec.hidden_size, 4).t(), Norm(plain, None))


def test_kernels_of_another_type_are_refused() -> None:
    spec = spec_of()
    cache = RowCache(spec, num_rows=1, capacity=16, block_size=16, like=torch.empty(0))
    with pytest.raises(ValueError, match=r"kernels of torch.bfloat16 on a CPU cannot read torch.f"):
        load_kernels(torch.bfloat16).backend(cache)


def test_a_type_without_kernels() -> None:
    assert accelerator_on(CPU, torch.float16).name == "no"
    with pytest.raises(UsageError, match="for float32 and bfloat16, not for float16"):
        accelerator_on(CPU, torch.float16, asked=True)
    with pytest.raises(UsageError, match="for a CPU or CUDA, and the model is on 'meta'"):
        accelerator_on(torch.device("meta"), torch.float32, asked=True)


def test_small_numbers_stay_on() -> None:
    load_kernels(torch.float32)
    tiny = torch.tensor([1e-40])
    assert (tiny * 0.5).item() > 0.0


def test_a_profiler_sees_each_function_by_its_name_and_changes_nothing() -> None:
    seen: list[str] = []

    @contextmanager
    def mark(name: str) -> Iterator[None]:
        seen.append(f"{name} begins")
        yield
        seen.append(f"{name} ends")

    kernels = load_kernels(torch.float32)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert kernels.marked(mark).choose(logits, 3) == kernels.choose(logits, 3)
    assert seen == ["kernels::choose begins", "kernels::choose ends"]

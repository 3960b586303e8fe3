"""What the bench measures is what it says: forwards, floors, formulas. No time is asserted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fdllm.core.cache import RowCache
from fdllm.core.network import Network
from fdllm.core.sampler import GenerationRequest
from fdllm.core.schedule import Phase
from fdllm.errors import FdllmError
from fdllm.selftest.subjects import SUB_BLOCK
from fdllm_bench.batch import bench_batch, compare, full_batches
from fdllm_bench.command import BenchCommand
from fdllm_bench.floor import ForwardShape, Limits
from fdllm_bench.growth import fit
from fdllm_bench.loads import Load, forwards_of, generate
from fdllm_bench.memory import cache_bytes
from fdllm_bench.models import SHAPES, BenchModel, check_room, with_floor
from fdllm_bench.reuse import bench_reuse, every_subset, ideal_speed_up, may_skip
from fdllm_bench.step import bench_step
from fdllm_bench.tables import Line, Section
from models import random_model as tiny_random
from models import random_prompt

QUICK = BenchCommand(
    repeats=2, prompt_blocks=1, new_tokens=16, requests=5, batch_size=2, max_blocks=2, stretch_ms=1
)
LAYERS = 6


@pytest.fixture(scope="module")
def bench() -> BenchModel:
    return with_floor("small", tiny_random(layers=LAYERS))


def load_of(length: int = 20, new: int = 30, count: int = 2) -> Load:
    return Load((GenerationRequest(tuple(random_prompt(1, length)), new),), count)


# --- the floor -----------------------------------------------------------------------------------


def floor_operators(bench: BenchModel, forward: ForwardShape) -> Counter[str]:
    work = bench.floor.prepare(forward)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    events = found.events()
    assert events is not None
    return Counter(event.name for event in events if event.cpu_parent is None)


@pytest.mark.parametrize("layers", [None, (0, 5)])
def test_the_floor_is_products_attention_and_head_alone(
    bench: BenchModel, layers: tuple[int, ...] | None
) -> None:
    operators = floor_operators(bench, ForwardShape(8, 48, 7, layers=layers))
    count = LAYERS if layers is None else len(layers)
    products = {"aten::linear", "mkldnn::_linear_pointwise"}
    assert operators["aten::scaled_dot_product_attention"] == count
    assert sum(operators[name] for name in products) == 4 * count + 1
    assert set(operators) <= {*products, "aten::scaled_dot_product_attention"}


def test_what_reads_nothing_has_no_head(bench: BenchModel) -> None:
    operators = floor_operators(bench, ForwardShape(16, 16, 0))
    assert sum(operators.values()) == 5 * LAYERS - 4, "the last layer owes keys and values"


def test_what_is_not_read_ends_ahead_of_the_last_products(bench: BenchModel) -> None:
    whole, some = (bench.floor.cost(ForwardShape(16, 16, reads)) for reads in (16, 4))
    behind = 32 * 32 + 32 * 128 + 64 * 32
    assert whole.operations - some.operations == 2 * 12 * (behind + 48 * 32)
    none = bench.floor.cost(ForwardShape(16, 16, 0))
    attention = 2 * 16 * 16 * 4 * 8 * 2
    head = 2 * 4 * 48 * 32
    assert some.operations - none.operations == 2 * 4 * behind + attention + head


def test_cost_by_hand(bench: BenchModel) -> None:
    # 32 wide, 4 heads and 2 for keys and values of 8, 64 in the middle, vocabulary 48, float32.
    matrices = 32 * 64 + 32 * 32 + 32 * 128 + 64 * 32
    cost = bench.floor.cost(ForwardShape(8, 48, 7))
    assert cost.num_bytes == 4 * (LAYERS * (matrices + 2 * 48 * 2 * 8) + 48 * 32)
    attention = 2 * 8 * 48 * 4 * 8 * 2
    assert cost.operations == LAYERS * (2 * 8 * matrices + attention) + 2 * 7 * 48 * 32
    two = bench.floor.cost(ForwardShape(8, 48, 0, rows=2, layers=(1,)))
    assert two.num_bytes == 4 * (matrices + 2 * 2 * 48 * 2 * 8)
    assert two.operations == 2 * (2 * 8 * matrices + attention)


def test_the_limit_is_the_slower_of_reading_and_arithmetic(bench: BenchModel) -> None:
    cost = bench.floor.cost(ForwardShape(8, 48, 7))
    slow, fast = 1.0, 1e18
    assert Limits(slow, fast).seconds(cost) == cost.num_bytes
    assert Limits(slow, fast).bound(cost) == "reading"
    assert Limits(fast, slow).seconds(cost) == cost.operations
    assert Limits(fast, slow).bound(cost) == "arithmetic"


def test_freezing_leaves_the_floor_whole(bench: BenchModel) -> None:
    assert set(bench.floor.layouts) == {"qkv", "o", "gate_up", "down", "head"}
    bench.floor.prepare(ForwardShape(8, 48, 7))()


# --- generations ---------------------------------------------------------------------------------


def test_the_floor_goes_through_the_forwards_that_were_counted(bench: BenchModel) -> None:
    load = load_of()
    strategy = every_subset(LAYERS)[2].strategy(2, refresh_reuse=True)
    watched = forwards_of(bench, load, strategy)
    [row] = generate(bench, load, strategy)
    assert Counter(ask.phase for ask in watched.requests) == {
        phase: row.counts[phase].forwards for phase in Phase if row.counts[phase].forwards
    }
    assert sum(forward.width for forward in watched.shapes) == row.counts.tokens
    computed = sum(
        LAYERS if forward.layers is None else len(forward.layers) for forward in watched.shapes
    )
    assert computed == row.counts.computed
    assert row.counts.reused > 0


def test_unmasking_is_fixed(bench: BenchModel) -> None:
    [row] = generate(bench, load_of(length=16, new=64, count=3))
    assert set(row.steps) <= {1, 2, 3}
    assert len(row.tokens) == 64


def test_extents_are_what_a_query_sees(bench: BenchModel) -> None:
    assert bench.shape_of(bench.denoise(), 32) == ForwardShape(SUB_BLOCK, 48, 7)
    assert bench.shape_of(bench.refresh(), 32, rows=3) == ForwardShape(16, 48, 24, rows=3)


# --- reuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "fraction", "expected"),
    [(2, 1.0, 1.27), (3, 1.0, 1.40), (2, 0.69, 1.17), (3, 0.69, 1.25)],
)
def test_ideal_speed_up(k: int, fraction: float, expected: float) -> None:
    assert ideal_speed_up(12 / 28, k, fraction) == pytest.approx(expected, abs=0.005)


def test_a_blocks_first_step_and_its_commit_may_not_skip(bench: BenchModel) -> None:
    asks = forwards_of(bench, load_of(length=33, new=40)).requests
    may = may_skip(asks)
    first = [i for i, ask in enumerate(asks) if i == 0 or asks[i - 1].phase is Phase.COMMIT]
    for i, ask in enumerate(asks):
        steps = ask.phase in (Phase.REFRESH, Phase.DENOISE)
        behind_prompt = i > 0 and asks[i - 1].phase is Phase.PREFILL
        assert may[i] == (steps and i not in first and not behind_prompt)
    assert any(may)
    assert not all(may)


def test_reuse_measures_every_subset_and_target(bench: BenchModel) -> None:
    steps, whole = bench_reuse(bench, QUICK)
    cells = [f"{s} {t}" for s in ("first", "middle", "last") for t in ("output", "residual")]
    assert [line.label for line in steps.lines] == [
        f"{cell}, {name}" for cell in cells for name in ("k=1", "k=2", "k=3", "skip")
    ]
    assert [line.label for line in whole.lines] == [
        f"{cell}, k={k}" for cell in cells for k in (1, 2, 3)
    ]
    assert all(0 < float(str(line.extra["f"])) < 1 for line in whole.lines)
    check(steps, whole)


# --- batches -------------------------------------------------------------------------------------


def test_batching_gives_every_row_the_same_tokens(bench: BenchModel) -> None:
    [section] = bench_batch(bench, QUICK)
    assert "tokens identical in all 5 rows" in section.notes
    check(section)


def test_other_tokens_in_a_batch_are_a_fault(bench: BenchModel) -> None:
    with pytest.raises(FdllmError, match=r"rows \[1\] depend on how they are batched"):
        compare(bench, {"a": [[1], [2]], "b": [[1], [3]]})


def test_full_batches_hold_every_forward_once() -> None:
    forwards = (
        [ForwardShape(8, 64, 3)] * 5 + [ForwardShape(8, 96, 2)] + [ForwardShape(32, 64, 8)] * 2
    )
    batches = full_batches(forwards, 2)
    rows = Counter[tuple[int, int]]()
    for batch in batches:
        assert batch.rows <= 2
        assert batch.reads >= batch.rows * 2
        rows[batch.width, batch.extent] += batch.rows
    assert rows == {(8, 64): 5, (8, 96): 1, (32, 64): 2}
    assert len(batches) == 3 + 1 + 1


# --- figures -------------------------------------------------------------------------------------


def check(*sections: Section) -> None:
    """No figure stands alone: each has a floor and as many values as there were repeats."""
    for section in sections:
        assert section.lines
        for line in section.lines:
            repeats = len(line.measured)
            assert repeats >= QUICK.repeats
            assert {len(values) for values in line.ratios.values()} == {repeats}
            assert ("speed_up" in line.ratios) == (section.baseline is not None)


def test_steps_of_both_phases_and_a_generation(bench: BenchModel) -> None:
    steps, whole = bench_step(bench, QUICK)
    assert [line.label.split(",")[0] for line in steps.lines] == ["DENOISE", "REFRESH"]
    assert all("limit ms" in line.extra for line in steps.lines)
    check(steps, whole)


# --- formulas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name] is not None])
def test_weights_by_formula(name: str) -> None:
    spec = SHAPES[name]
    assert spec is not None
    with torch.device("meta"):
        network = Network(spec)
    assert spec.num_parameters == sum(p.numel() for p in network.parameters())


def test_caches_by_formula() -> None:
    spec = tiny_random().spec
    like = torch.zeros((), dtype=torch.float32)
    cache = RowCache(spec, num_rows=3, capacity=64, block_size=16, like=like)
    expected = (cache.keys.numel() + cache.values.numel()) * 4
    assert cache_bytes(spec, 4, 50, 3) == expected


def test_the_large_shapes_are_the_published_ones() -> None:
    spec = SHAPES["7B"]
    assert spec is not None
    assert (spec.num_layers, spec.hidden_size, spec.intermediate_size) == (28, 3584, 18944)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (28, 4, 128)
    assert spec.vocab_size == 152064
    assert 2 * spec.num_parameters == pytest.approx(15.2e9, rel=0.01)


def test_what_does_not_fit_is_refused_before_it_is_made() -> None:
    spec = SHAPES["7B"]
    assert spec is not None
    huge = replace(spec, num_layers=28_000)
    with pytest.raises(FdllmError, match="huge in float32 needs about .* choose a smaller --shape"):
        check_room("huge", huge, torch.device("cpu"), torch.float32)


def test_a_fit_finds_what_made_the_numbers() -> None:
    at = [64.0, 128.0, 512.0, 4096.0]
    assert fit(at, [3 + 0.5 * n for n in at], ("1", "n")) == pytest.approx([3, 0.5])
    squares = [1 + 0.1 * n + 0.01 * n * n for n in at]
    assert fit(at, squares, ("1", "n", "n²")) == pytest.approx([1, 0.1, 0.01])
    assert fit([1.0, 2.0, 4.0], [5.0, 4.0, 3.5], ("1/n", "1")) == pytest.approx([2, 3])


def test_ratios_are_taken_repeat_by_repeat() -> None:
    line = Line("x", (2.0, 8.0, 3.0), (1.0, 4.0, 3.0), (4.0, 4.0, 9.0), {"y": (1.0, 3.0)})
    assert line.ratios == {"over_floor": (2.0, 2.0, 1.0), "speed_up": (2.0, 0.5, 3.0)}
    told = line.as_dict()
    assert told["over_floor"] == {"median": 2.0, "low": 1.0, "high": 2.0, "values": [2.0, 2.0, 1.0]}
    assert told["extra"] == {"y": {"median": 2.0, "low": 1.0, "high": 3.0, "values": [1.0, 3.0]}}

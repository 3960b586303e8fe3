"""What the bench measures is what it says: forwards, floors, formulas. No time is asserted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fdllm.bench.asks import SUB_BLOCK, decoding_of, denoise, extents, refresh, tokens
from fdllm.bench.batching import bench_batch, compare, full_batches
from fdllm.bench.dtypes import bench_dtypes
from fdllm.bench.floor import Forward
from fdllm.bench.generation import FixedUnmask, Load, forwards_of, generate, plain_generate
from fdllm.bench.lanes import TURNS, Lane, Scene, measure
from fdllm.bench.limits import Limits
from fdllm.bench.options import Options
from fdllm.bench.results import Section
from fdllm.bench.reuse import bench_reuse, cells_of, ideal_speed_up, may_skip
from fdllm.bench.shapes import Subject, make_subject, subject_of
from fdllm.bench.step import bench_step
from fdllm.bench.timing import Spread
from fdllm.core.cache import RowCache, Window
from fdllm.core.model_runner import Forwarded, Stepper
from fdllm.core.sampler import GenerationRequest, generate_requests
from fdllm.core.schedule import Phase
from fdllm.errors import FdllmError, UsageError
from models import random_model as tiny_random
from models import random_prompt

QUICK = Options(
    repeats=2, prompt_blocks=1, new_tokens=16, requests=5, batch_size=2, max_blocks=2, stretch_ms=1
)
LAYERS = 6


@pytest.fixture(scope="module")
def subject() -> Subject:
    return subject_of("small", tiny_random(layers=LAYERS))


def load_of(length: int = 20, new: int = 30, count: int = 2) -> Load:
    return Load((GenerationRequest(tuple(random_prompt(1, length)), new),), FixedUnmask(count))


# --- lanes ---------------------------------------------------------------------------------------


def test_every_forward_of_a_lane_is_made_by_the_engine(subject: Subject) -> None:
    done_work: list[int] = []
    lanes = [
        Lane("two", (denoise(subject), denoise(subject))),
        Lane("refresh", (refresh(subject),)),
        Lane("work", work=lambda: done_work.append(1)),
    ]
    scene = Scene(tokens(subject, 32), (refresh(subject),))
    done = measure(
        subject.model, decoding_of(subject), scene, lanes, Options(repeats=3, stretch_ms=2)
    )

    def passes(name: str) -> int:
        return done.warm_ups + 3 * TURNS * done.passes[name]

    assert done.counts["denoise"].forwards == 2 * passes("two")
    assert done.counts["refresh"].forwards == passes("refresh") + 1
    assert len(done_work) == passes("work")
    assert done.counts["prefill"].tokens == 32
    assert {name: len(spread.values) for name, spread in done.seconds.items()} == {
        "two": 3,
        "refresh": 3,
        "work": 3,
    }
    assert all(value > 0 for spread in done.seconds.values() for value in spread.values)


def test_rows_of_a_batch_share_each_forward(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    network = type(subject.model.network.prepare())
    read = network.read

    def spy(
        self: Stepper, ids: Tensor, cache: RowCache, windows: list[Window], *rest: Any, **more: Any
    ) -> Forwarded:
        rows.extend(len(window.rows) for window in windows)
        return read(self, ids, cache, windows, *rest, **more)

    monkeypatch.setattr(network, "read", spy)
    scene = Scene(tokens(subject, 16), (refresh(subject),), batch_size=3)
    lanes = [Lane("step", (denoise(subject),))]
    done = measure(
        subject.model, decoding_of(subject), scene, lanes, Options(repeats=1, stretch_ms=1)
    )
    assert set(rows) == {3}
    assert len(rows) == done.counts.forwards


def test_no_repeats_are_refused() -> None:
    with pytest.raises(UsageError, match="--repeats must be a whole number, 1 or more; got 0"):
        Options(repeats=0)


# --- the floor -----------------------------------------------------------------------------------


def floor_operators(subject: Subject, forward: Forward) -> Counter[str]:
    work = subject.floor.prepare(forward)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    events = found.events()
    assert events is not None
    return Counter(event.name for event in events if event.cpu_parent is None)


@pytest.mark.parametrize("layers", [None, (0, 5)])
def test_the_floor_is_products_attention_and_head_alone(
    subject: Subject, layers: tuple[int, ...] | None
) -> None:
    operators = floor_operators(subject, Forward(8, 48, 7, layers=layers))
    count = LAYERS if layers is None else len(layers)
    products = {"aten::linear", "mkldnn::_linear_pointwise"}
    assert operators["aten::scaled_dot_product_attention"] == count
    assert sum(operators[name] for name in products) == 4 * count + 1
    assert set(operators) <= {*products, "aten::scaled_dot_product_attention"}


def test_what_reads_nothing_has_no_head(subject: Subject) -> None:
    operators = floor_operators(subject, Forward(16, 16, 0))
    assert sum(operators.values()) == 5 * LAYERS - 4, "the last layer owes keys and values"


def test_what_is_not_read_ends_ahead_of_the_last_products(subject: Subject) -> None:
    whole, some = (subject.floor.cost(Forward(16, 16, reads)) for reads in (16, 4))
    behind = 32 * 32 + 32 * 128 + 64 * 32
    assert whole.operations - some.operations == 2 * 12 * (behind + 48 * 32)
    none = subject.floor.cost(Forward(16, 16, 0))
    attention = 2 * 16 * 16 * 4 * 8 * 2
    head = 2 * 4 * 48 * 32
    assert some.operations - none.operations == 2 * 4 * behind + attention + head


def test_cost_by_hand(subject: Subject) -> None:
    # 32 wide, 4 heads and 2 for keys and values of 8, 64 in the middle, vocabulary 48, float32.
    matrices = 32 * 64 + 32 * 32 + 32 * 128 + 64 * 32
    cost = subject.floor.cost(Forward(8, 48, 7))
    assert cost.num_bytes == 4 * (LAYERS * (matrices + 2 * 48 * 2 * 8) + 48 * 32)
    attention = 2 * 8 * 48 * 4 * 8 * 2
    assert cost.operations == LAYERS * (2 * 8 * matrices + attention) + 2 * 7 * 48 * 32
    two = subject.floor.cost(Forward(8, 48, 0, rows=2, layers=(1,)))
    assert two.num_bytes == 4 * (matrices + 2 * 2 * 48 * 2 * 8)
    assert two.operations == 2 * (2 * 8 * matrices + attention)


def test_the_limit_is_the_slower_of_reading_and_arithmetic(subject: Subject) -> None:
    cost = subject.floor.cost(Forward(8, 48, 7))
    slow, fast = Spread((1.0,)), Spread((1e18,))
    assert Limits(slow, fast).seconds(cost) == cost.num_bytes
    assert Limits(slow, fast).bound(cost) == "reading"
    assert Limits(fast, slow).seconds(cost) == cost.operations
    assert Limits(fast, slow).bound(cost) == "arithmetic"


def test_freezing_leaves_the_floor_whole(subject: Subject) -> None:
    assert set(subject.floor.layouts) == {"qkv", "o", "gate_up", "down", "head"}
    subject.floor.prepare(Forward(8, 48, 7))()


# --- generations ---------------------------------------------------------------------------------


def test_the_plain_sampler_is_the_sampler_without_a_block_cache(subject: Subject) -> None:
    for length, new in ((20, 30), (16, 40), (3, 5)):
        load = load_of(length, new)
        decoding = decoding_of(subject).model_copy(update={"use_block_cache": False})
        [expected] = generate_requests(subject.model, load.requests, decoding, unmask=load.unmask)
        assert plain_generate(subject, load.requests[0], load.unmask) == expected.tokens


def test_the_floor_goes_through_the_forwards_that_were_counted(subject: Subject) -> None:
    load = load_of()
    strategy = cells_of(LAYERS)[2].strategy(2, refresh_reuse=True)
    watched = forwards_of(subject, load, strategy)
    [row] = generate(subject, load, strategy)
    assert Counter(ask.phase for ask in watched.asks) == {
        phase: row.counts[phase].forwards for phase in Phase if row.counts[phase].forwards
    }
    assert sum(forward.width for forward in watched.seen) == row.counts.tokens
    computed = sum(
        LAYERS if forward.layers is None else len(forward.layers) for forward in watched.seen
    )
    assert computed == row.counts.computed
    assert row.counts.reused > 0


def test_unmasking_is_fixed(subject: Subject) -> None:
    [row] = generate(subject, load_of(length=16, new=64, count=3))
    assert set(row.steps) <= {1, 2, 3}
    assert len(row.tokens) == 64


def test_extents_are_what_a_query_sees(subject: Subject) -> None:
    assert extents(denoise(subject), 32, 16) == Forward(SUB_BLOCK, 48, 7)
    assert extents(refresh(subject), 32, 16, rows=3) == Forward(16, 48, 24, rows=3)


# --- reuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "fraction", "expected"),
    [(2, 1.0, 1.27), (3, 1.0, 1.40), (2, 0.69, 1.17), (3, 0.69, 1.25)],
)
def test_ideal_speed_up(k: int, fraction: float, expected: float) -> None:
    assert ideal_speed_up(12 / 28, k, fraction) == pytest.approx(expected, abs=0.005)


def test_a_blocks_first_step_and_its_commit_may_not_skip(subject: Subject) -> None:
    asks = forwards_of(subject, load_of(length=33, new=40)).asks
    may = may_skip(asks)
    first = [i for i, ask in enumerate(asks) if i == 0 or asks[i - 1].phase is Phase.COMMIT]
    for i, ask in enumerate(asks):
        steps = ask.phase in (Phase.REFRESH, Phase.DENOISE)
        behind_prompt = i > 0 and asks[i - 1].phase is Phase.PREFILL
        assert may[i] == (steps and i not in first and not behind_prompt)
    assert any(may)
    assert not all(may)


def test_reuse_measures_every_subset_and_target(subject: Subject) -> None:
    steps, whole, machinery = bench_reuse(subject, QUICK)
    cells = [f"{s} {t}" for s in ("first", "middle", "last") for t in ("output", "residual")]
    assert [line.label for line in steps.lines] == [
        f"{cell}, {name}" for cell in cells for name in ("k=1", "k=2", "k=3", "skip")
    ]
    assert [line.label for line in whole.lines] == [
        f"{cell}, k={k}" for cell in cells for k in (2, 3)
    ]
    assert len(machinery.lines) == 1
    assert all(0 < float(str(line.extra["f"])) < 1 for line in whole.lines)
    check(steps, whole, machinery)


# --- batches -------------------------------------------------------------------------------------


def test_batching_gives_every_row_the_same_tokens(subject: Subject) -> None:
    [section] = bench_batch(subject, QUICK)
    assert "tokens identical in all 5 rows" in section.notes
    check(section)


def test_other_tokens_in_a_batch_are_a_fault(subject: Subject) -> None:
    with pytest.raises(FdllmError, match=r"rows \[1\] depend on how they are batched"):
        compare(subject, {"a": [[1], [2]], "b": [[1], [3]]})


def test_full_batches_hold_every_forward_once() -> None:
    forwards = [Forward(8, 64, 3)] * 5 + [Forward(8, 96, 2)] + [Forward(32, 64, 8)] * 2
    batches = full_batches(forwards, 2)
    rows = Counter[tuple[int, int]]()
    for batch, count in batches.items():
        assert batch.rows <= 2
        assert batch.reads >= batch.rows * 2
        rows[batch.width, batch.extent] += batch.rows * count
    assert rows == {(8, 64): 5, (8, 96): 1, (32, 64): 2}
    assert sum(batches.values()) == 3 + 1 + 1


# --- figures -------------------------------------------------------------------------------------


def check(*sections: Section) -> None:
    """No figure stands alone: each has a floor and as many values as there were repeats."""
    for section in sections:
        assert section.lines
        for line in section.lines:
            repeats = len(line.measured.values)
            assert repeats >= QUICK.repeats
            assert len(line.over_floor.values) == repeats
            assert (line.baseline is None) == (section.baseline is None)
            assert line.speed_up is None or len(line.speed_up.values) == repeats


def test_steps_of_both_phases_and_a_generation(subject: Subject) -> None:
    steps, whole = bench_step(subject, QUICK)
    assert [line.label.split(",")[0] for line in steps.lines] == ["DENOISE", "REFRESH"]
    assert all("limit ms" in line.extra for line in steps.lines)
    assert whole.baseline == "the plain sampler (no caches, no batching)"
    check(steps, whole)


def test_types_stand_next_to_each_other() -> None:
    made = {dtype: make_subject("tiny", "cpu", dtype) for dtype in ("float32", "bfloat16")}
    [section] = bench_dtypes(made, QUICK)
    labels = [line.label for line in section.lines]
    assert [label.rsplit(", ", 1)[1] for label in labels] == ["float32", "bfloat16"] * 3
    check(section)

"""Which rows share a forward, and which stretches of layers a plan is: the rules, one by one."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.reuse import LayerPlan, LayerRun, PlanStep, plan_steps
from fdllm.core.row_task import NOTHING, ForwardRequest, Prediction, prefill
from fdllm.core.schedule import Phase, num_blocks, num_full_blocks
from fdllm.core.scheduler import Running, Scheduled, answers_of, forward_batch, next_batches

BLOCK = 4
WHOLE = LayerPlan(6)
RUN = LayerRun(2, 4)
REUSING = LayerPlan(6, reuse=(RUN,))
STORING = LayerPlan(6, store=(RUN,))


def row(
    slot: int,
    ask: ForwardRequest,
    *,
    waited: int = 0,
    node: int = 0,
    length: int = 0,
    then: ForwardRequest | None = None,
) -> Running[Any]:
    """A row in a slot that waits for a forward; ``then`` is what it asks for behind it."""
    told: list[Any] = []

    def steps() -> Generator[ForwardRequest | None, Any, None]:
        told.append((yield ask))
        yield then

    running: Any = steps()
    next(running)
    place: Any = SimpleNamespace(index=slot, node=node, length=length, told=told)
    return Running(slot, SimpleNamespace(), place, running, ask, waited=waited)  # type: ignore[arg-type]


def ids(count: int, first: int = 0) -> tuple[int, ...]:
    return tuple(range(first, first + count))


def denoise(width: int = 2, plan: Any = WHOLE) -> ForwardRequest:
    return ForwardRequest(Phase.DENOISE, ids(width), plan)


def filling(count: int, first: int = 0, **changes: Any) -> ForwardRequest:
    return ForwardRequest(Phase.PREFILL, ids(count, first), WHOLE, **changes)


def slots(groups: list[list[Scheduled[Any]]]) -> list[list[int]]:
    return [[part.running.row.index for part in group] for group in groups]


def grouped(*rows: Running[Any], pooled: bool = False) -> list[list[int]]:
    return slots(next_batches(rows, BLOCK, pooled=pooled))


# --- groups ---------------------------------------------------------------------------------------


def test_rows_of_one_width_and_plan_share_a_forward_in_the_order_of_slots() -> None:
    rows = [row(2, denoise()), row(0, denoise()), row(1, denoise())]
    assert grouped(*rows) == [[0, 1, 2]]
    assert grouped() == []


def test_the_group_that_most_rows_wait_for_goes_first() -> None:
    few, many = [row(0, denoise(1))], [row(i, denoise(2)) for i in (1, 2)]
    assert grouped(*few, *many) == [[1, 2]]
    other = [row(0, denoise(2, REUSING))]
    assert grouped(*other, *many) == [[1, 2]]


@pytest.mark.parametrize(("waited", "first"), [(0, [1, 2, 3]), (2, [0]), (3, [0])])
def test_waiting_counts_like_rows(waited: int, first: list[int]) -> None:
    one = row(0, denoise(1), waited=waited)
    many = [row(i, denoise(2)) for i in (1, 2, 3)]
    assert grouped(one, *many) == [first]
    late = [row(i, denoise(2), waited=2 * (i == 2)) for i in (1, 2, 3)]
    assert grouped(one, *late) == [[1, 2, 3]], "of a group the longest waiting counts"


def test_a_probe_has_a_forward_of_its_own() -> None:
    probe = ProbePlan(1, 0.5, REUSING, STORING)
    rows = [row(i, denoise(2, probe)) for i in range(3)]
    assert grouped(*rows) == [[0]]


def test_every_prefill_runs_now_and_one_group_beside() -> None:
    rows = [row(0, denoise()), row(1, filling(8)), row(2, filling(4, 9)), row(3, denoise())]
    assert grouped(*rows) == [[2, 1], [0, 3]]


def test_prefills_of_one_block_take_along_what_is_as_wide() -> None:
    refresh = ForwardRequest(Phase.REFRESH, ids(BLOCK), WHOLE)
    rows = [row(0, refresh), row(1, filling(4)), row(2, denoise(4, REUSING)), row(3, denoise(1))]
    assert grouped(*rows) == [[0, 1], [2]]
    assert grouped(rows[1], row(0, denoise(2))) == [[1], [0]]


@pytest.mark.parametrize(
    ("count", "read", "pooled", "waits"),
    [
        (8, (), True, True),
        (8, (7,), True, True),
        (4, (), True, True),
        (4, (3,), True, False),  # its logits are its own
        (8, (), False, False),
    ],
)
def test_of_equal_blocks_one_is_computed_and_the_pool_serves_the_rest(
    count: int, read: tuple[int, ...], *, pooled: bool, waits: bool
) -> None:
    alike = [row(i, filling(count, read=read)) for i in range(3)]
    other = [row(3, filling(count, 50, read=read)), row(4, filling(count, read=read), node=7)]
    found = grouped(*alike, *other, pooled=pooled)
    assert sorted(slot for group in found for slot in group) == (
        [0, 3, 4] if waits else [0, 1, 2, 3, 4]
    )


def test_long_prefills_are_cut_into_forwards_of_bounded_width() -> None:
    rows = [row(i, filling(8 * BLOCK, 100 * i)) for i in range(5)]
    assert grouped(*rows) == [[0, 1], [2, 3], [4]]  # 16 blocks, and one of a tail
    wide = [row(i, filling(17 * BLOCK, 100 * i)) for i in range(2)]
    assert grouped(*wide) == [[0], [1]]


# --- tails ----------------------------------------------------------------------------------------


def lazy(slot: int, then: ForwardRequest | None, count: int = 8) -> Running[Any]:
    return row(slot, filling(count, 50 * slot, lazy=True), then=then)


REFRESH = ForwardRequest(Phase.REFRESH, ids(BLOCK), STORING)


def test_what_follows_a_lazy_prefill_goes_into_the_same_forward() -> None:
    rows = [lazy(0, REFRESH), lazy(1, REFRESH, count=12)]
    (group,) = next_batches(rows, BLOCK, pooled=False)
    assert [(part.running.index, part.request.phase, part.ahead) for part in group] == [
        (0, Phase.PREFILL, 0),
        (1, Phase.PREFILL, 0),
        (0, Phase.REFRESH, 8),
        (1, Phase.REFRESH, 12),
    ]
    assert [one.row.told for one in rows] == [[NOTHING], [NOTHING]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "then",
    [
        ForwardRequest(Phase.DENOISE, ids(BLOCK), STORING),
        ForwardRequest(Phase.REFRESH, ids(BLOCK - 1), STORING),
        ForwardRequest(Phase.REFRESH, ids(BLOCK), REUSING),
        ForwardRequest(Phase.REFRESH, ids(BLOCK), LayerPlan(6, partial=(RUN,))),
        ForwardRequest(Phase.REFRESH, ids(BLOCK), ProbePlan(1, 0.5, REUSING, STORING)),
    ],
)
def test_only_a_whole_block_under_a_plan_that_computes_everything_does(
    then: ForwardRequest,
) -> None:
    one = lazy(0, then)
    (group,) = next_batches([one], BLOCK, pooled=False)
    assert [part.request.phase for part in group] == [Phase.PREFILL]
    assert one.tail is then
    answers = answers_of(group, [NOTHING])
    assert answers == {}, "the row has been told already; now it waits for what is left over"
    assert one.request is then
    assert [one.tail] == [None]


def test_tails_of_one_forward_have_one_plan() -> None:
    rows = [lazy(0, REFRESH), lazy(1, ForwardRequest(Phase.REFRESH, ids(BLOCK), WHOLE))]
    (group,) = next_batches(rows, BLOCK, pooled=False)
    assert [(part.running.index, part.ahead) for part in group] == [(0, 0), (1, 0), (0, 8)]


def test_a_row_is_told_what_came_of_its_last_ask() -> None:
    rows = [lazy(0, REFRESH), lazy(1, None)]
    (group,) = next_batches(rows, BLOCK, pooled=False)
    told = [Prediction((i,), (0.5,)) for i in range(3)]
    assert answers_of(group, told) == {0: told[2], 1: told[1]}
    assert rows[0].tail is None
    assert rows[0].request is REFRESH


# --- windows --------------------------------------------------------------------------------------


def test_rows_of_one_width_are_one_window() -> None:
    group = [
        Scheduled(
            row(1, ForwardRequest(Phase.DENOISE, ids(2), WHOLE, start=2), length=8), denoise()
        ),
        Scheduled(row(2, denoise(), length=4), denoise()),
    ]
    group[0] = Scheduled(group[0].running, group[0].running.request)
    assert forward_batch(group, BLOCK) == ForwardBatch(
        (Window((1, 2), (10, 4), 2, (12, 8), None, stores=True, first_columns=(2, 0)),)
    )


def test_prefills_of_several_blocks_see_their_own_and_earlier_ones() -> None:
    first, second = (row(i, filling(8, 50 * i), length=4 * i) for i in range(2))
    third = row(2, filling(4))
    group = [
        Scheduled(third, third.request),
        Scheduled(first, first.request),
        Scheduled(second, second.request),
    ]
    assert forward_batch(group, BLOCK) == ForwardBatch(
        (
            Window((2,), (0,), 4, (4,), None, stores=False),
            Window((0,), (0,), 8, (8,), 4, stores=False),
            Window((1,), (4,), 8, (12,), 4, stores=False),
        )
    )


def test_tails_have_windows_behind_their_prefills() -> None:
    rows = [lazy(0, REFRESH), lazy(1, REFRESH)]
    (group,) = next_batches(rows, BLOCK, pooled=False)
    assert forward_batch(group, BLOCK) == ForwardBatch(
        (
            Window((0, 1), (0, 0), 8, (8, 8), 4, stores=False),
            Window((0, 1), (8, 8), 4, (12, 12), None, stores=True),
        )
    )


@pytest.mark.parametrize(
    ("rows", "starts", "extents", "adjacent", "uniform"),
    [
        ((0,), (4,), (8,), True, True),
        ((1, 2, 3), (4, 4, 4), (8, 8, 8), True, True),
        ((1, 2, 3), (4, 4, 5), (8, 8, 8), True, False),
        ((1, 2, 3), (4, 4, 4), (8, 9, 8), True, False),
        ((1, 3), (4, 4), (8, 8), False, False),
        ((2, 1), (4, 4), (8, 8), False, False),
    ],
)
def test_rows_side_by_side_and_alike_need_neither_copy_nor_mask(
    rows: Any, starts: Any, extents: Any, *, adjacent: bool, uniform: bool
) -> None:
    window = Window(rows, starts, 4, extents)
    assert (window.adjacent, window.uniform) == (adjacent, uniform)


# --- prefill and geometry -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "full", "touched"), [(0, 0, 0), (1, 0, 1), (4, 1, 1), (5, 1, 2), (8, 2, 2)]
)
def test_blocks_are_counted(tokens: int, full: int, touched: int) -> None:
    assert num_full_blocks(tokens, BLOCK) == full
    assert num_blocks(tokens, BLOCK) == touched


@pytest.mark.parametrize("blocks", [0, 1, 16, 17, 32, 33])
def test_a_prompt_is_prefilled_in_chunks_and_read_at_its_end(blocks: int) -> None:
    whole = ids(blocks * BLOCK)
    asks = list(prefill(whole, WHOLE, BLOCK, read=True))
    assert tuple(token for ask in asks for token in ask.ids) == whole
    assert [len(ask.ids) for ask in asks[:-1]] == [16 * BLOCK] * max(len(asks) - 1, 0)
    assert len(asks) == -(-blocks // 16)
    for ask in asks[:-1]:
        assert (ask.read, ask.lazy) == ((), False)
    for ask in asks[-1:]:
        assert (ask.read, ask.lazy) == ((len(ask.ids) - 1,), False)
    waiting = list(prefill(whole, WHOLE, BLOCK, read=False, lazy=True))
    assert [ask.lazy for ask in waiting] == [False] * max(len(asks) - 1, 0) + [True] * bool(blocks)
    assert all(not ask.read for ask in waiting)
    assert not any(ask.lazy for ask in prefill(whole, WHOLE, BLOCK, read=False))


# --- stretches of layers --------------------------------------------------------------------------

RESIDUAL = LayerRun(2, 4, "residual")
LAST = LayerRun(4, 6)


@pytest.mark.parametrize(
    ("plan", "first", "found"),
    [
        (WHOLE, 0, [PlanStep("compute", 0, 6)]),
        (WHOLE, 5, [PlanStep("compute", 5, 6)]),
        (WHOLE, 6, []),
        (
            STORING,
            0,
            [
                PlanStep("compute", 0, 2),
                PlanStep("compute", 2, 4, RUN),
                PlanStep("compute", 4, 6),
            ],
        ),
        (
            REUSING,
            0,
            [
                PlanStep("compute", 0, 2, kv_only=True),
                PlanStep("reuse", 2, 4, RUN),
                PlanStep("compute", 4, 6),
            ],
        ),
        (
            LayerPlan(6, reuse=(RESIDUAL,)),
            0,
            [
                PlanStep("compute", 0, 2),
                PlanStep("reuse", 2, 4, RESIDUAL),
                PlanStep("compute", 4, 6),
            ],
        ),
        (
            LayerPlan(6, reuse=(RUN, LAST)),
            0,
            # What stands right ahead of a reused output is read by nobody.
            [PlanStep("compute", 0, 2, kv_only=True), PlanStep("reuse", 4, 6, LAST)],
        ),
        (
            LayerPlan(6, reuse=(LAST,), store=(RUN,)),
            1,
            [
                PlanStep("compute", 1, 2),
                PlanStep("compute", 2, 4, RUN),
                PlanStep("reuse", 4, 6, LAST),
            ],
        ),
        (
            LayerPlan(6, partial=(RUN,), reuse=(LAST,)),
            2,
            [PlanStep("partial", 2, 4, RUN), PlanStep("reuse", 4, 6, LAST)],
        ),
    ],
)
def test_a_plan_is_cut_into_stretches(plan: LayerPlan, first: int, found: list[PlanStep]) -> None:
    assert list(plan_steps(plan, first)) == found


def test_layer_calls_of_a_plan_add_up() -> None:
    plan = LayerPlan(10, reuse=(LayerRun(1, 4),), partial=(LayerRun(5, 7, columns=(0, 3)),))
    assert (plan.num_reused, plan.num_computed) == (3, 7)
    assert plan.trimmed(8) == pytest.approx(1.5)
    assert plan.runs == (LayerRun(1, 4), LayerRun(5, 7, columns=(0, 3)))
    assert len(LayerRun(1, 4)) == 3


@pytest.mark.parametrize("changes", [{"keep": 0}, {"keep": 3}, {"extrapolate": 0.5}])
def test_what_is_extrapolated_keeps_two(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="extrapolation keeps two values"):
        LayerRun(1, 2, **changes)
    assert LayerRun(1, 2, keep=2, extrapolate=0.5).key == (1, 2, "output", 2)


@pytest.mark.parametrize(
    ("calm", "otherwise"),
    [
        (LayerPlan(6, reuse=(LayerRun(2, 4),)), LayerPlan(6)),
        (LayerPlan(6), LayerPlan(6, store=(LayerRun(1, 4),))),
        (LayerPlan(6), LayerPlan(7)),
    ],
)
def test_a_probe_looks_ahead_of_what_it_decides(calm: LayerPlan, otherwise: LayerPlan) -> None:
    with pytest.raises(ValueError, match="runs must lie behind the probe at layer 2"):
        ProbePlan(2, 0.5, calm, otherwise)
    assert ProbePlan(1, 0.5, REUSING, STORING).run == LayerRun(1, 2, "residual")

"""Plans that are decided in mid-forward: gates ahead of layers, columns kept by score."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import fdllm
from dtypes import TYPES
from fdllm.core.cost import Fed, forward_costs
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.guided_plans import GatePlan, ScorePlan
from fdllm.core.layer_loop import Forwarded
from fdllm.core.reuse import AnyPlan, LayerPlan, LayerRun, NeverWrittenError, ReuseStrategy
from fdllm.core.schedule import Phase, Step
from fdllm.errors import UsageError
from models import DECODING, PROMPTS, SPEC, model_of, random_model
from strategies import STRATEGIES, of

WHOLE = LayerPlan(6)
WIDTH = 16
TOLD = tuple(i / WIDTH for i in range(WIDTH))
SCORES = ScorePlan(6, (1, 3), (0.5, 0.25), TOLD)
BLOCK = ForwardBatch((Window((0,), (0,), WIDTH, (WIDTH,)),))


class Forwards:
    """One forward behind the other over a cache of one row."""

    def __init__(self) -> None:
        self.model = random_model(0)
        self.backend = self.model.backend(num_rows=1, capacity=WIDTH)

    @torch.inference_mode()
    def __call__(self, plan: AnyPlan, first: int = 3, read: Any = None) -> Forwarded:
        ids = torch.arange(first, first + WIDTH)
        return self.model.runner().forward(ids, self.backend, BLOCK, plan, read)


def skipped(plan: LayerPlan) -> list[int]:
    assert not plan.store
    assert not plan.partial
    return [layer for run in plan.reuse for layer in range(run.start, run.stop)]


@pytest.mark.parametrize(
    ("first", "most", "found"),
    [(2, 3, [2, 3, 4]), (2, 1, [2, 4]), (1, 1, [1, 3, 5]), (1, 4, [1, 2, 3, 4]), (3, 9, [3, 4, 5])],
)
def test_a_gate_that_is_open_skips_as_far_as_it_may(
    first: int, most: int, found: list[int]
) -> None:
    """What it came to is carried out: the same plan, asked for as such, gives the same states."""
    run = Forwards()
    whole = run(WHOLE)
    got = run(GatePlan(6, -2.0, first, most), 4)
    assert skipped(got.plan) == found
    assert got.change is None
    again = Forwards()
    again(WHOLE)
    torch.testing.assert_close(got.hidden, again(got.plan, 4).hidden)
    assert not torch.allclose(got.hidden, whole.hidden)


@pytest.mark.parametrize("read", [None, [3], [1, 2, 3, 4, 5, 6, 7, 8, 9]])
def test_a_gate_that_is_shut_changes_nothing(read: list[int] | None) -> None:
    run = Forwards()
    got = run(GatePlan(6, 2.0), read=read)
    assert got.plan == WHOLE
    torch.testing.assert_close(got.hidden, Forwards()(WHOLE, read=read).hidden)


def test_a_gate_looks_at_the_mean_cosine_of_the_columns() -> None:
    """At a threshold right below that of the two first inputs it opens; right above it does not."""
    run = Forwards()
    states = [run.model.network.embedding(torch.arange(3, 3 + WIDTH))]
    run.backend.prepare(BLOCK)
    layers = run.model.runner()._loop.layers  # noqa: SLF001 - the states that it sees
    with torch.inference_mode():
        states.append(layers[0](states[0], run.backend))
    cosine = float(torch.cosine_similarity(states[0], states[1], dim=-1).mean())
    assert skipped(run(GatePlan(6, cosine - 1e-4, 1, 1)).plan)[:1] == [1]
    assert 1 not in skipped(run(GatePlan(6, cosine + 1e-4, 1, 1)).plan)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, (0, 1, 14, 15)),  # two by change, two that always stay
        ({"always": 0}, (0, 1, 2, 3)),
        ({"weight": 1.0}, (12, 13, 14, 15)),
        ({"confidence": (0.0,) * WIDTH}, (0, 1, 2, 3)),  # nothing was told: no one stays always
        ({"shares": (0.01, 0.25)}, (14,)),  # one at least
        ({"shares": (1.0, 0.25)}, tuple(range(WIDTH))),
    ],
)
def test_of_the_columns_those_of_the_highest_scores_go_on(
    changes: dict[str, Any], kept: tuple[int, ...]
) -> None:
    change = [4.0 - i / WIDTH for i in range(WIDTH)]  # by its largest: 1 to 0.77
    asked: dict[str, Any] = {"shares": (0.25, 0.25), "weight": 0.1} | changes
    plan = replace(SCORES, **asked)
    assert plan.kept(0, range(WIDTH), change) == kept
    even = replace(plan, confidence=(0.5,) * WIDTH, weight=0.5, always=0, shares=(0.25, 0.25))
    assert even.kept(0, range(WIDTH), [0.3] * WIDTH) == (0, 1, 2, 3), "the leftmost of equals"


def test_dropped_columns_take_what_was_stored() -> None:
    run = Forwards()
    before = run(SCORES.whole)
    keys = run.backend.cache.keys.clone()
    got = run(SCORES, 4)
    second, third = (part.columns for part in got.plan.partial)
    assert [len(second), len(third)] == [8, 4]
    assert set(third) < set(second)
    assert {14, 15} <= set(third), "the two most confident always stay"
    rest = [c for c in range(WIDTH) if c not in third]
    torch.testing.assert_close(got.hidden[rest], before.hidden[rest])
    changed = (run.backend.cache.keys[:, 0] != keys[:, 0]).any(-1).any(1)  # [layers, positions]
    for layer, columns in enumerate((range(WIDTH), second, second, third, third, third)):
        assert set(changed[layer].nonzero().flatten().tolist()) == set(columns)


def test_scores_that_drop_nothing_compute_everything() -> None:
    run, plain = Forwards(), Forwards()
    run(SCORES.whole)
    plain(WHOLE)
    got = run(replace(SCORES, shares=(1.0, 1.0)), 4, [2, 9])
    torch.testing.assert_close(got.hidden, plain(WHOLE, 4, [2, 9]).hidden)
    assert got.plan.trimmed(WIDTH) == 0


@pytest.mark.parametrize(("shares", "kept"), [((0.5, 0.25), (8, 4)), ((0.5, 0.5), (8, 8))])
def test_scores_move_what_they_compare_and_keep(
    shares: tuple[float, float], kept: tuple[int, int]
) -> None:
    """States old and new behind each stage but the last; there the new, and then all of them."""
    run, plan = Forwards(), replace(SCORES, shares=shares)
    run(plan.whole)
    carried = run(plan, 4).plan
    [cost] = forward_costs(SPEC, 4, plan, carried, [Fed(WIDTH, 32, 4)])
    moved = 2 * WIDTH + 2 * kept[0] + kept[1] + WIDTH
    assert cost.stored_bytes == moved * SPEC.hidden_size * 4


def test_scores_need_what_they_compare_with() -> None:
    run = Forwards()
    run(LayerPlan(6, store=SCORES.runs[:2]))
    with pytest.raises(NeverWrittenError, match=r"layers 3\.\.5 \(output\)"):
        run(SCORES)


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (lambda: GatePlan(6, 0.9, first=0), "first and most must be 1 or more"),
        (lambda: GatePlan(6, 0.9, most=0), "first and most must be 1 or more"),
        (lambda: ScorePlan(6, (2, 2), (0.5, 0.5), TOLD), "each stage has layers"),
        (lambda: ScorePlan(6, (2, 6), (0.5, 0.5), TOLD), "each stage has layers"),
        (lambda: ScorePlan(6, (2,), (0.5, 0.5), TOLD), "all but the last a share"),
        (lambda: ScorePlan(6, (2,), (0.0,), TOLD), "shares must be above 0"),
    ],
)
def test_plans_that_make_no_sense(plan: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        plan()


GUIDED = [STRATEGIES[name] for name in ("gate", "score", "random")]


@pytest.mark.parametrize("strategy", GUIDED, ids=["gate", "score", "random"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_row_s_course_is_its_own_in_every_type(
    strategy: ReuseStrategy[Any], dtype: torch.dtype
) -> None:
    model = model_of(random_model(5).network.to(dtype))
    alone, together = (
        fdllm.generate(model, PROMPTS[1:4], DECODING, strategy, batch_size=n) for n in (1, 3)
    )
    assert [one.tokens for one in alone] == [one.tokens for one in together]
    assert [one.counts for one in alone] == [one.counts for one in together]
    assert sum(one.counts.reused + one.counts.trimmed for one in alone) > 0


# --- what experiments make of them ----------------------------------------------------------------


def test_random_reuse_skips_as_many_layers_as_its_rival_and_others_each_time() -> None:
    rival, drawn = of("02_residual"), of("11_random")
    mine, its = drawn.init(6), rival.init(6)
    seen = set()
    for index in range(40):
        phase = Phase.DENOISE if index else Phase.REFRESH
        step = Step(phase, index, (0, 8), first=not index, masked=tuple(range(index % 7)))
        plan, other = drawn.plan(step, mine), rival.plan(step, its)
        assert isinstance(plan, LayerPlan)
        assert isinstance(other, LayerPlan)
        assert plan.num_reused == other.num_reused
        seen.add(tuple(skipped(plan)) if plan.reuse else ())
    assert len(seen) > 5
    step = Step(Phase.DENOISE, 1, (0, 8))
    assert of("11_random", seed=1).plan(step, mine) != drawn.plan(step, mine)


def test_layers_that_are_not_there_cannot_be_dropped() -> None:
    for layers in ([0], [6], []):
        with pytest.raises(UsageError, match="give some of 1 to 5 in params"):
            of("10_static_drop", layers=layers).init(6)
    assert of("10_static_drop", layers=[2, 4]).plan(Step(Phase.DENOISE, 1, (0, 8)), 6) == LayerPlan(
        6, reuse=(LayerRun(2, 3, "identity"), LayerRun(4, 5, "identity"))
    )

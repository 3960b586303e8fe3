"""Lanes are timed in turn, each on the path it says. No time is asserted but a made-up clock's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fdllm.core.config import Decoding
from fdllm.core.forward_batch import ForwardBatch
from fdllm.core.layer_loop import Forwarded
from fdllm.core.model_runner import ModelRunner
from fdllm.core.reuse import LayerPlan
from fdllm.core.row_task import ForwardRequest
from fdllm.core.schedule import Phase
from fdllm.timing.forwards import Scene, time_forwards
from fdllm.timing.interleave import Clock, Lane, Rounds, in_turn, interleave
from models import random_model, random_prompt

CPU = torch.device("cpu")
MODEL = random_model(layers=2)
BLOCK = MODEL.spec.block_size
DECODING = Decoding(block_size=BLOCK, small_block_size=8, stop_token=(), mask_id=MODEL.spec.mask_id)
REFRESH = ForwardRequest(Phase.REFRESH, tuple(random_prompt(1, BLOCK)), LayerPlan(2), read=(7, 8))
DENOISE = ForwardRequest(Phase.DENOISE, tuple(random_prompt(2, 8)), LayerPlan(2), 8, read=(0, 1))


class Ticking(Clock):
    """Every look at it is a second later than the one before, unless work takes longer."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.at = 0.0

    def now(self) -> float:
        self.at += 1.0
        return self.at


def run(steps: Iterator[Any]) -> Any:
    with pytest.raises(StopIteration) as ended:
        next(steps)
    return ended.value.value


def test_each_round_takes_every_lane_in_an_order_of_its_own() -> None:
    took: list[str] = []
    works = {name: lambda name=name: took.append(name) for name in "abc"}
    found = interleave(works, CPU, Rounds(20, warm_ups=2))
    assert took[:6] == ["a", "a", "b", "b", "c", "c"]
    orders = ["".join(took[at : at + 3]) for at in range(6, len(took), 3)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert len(set(orders)) > 3
    assert {name: len(values) for name, values in found.items()} == dict.fromkeys("abc", 20)
    again: list[str] = []
    works = {name: lambda name=name: again.append(name) for name in "abc"}
    interleave(works, CPU, Rounds(20, warm_ups=2))
    assert again == took, "a seed fixes the order"


def test_a_sample_is_the_median_of_a_rounds_passes() -> None:
    clock = Ticking()
    waits = iter([0.0, 1.0, 50.0, 3.0])  # the first warms up

    def wait() -> None:
        clock.at += next(waits)

    timed = run(in_turn([Lane("a", work=wait, num_steps=2)], clock, Rounds(1, turns=3)))
    assert timed.seconds == {"a": (2.0,)}


def test_short_lanes_fill_a_turn() -> None:
    done: list[int] = []
    lanes = [Lane("a", work=lambda: done.append(1))]
    timed = run(in_turn(lanes, Ticking(), Rounds(2, turns=3, stretch_s=4.5)))
    assert timed.passes == {"a": 5}
    assert len(done) == 1 + 2 * 3 * 5


def test_every_forward_of_a_lane_is_made_by_the_engine() -> None:
    done_work: list[int] = []
    lanes = [
        Lane("two", (DENOISE, DENOISE)),
        Lane("refresh", (REFRESH,)),
        Lane("work", work=lambda: done_work.append(1)),
    ]
    scene = Scene(tuple(random_prompt(3, 2 * BLOCK)), (REFRESH,))
    rounds = Rounds(3, warm_ups=2, turns=3, stretch_s=0.002)
    done = time_forwards(MODEL, DECODING, scene, lanes, rounds)

    def passes(name: str) -> int:
        return 2 + 3 * 3 * done.passes[name]

    assert done.counts["denoise"].forwards == 2 * passes("two")
    assert done.counts["refresh"].forwards == passes("refresh") + 1
    assert len(done_work) == passes("work")
    assert done.counts["prefill"].tokens == 2 * BLOCK
    assert {name: len(values) for name, values in done.seconds.items()} == {
        "two": 3,
        "refresh": 3,
        "work": 3,
    }
    assert all(value > 0 for values in done.seconds.values() for value in values)


def test_rows_of_a_batch_share_each_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    forward = ModelRunner.forward

    def spy(
        self: ModelRunner, ids: Tensor, backend: Any, batch: ForwardBatch, *rest: Any
    ) -> Forwarded:
        rows.extend(len(window.rows) for window in batch.windows)
        return forward(self, ids, backend, batch, *rest)

    monkeypatch.setattr(ModelRunner, "forward", spy)
    scene = Scene(tuple(random_prompt(3, BLOCK)), (REFRESH,), batch_size=3)
    done = time_forwards(MODEL, DECODING, scene, [Lane("step", (DENOISE,))], Rounds(1))
    assert set(rows) == {3}
    assert len(rows) == done.counts.forwards

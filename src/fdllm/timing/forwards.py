"""Lanes on the engine's own path: it does for every forward what it does for any row.

A row task asks for the same forwards again and again and looks at the clock in between; between two
such stretches it does the other work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.counts import Counts
from fdllm.core.engine import Engine
from fdllm.core.reuse import LayerPlan
from fdllm.core.row_task import CacheRow, ForwardRequest, RowTask, Steps, prefill
from fdllm.timing.interleave import Clock, Lane, Rounds, Timed, in_turn


@dataclass(frozen=True)
class Scene:
    """Where the forwards happen."""

    prompt: tuple[int, ...]  # tokens of every row, whole blocks
    # forwards behind the prompt, ahead of the first lane: a REFRESH, what is stored
    before: tuple[ForwardRequest, ...] = ()
    batch_size: int = 1  # rows that make the same forwards together


@dataclass(frozen=True)
class TimedForwards(Timed):
    """What came of lanes on the engine's path."""

    counts: Counts  # all forwards that the leading row took part in


def time_forwards(
    model: Model, decoding: Decoding, scene: Scene, lanes: Sequence[Lane], rounds: Rounds
) -> TimedForwards:
    """Time the lanes in turn; ``decoding`` is a resolved one."""
    block, whole = model.spec.block_size, LayerPlan(model.n_layers)
    found: list[Timed] = []
    said: list[ForwardRequest | None] = []  # so far, and None behind the last

    def everything() -> Steps[None]:
        yield from scene.before
        found.append((yield from in_turn(lanes, Clock(model.device), rounds)))

    def lead(task: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG001
        for forwards in (prefill(scene.prompt, whole, block, read=False), everything()):
            for forward in forwards:
                said.append(forward)
                yield forward
        said.append(None)

    def follow(task: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG001
        """Any other row: what the leader has just asked for."""
        at = 0
        while (forward := said[at]) is not None:
            yield forward
            at += 1

    capacity = len(scene.prompt) + block
    tasks = [
        RowTask(lead, capacity),
        *(RowTask(follow, capacity) for _ in range(scene.batch_size - 1)),
    ]
    for _ in Engine(model, decoding, scene.batch_size).run(tasks):
        pass
    [timed] = found
    return TimedForwards(timed.seconds, timed.passes, tasks[0].counts)

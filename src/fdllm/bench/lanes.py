"""Measures forwards on the engine's own path, and other work beside them, in turn.

A job asks for the same forward again and again and looks at the clock in between; between two such
stretches it does the other work. So the two are measured in one run, next to each other, and the
engine does for every forward what it does for any row.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fdllm.bench.options import Options
from fdllm.bench.timing import Clock, Spread
from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.counts import Counts
from fdllm.core.engine import Engine
from fdllm.core.layerplan import LayerPlan
from fdllm.core.row_task import CacheRow, ForwardRequest, RowTask, Steps, prefill
from fdllm.core.schedule import Phase

TURNS = 3
"""Turns of every lane in a repeat."""
_MOST_LOOPS = 100


@dataclass(frozen=True)
class Lane:
    """One thing that is timed: forwards on the engine's path, or work of its own.

    Attributes:
        name: unique.
        asks: forwards, made one after the other; they must leave the prefix where it is.
        work: what to do where there are no asks.
        num_steps: steps that ``work`` counts as.
    """

    name: str
    asks: tuple[ForwardRequest, ...] = ()
    work: Callable[[], object] | None = None
    num_steps: int = 1

    @property
    def steps(self) -> int:
        """Steps of one pass."""
        return len(self.asks) or self.num_steps


@dataclass(frozen=True)
class Measured:
    """What came of a measurement.

    Attributes:
        seconds: a step's time by lane; each repeat is the median of its passes.
        passes: passes of a lane in each turn; a repeat has :data:`TURNS` of them.
        counts: all forwards that the leading row took part in.
        warm_ups: passes of each lane ahead of the first that counts.
    """

    seconds: dict[str, Spread]
    passes: dict[str, int]
    counts: Counts
    warm_ups: int


@dataclass(frozen=True)
class Scene:
    """Where the forwards happen.

    Attributes:
        prompt: tokens of every row, whole blocks.
        before: forwards behind the prompt, ahead of the first lane: a REFRESH, what is stored.
        batch_size: rows that make the same forwards together.
    """

    prompt: tuple[int, ...]
    before: tuple[ForwardRequest, ...] = ()
    batch_size: int = 1


def measure(
    model: Model,
    decoding: Decoding,
    scene: Scene,
    lanes: Sequence[Lane],
    options: Options,
) -> Measured:
    """Time the lanes in turn.

    Args:
        model: what makes the forwards.
        decoding: resolved.
        scene: prompt, batch size, and what happens first.
        lanes: in the order of the first turn; each later turn begins one further on.
        options: repeats, which are the medians of each lane, and the length of a turn.
    """
    leader = _Leader(model, scene, lanes, options)
    jobs = [RowTask(leader.run, leader.capacity)]
    jobs += [RowTask(leader.follow, leader.capacity) for _ in range(scene.batch_size - 1)]
    engine = Engine(model, decoding, scene.batch_size)
    for _ in engine.run(jobs):
        pass
    seconds = {name: Spread(tuple(values)) for name, values in leader.seconds.items()}
    return Measured(seconds, leader.passes, jobs[0].counts, _Leader.WARM_UPS)


class _Leader:
    """The row that looks at the clock. The others ask for what it asks for."""

    WARM_UPS = 2

    def __init__(self, model: Model, scene: Scene, lanes: Sequence[Lane], options: Options) -> None:
        self.scene, self.lanes, self.repeats = scene, lanes, options.repeats
        self.stretch_s = options.stretch_ms / 1e3
        self.capacity = len(scene.prompt) + model.spec.block_size
        self.passes: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {lane.name: [] for lane in lanes}
        self._clock = Clock(model.device)
        self._whole = LayerPlan(model.n_layers)
        self._block = model.spec.block_size
        self._said: list[ForwardRequest] = []
        """Every ask so far: a follower asks the same, one behind the other."""

    def run(self, job: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG002
        """The leading row."""
        for ask in prefill(self.scene.prompt, self._whole, self._block, read=False):
            yield self._say(ask)
        for ask in self.scene.before:
            yield self._say(ask)
        for lane in self.lanes:
            took = 0.0
            for _ in range(self.WARM_UPS):
                began = self._clock.now()
                yield from self._pass(lane)
                took = self._clock.now() - began
            self.passes[lane.name] = min(max(math.ceil(self.stretch_s / took), 1), _MOST_LOOPS)
        for _ in range(self.repeats):
            yield from self._repeat()
        self._said.append(_END)

    def _repeat(self) -> Steps[None]:
        """Several turns of every lane; the median of a lane's passes counts."""
        times: dict[str, list[float]] = {lane.name: [] for lane in self.lanes}
        for turn in range(TURNS):
            at = turn % len(self.lanes)
            for lane in (*self.lanes[at:], *self.lanes[:at]):
                for _ in range(self.passes[lane.name]):
                    began = self._clock.now()
                    yield from self._pass(lane)
                    times[lane.name].append((self._clock.now() - began) / lane.steps)
        for name, values in times.items():
            self.seconds[name].append(statistics.median(values))

    def follow(self, job: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG002
        """Any other row: what the leader has just asked for."""
        at = 0
        while (ask := self._said[at]) is not _END:
            yield ask
            at += 1

    def _pass(self, lane: Lane) -> Steps[None]:
        if lane.work is not None:
            lane.work()
        for ask in lane.asks:
            yield self._say(ask)

    def _say(self, ask: ForwardRequest) -> ForwardRequest:
        self._said.append(ask)
        return ask


_END = ForwardRequest(Phase.DENOISE, (), LayerPlan(1))

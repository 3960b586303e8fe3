"""Rounds of lanes: every round takes each lane, in an order drawn anew, and adds one sample of it.

A lane is work of any kind, or forwards that a row asks the engine for
(:mod:`fdllm.timing.forwards`). What samples mean is for whoever asked: two lanes' samples of one
round were taken next to each other, so their ratio holds whatever else the machine was doing.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from fdllm.core.row_task import ForwardRequest, Steps

_MOST_PASSES = 100


class Clock:
    """Seconds, after all that was asked of the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def now(self) -> float:
        """The time in seconds."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter()


@dataclass(frozen=True)
class Lane:
    """One thing that is timed."""

    name: str  # unique
    # on the engine's path, one after the other; they leave the prefix where it is
    forwards: tuple[ForwardRequest, ...] = ()
    work: Callable[[], object] | None = None  # what to do where there are no forwards
    num_steps: int = 1  # steps that ``work`` counts as

    @property
    def steps(self) -> int:
        """Steps of one pass."""
        return len(self.forwards) or self.num_steps


@dataclass(frozen=True)
class Rounds:
    """How often lanes take turns."""

    number: int  # rounds; each gives one sample of every lane, the median of its passes
    warm_ups: int = 1  # passes of each lane ahead of the first that counts
    turns: int = 1  # of every lane in a round
    stretch_s: float = 0.0  # how long a turn lasts, at the least one pass
    seed: int = 0  # of the order


@dataclass(frozen=True)
class Timed:
    """What came of it."""

    # a step's time by lane, a sample each round, in the rounds' order
    seconds: dict[str, tuple[float, ...]]
    passes: dict[str, int]  # of a lane in each turn


def in_turn(lanes: Sequence[Lane], clock: Clock, rounds: Rounds) -> Steps[Timed]:
    """Time the lanes as part of a row task: the engine carries out what they ask for."""
    passes: dict[str, int] = {}
    for lane in lanes:
        took = math.inf
        for _ in range(rounds.warm_ups):
            took = yield from _pass(lane, clock)
        passes[lane.name] = min(max(math.ceil(rounds.stretch_s / took), 1), _MOST_PASSES)
    rng = random.Random(rounds.seed)
    seconds: dict[str, list[float]] = {lane.name: [] for lane in lanes}
    for _ in range(rounds.number):
        times: dict[str, list[float]] = {lane.name: [] for lane in lanes}
        for _ in range(rounds.turns):
            for lane in rng.sample(lanes, len(lanes)):
                for _ in range(passes[lane.name]):
                    took = yield from _pass(lane, clock)
                    times[lane.name].append(took / lane.steps)
        for name, values in times.items():
            seconds[name].append(statistics.median(values))
    return Timed({name: tuple(values) for name, values in seconds.items()}, passes)


def _pass(lane: Lane, clock: Clock) -> Steps[float]:
    """Its seconds."""
    began = clock.now()
    if lane.work is not None:
        lane.work()
    for forward in lane.forwards:  # noqa: UP028 - the engine sends what came of it
        yield forward
    return clock.now() - began


def interleave(
    works: Mapping[str, Callable[[], object]], device: torch.device, rounds: Rounds
) -> dict[str, tuple[float, ...]]:
    """Seconds of each work by its name, a sample each round."""
    lanes = [Lane(name, work=work) for name, work in works.items()]
    try:
        next(in_turn(lanes, Clock(device), rounds))
    except StopIteration as end:
        timed: Timed = end.value
        return timed.seconds
    raise ValueError("work asks no engine for anything")

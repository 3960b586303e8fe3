"""Times with their spread. One measurement is no figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing, in the order they were made.

    Attributes:
        values: one number a repeat, at least one.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    def over(self, other: Spread) -> Spread:
        """Ratios to ``other``, repeat by repeat: both were measured next to each other."""
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def times(self, factor: float) -> Spread:
        """Every value multiplied."""
        return Spread(tuple(value * factor for value in self.values))

    def per(self, amount: float) -> Spread:
        """``amount`` by every value: a rate, where the values are seconds."""
        return Spread(tuple(amount / value for value in self.values))

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "values": list(self.values),
        }


class Clock:
    """Seconds, after all that was asked of the device is done."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None

    def now(self) -> float:
        """The time in seconds."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        return time.perf_counter()

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that ``work`` takes."""
        began = self.now()
        work()
        return self.now() - began


def interleave(
    clock: Clock, works: dict[str, Callable[[], object]], repeats: int, warm_ups: int = 1
) -> dict[str, Spread]:
    """Time several works in turn, A B A B, so that what the machine does meets all of them alike.

    Args:
        clock: of the device.
        works: by name.
        repeats: times each is measured.
        warm_ups: rounds ahead of the first that counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-warm_ups, repeats):
        for name, work in turned(list(works.items()), max(turn, 0)):
            took = clock.time(work)
            if turn >= 0:
                seconds[name].append(took)
    return {name: Spread(tuple(values)) for name, values in seconds.items()}


def turned(
    items: Sequence[tuple[str, Callable[[], object]]], by: int
) -> list[tuple[str, Callable[[], object]]]:
    """The items beginning with another one each time: none always follows the same neighbour."""
    at = by % len(items)
    return [*items[at:], *items[:at]]

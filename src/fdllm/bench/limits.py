"""What the machine can do: bytes read and operations made a second, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fdllm.bench.floor import Cost
from fdllm.bench.timing import Clock, Spread

_REPEATS = 7
_LEAST, _MOST = 4 << 20, 1 << 30  # bytes of the buffer that is read
_SIDE = {"cpu": 1536, "cuda": 8192}  # of the large product


@dataclass(frozen=True)
class Limits:
    """A machine's measured rates.

    Attributes:
        read: bytes a second, over a buffer of the weights' size.
        product: operations a second of a large square product of the weights' type.
    """

    read: Spread
    product: Spread

    def seconds(self, cost: Cost) -> float:
        """The physical limit: nothing is faster than the slower of the two."""
        return max(cost.num_bytes / self.read.high, cost.operations / self.product.high)

    def bound(self, cost: Cost) -> str:
        """Which of the two it is."""
        by_read = cost.num_bytes / self.read.high > cost.operations / self.product.high
        return "reading" if by_read else "arithmetic"


def measure_limits(device: torch.device, dtype: torch.dtype, weight_bytes: int) -> Limits:
    """Measure the machine.

    Args:
        device: where.
        dtype: of the product.
        weight_bytes: what a step reads: what fits into a cache is read at the cache's speed.
    """
    clock = Clock(device)
    num_bytes = min(max(weight_bytes, _LEAST), _MOST)
    buffer = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    size = buffer.numel() * 4
    # Which reduction comes closest to the bandwidth differs by machine: the best one counts.
    works: dict[str, Callable[[], object]] = {
        "sum": buffer.sum,
        "max": buffer.max,
        "dot": lambda: torch.dot(buffer, buffer),
    }
    with torch.inference_mode():
        best = max((_rate(clock, work, size) for work in works.values()), key=lambda r: r.median)
        side = _SIDE.get(device.type, _SIDE["cpu"])
        a = torch.ones(side, side, dtype=dtype, device=device)
        product = _rate(clock, lambda: a @ a, 2 * side**3)
    return Limits(best, product)


def _rate(clock: Clock, work: Callable[[], object], amount: int) -> Spread:
    work()
    return Spread(tuple(amount / clock.time(work) for _ in range(_REPEATS)))

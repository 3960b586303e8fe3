"""A part of a run's documents, for one of several processes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from fdllm.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Shard:
    """One of ``count`` contiguous parts.

    Raises:
        UsageError: there is no such part.
    """

    index: int  # which, from 0
    count: int  # how many there are

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UsageError(
                f"there is no shard {self.index} of {self.count}; shards are numbered "
                "0 .. count - 1 and there is at least one"
            )

    def __str__(self) -> str:
        return f"shard {self.index + 1} of {self.count}"

    @property
    def suffix(self) -> str:
        """How file names spell it, ``.shard-1-of-3``."""
        return f".shard-{self.index + 1}-of-{self.count}"

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """This shard's items: contiguous, in order, sizes differing by one at most.

        Every item belongs to exactly one of the ``count`` shards. A shard is empty where there are
        more shards than items.
        """
        whole = len(items)
        return items[whole * self.index // self.count : whole * (self.index + 1) // self.count]

    @classmethod
    def all_of(cls, count: int) -> tuple[Shard, ...]:
        """Every part.

        Raises:
            UsageError: ``count`` is below 1.
        """
        return tuple(cls(index, count) for index in range(max(count, 1)))

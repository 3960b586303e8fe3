"""Phases, steps and the geometry of blocks: everything about *when*, nothing about tensors.

No torch here: planning, strategies and status import this module on login nodes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Phase(enum.Enum):
    """What a forward pass is for (docs/algorithm.md 2)."""

    PREFILL = "prefill"
    """The prompt's full blocks into the prefix cache."""
    REFRESH = "refresh"
    """The whole block; rebuilds the block cache."""
    DENOISE = "denoise"
    """Some columns of the block, against the block cache; overwrites their columns in it."""
    COMMIT = "commit"
    """The finished block into the prefix cache; its last logits give the look-ahead token."""

    __hash__ = enum.Enum.__hash__


@dataclass(frozen=True)
class Step:
    """One denoising forward, as a strategy sees it before it happens.

    Attributes:
        phase: ``REFRESH`` or ``DENOISE``; no other phase is ever offered to a strategy.
        index: the step counter, docs/algorithm.md 4.2. A REFRESH is 0, each DENOISE adds 1; where
            ``refresh_reuse`` is on, only a block's first REFRESH is 0 and every forward adds 1.
        columns: ``(start, stop)`` of the block's columns that this forward computes.
        first: True for a block's first forward, when nothing has been stored yet.
        masked: those of the columns that are still masked.
    """

    phase: Phase
    index: int
    columns: tuple[int, int]
    first: bool = False
    masked: tuple[int, ...] = ()


def num_full_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that ``num_tokens`` tokens fill completely."""
    return num_tokens // block_size


def num_blocks(num_tokens: int, block_size: int) -> int:
    """Blocks that ``num_tokens`` tokens touch, the last one perhaps in part."""
    return -(-num_tokens // block_size)


def next_step_index(current: int | None, phase: Phase, *, refresh_reuse: bool) -> int:
    """The step counter for the next forward of a block.

    Args:
        current: the counter of the block's previous forward; None before its first.
        phase: what the next forward is.
        refresh_reuse: True where a REFRESH other than a block's first may reuse too, so that the
            counter runs on through it instead of starting again.
    """
    if current is None or (phase is Phase.REFRESH and not refresh_reuse):
        return 0
    return current + 1

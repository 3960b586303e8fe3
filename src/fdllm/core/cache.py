"""The state of a batch inside the model: keys, values and reuse slots, with one owner.

A row of the batch is a *slot*. Its keys and values lie in one buffer: the prefix cache in
positions ``0 .. length - 1`` (exact) and right behind it the block cache (approximate between
refreshes). A COMMIT therefore writes where the block cache stood and only moves ``length``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdllm.core.layer_output_cache import ReuseSlots, SavedSlots
from fdllm.core.model_spec import ModelSpec
from fdllm.fast.kernels import Fused


@dataclass(frozen=True)
class Snapshot:
    """A row's current block: what has to come back before another continuation is tried.

    Attributes:
        length: tokens of the prefix.
        keys: the block cache's keys [layers, kv heads, block, head dim].
        values: its values.
        slots: what the reuse slots held.
    """

    length: int
    keys: Tensor
    values: Tensor
    slots: SavedSlots


class RowCache:
    """Keys, values and reuse slots of every row, preallocated.

    Attributes:
        keys: [layers, rows, kv heads, capacity, head dim].
        values: the same shape.
        lengths: tokens in each row's prefix cache.
        slots: stored values of skipped runs.
        places: views into the buffers that a forward over a window needs, made once for each.
        scratch: what a forward of so many rows and columns only passes through.
        recordings: forwards that are replayed, see :mod:`fdllm.fast.cuda_graphs`.
        sightings: how often each of them was asked for before.
        fused: compiled kernels that its forwards go through, where there are some.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_rows: int,
        capacity: int,
        block_size: int,
        like: Tensor,
        fused: Fused | None = None,
    ) -> None:
        shape = (spec.num_layers, num_rows, spec.num_kv_heads, capacity, spec.head_dim)
        # Zeros, not empty: attention multiplies masked-out positions by 0, and 0 * NaN is NaN.
        self.keys = zeros(shape, like)
        self.values = zeros(shape, like)
        self.lengths = [0] * num_rows
        self.block_size = block_size
        self.slots = ReuseSlots(num_rows, block_size, spec.hidden_size, like)
        self.places: dict[Hashable, Any] = {}
        self.scratch: dict[tuple[int, int], Any] = {}
        self.recordings: dict[Hashable, Any] = {}
        self.sightings: Counter[Hashable] = Counter()
        self.fused = fused

    @property
    def num_rows(self) -> int:
        """Rows this cache has room for."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens each row has room for."""
        return self.keys.shape[3]

    def reset(self, row: int) -> None:
        """Hand the slot to a new request."""
        self.lengths[row] = 0
        self.slots.forget(row)

    def commit(self, row: int, num_tokens: int) -> None:
        """Count ``num_tokens`` more tokens as prefix; the row's block is finished."""
        self.lengths[row] += num_tokens
        self.slots.forget(row)

    def save(self, row: int) -> Snapshot:
        """Copy a row's current block."""
        at = slice(self.lengths[row], self.lengths[row] + self.block_size)
        return Snapshot(
            self.lengths[row],
            self.keys[:, row, :, at].clone(),
            self.values[:, row, :, at].clone(),
            self.slots.save(row),
        )

    def restore(self, row: int, saved: Snapshot) -> None:
        """Put a row back to where its block was saved; later blocks are forgotten."""
        at = slice(saved.length, saved.length + self.block_size)
        self.lengths[row] = saved.length
        self.keys[:, row, :, at] = saved.keys
        self.values[:, row, :, at] = saved.values
        self.slots.restore(row, saved.slots)


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of zeros of another's type and device.

    On a CPU numpy's come as the kernel hands out memory, in large pages and when they are first
    touched; torch writes them at once, page by page, which takes a second for each half gigabyte.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    num_bytes = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(like.dtype).view(shape)


@dataclass(frozen=True)
class Window:
    """Where one forward reads and writes: which rows, and which positions of each.

    Attributes:
        rows: slots of the cache.
        starts: first position written, one a row.
        width: positions written, the same for all rows.
        extents: keys visible to every query of the row: positions ``0 .. extent - 1``.
        causal_block: block size where queries see only their own and earlier blocks *within* the
            window (PREFILL of several blocks); None where they see all of it.
        stores: whether a plan's runs are stored for these columns.
    """

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    extents: tuple[int, ...]
    causal_block: int | None = None
    stores: bool = True
    adjacent: bool = field(init=False)
    """The rows stand side by side in the cache, so that their keys need no copy."""
    uniform: bool = field(init=False)
    """And have equal starts and extents, so that they need no mask."""

    def __post_init__(self) -> None:
        adjacent = self.rows == tuple(range(self.rows[0], self.rows[0] + len(self.rows)))
        object.__setattr__(self, "adjacent", adjacent)
        same = len(set(self.starts)) == 1 and len(set(self.extents)) == 1
        object.__setattr__(self, "uniform", adjacent and same)

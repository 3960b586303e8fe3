"""The state of a batch inside the model: keys, values and layer outputs, with one owner.

A row's keys and values lie in one buffer: the prefix cache in positions ``0 .. length - 1`` (exact)
and right behind it the block cache (approximate between refreshes). A COMMIT therefore writes where
the block cache stood and only moves ``length``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fdllm.core.forward_batch import Window
from fdllm.core.layer_output_cache import LayerOutputCache, SavedOutputs
from fdllm.core.model_spec import ModelSpec


@dataclass(frozen=True)
class Snapshot:
    """A row's current block: what has to come back before another continuation is tried."""

    length: int  # tokens of the prefix
    keys: Tensor  # the block cache's keys [layers, kv heads, block, head dim]
    values: Tensor  # its values
    outputs: SavedOutputs  # what the layer outputs' cache held


class RowCache:
    """Keys, values and layer outputs of every row, preallocated.

    Attributes:
        keys: [layers, rows, kv heads, capacity, head dim].
        values: the same shape.
        lengths: tokens in each row's prefix cache.
        outputs: stored values of skipped runs.
        spec: the model's shape.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        num_rows: int,
        capacity: int,
        block_size: int,
        like: Tensor,
    ) -> None:
        shape = (spec.num_layers, num_rows, spec.num_kv_heads, capacity, spec.head_dim)
        # Zeros, not empty: attention multiplies masked-out positions by 0, and 0 * NaN is NaN.
        self.keys = zeros(shape, like)
        self.values = zeros(shape, like)
        self.lengths = [0] * num_rows
        self.block_size = block_size
        self.outputs = LayerOutputCache(num_rows, block_size, spec.hidden_size, like)
        self.spec = spec
        self._overwritten: dict[int, Tensor] = {}

    @property
    def num_rows(self) -> int:
        """Rows this cache has room for."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens each row has room for."""
        return self.keys.shape[3]

    def serves(self, num_rows: int, capacity: int, block_size: int) -> bool:
        """Whether it will do where another was asked for."""
        same = (self.num_rows, self.block_size) == (num_rows, block_size)
        return same and self.capacity >= capacity

    def reset(self, row: int) -> None:
        """Hand the row to a new request."""
        self.lengths[row] = 0
        self.outputs.forget(row)

    def commit(self, row: int, num_tokens: int) -> None:
        """Count ``num_tokens`` more tokens as prefix; the row's block is finished."""
        self.lengths[row] += num_tokens
        self.outputs.forget(row)

    def overwritten(self, window: Window) -> Tensor | None:
        """Where a forward copies what a draft of a whole block is about to write over.

        [keys and values, layers, rows, kv heads, block, head dim], of all rows at their places;
        None where nothing else would ever read it.
        """
        if not window.draft or window.width != self.block_size:
            return None
        if window.draft not in self._overwritten:
            layers, rows, kv, _, dim = self.keys.shape
            made = self.keys.new_empty(2, layers, rows, kv, self.block_size, dim)
            self._overwritten[window.draft] = made
        return self._overwritten[window.draft]

    def draw_back(self, row: int, draft: int) -> None:
        """Put a row's block back to what it was ahead of a draft of the whole block."""
        at = slice(self.lengths[row], self.lengths[row] + self.block_size)
        self.keys[:, row, :, at], self.values[:, row, :, at] = self._overwritten[draft][:, :, row]

    def save(self, row: int) -> Snapshot:
        """Copy a row's current block."""
        at = slice(self.lengths[row], self.lengths[row] + self.block_size)
        return Snapshot(
            self.lengths[row],
            self.keys[:, row, :, at].clone(),
            self.values[:, row, :, at].clone(),
            self.outputs.save(row),
        )

    def restore(self, row: int, saved: Snapshot) -> None:
        """Put a row back to where its block was saved; later blocks are forgotten."""
        at = slice(saved.length, saved.length + self.block_size)
        self.lengths[row] = saved.length
        self.keys[:, row, :, at] = saved.keys
        self.values[:, row, :, at] = saved.values
        self.outputs.restore(row, saved.outputs)


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A tensor of zeros of another's type and device.

    On a CPU numpy's come as the kernel hands out memory, in large pages and when they are first
    touched; torch writes them at once, page by page, which takes a second for each half gigabyte.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    num_bytes = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(like.dtype).view(shape)

"""A bounded pool of finished blocks' keys and values, shared between requests.

Requests of one subject begin with the same few-shot text, and the choices of one question share
the whole question. Attention is block-causal, so the keys and values of a full block depend on
nothing behind it: they are computed once, kept here, and copied into each row that begins with the
same tokens. Exact: what is copied is what the row would have computed.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from fdllm.core.model_spec import ModelSpec
from fdllm.core.row_task import CacheRow
from fdllm.errors import UsageError


@dataclass
class _Block:
    """A finished block: its node in the tree, its keys and values of every layer."""

    node: int
    data: Tensor


class PrefixPool:
    """Blocks in a tree: a block is known by the block ahead of it and its own tokens.

    Eviction is least recently used. A match touches a chain from its end to its beginning, so a
    block is never evicted before those that build on it.

    Args:
        spec: the model's shape.
        block_size: tokens of a block.
        num_bytes: memory the pool may take; at least one block.
        like: a tensor of the cache's type and device.

    Raises:
        UsageError: not even one block fits.
    """

    def __init__(self, spec: ModelSpec, block_size: int, num_bytes: float, like: Tensor) -> None:
        shape = (spec.num_layers, 2, spec.num_kv_heads, block_size, spec.head_dim)
        one = like.element_size() * math.prod(shape)
        self.num_blocks = int(num_bytes // one)
        if self.num_blocks < 1:
            raise UsageError(
                f"a prefix cache of {num_bytes / 2**30:.3g} GiB holds not even one block of this "
                f"model ({one / 2**30:.3g} GiB); raise --prefix-cache-gib or set it to 0"
            )
        self.block_size = block_size
        self._shape = shape
        self._like = like
        # Blocks are allocated as they are first used: a short run never pays for the whole pool.
        self._blocks: OrderedDict[tuple[int, tuple[int, ...]], _Block] = OrderedDict()
        self._next_node = 1

    def __len__(self) -> int:
        return len(self._blocks)

    def load(self, row: CacheRow, ids: tuple[int, ...]) -> int:
        """Copy the known blocks that ``ids`` begin with behind the row's prefix.

        Returns:
            How many of the tokens they are.
        """
        keys, cache = [], row.cache
        for at in range(0, len(ids), self.block_size):
            key = (row.node, ids[at : at + self.block_size])
            if key not in self._blocks:
                break
            known, position = self._blocks[key], row.length
            there = slice(position, position + self.block_size)
            cache.keys[:, row.index, :, there] = known.data[:, 0]  # [layers, kv heads, block, dim]
            cache.values[:, row.index, :, there] = known.data[:, 1]
            cache.commit(row.index, self.block_size)
            row.node = known.node
            keys.append(key)
        for key in reversed(keys):
            self._blocks.move_to_end(key)
        return len(keys) * self.block_size

    def keep(self, row: CacheRow, ids: tuple[int, ...]) -> None:
        """Take the blocks of ``ids``, with which the row's prefix ends now."""
        for at in range(0, len(ids), self.block_size):
            key = (row.node, ids[at : at + self.block_size])
            known = self._blocks.get(key)
            if known is None:
                position = row.length - len(ids) + at
                known = self._blocks[key] = self._new(row, position)
            else:
                self._blocks.move_to_end(key)
            row.node = known.node

    def _new(self, row: CacheRow, position: int) -> _Block:
        """The block at ``position`` of a row, in place of the one that was used least recently."""
        full = len(self._blocks) == self.num_blocks
        data = (
            self._blocks.popitem(last=False)[1].data if full else self._like.new_empty(self._shape)
        )
        there = slice(position, position + self.block_size)
        data[:, 0] = row.cache.keys[:, row.index, :, there]
        data[:, 1] = row.cache.values[:, row.index, :, there]
        self._next_node += 1
        return _Block(self._next_node - 1, data)

"""A bounded pool of finished blocks' keys and values, shared between requests.

Requests of one subject begin with the same few-shot text, and the choices of one question share
the whole question. Attention is block-causal, so the keys and values of a full block depend on
nothing behind it: they are computed once, kept here, and copied into each row that begins with the
same tokens. Exact: what is copied is what the row would have computed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

from fdllm.core.cache import RowCache
from fdllm.core.model_spec import ModelSpec
from fdllm.errors import UsageError

ROOT = 0
"""The node ahead of the first block."""


@dataclass
class _Entry:
    node: int
    block_index: int


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
        one = like.element_size()
        for length in shape:
            one *= length
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
        self._memory: list[Tensor] = []
        self._entries: OrderedDict[tuple[int, tuple[int, ...]], _Entry] = OrderedDict()
        self._next_node = ROOT + 1

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, parent: int, ids: tuple[int, ...]) -> list[int]:
        """Nodes of the longest known chain of whole blocks of ``ids`` behind ``parent``."""
        chain = []
        for at in range(0, len(ids), self.block_size):
            entry = self._entries.get((parent, ids[at : at + self.block_size]))
            if entry is None:
                break
            chain.append((parent, ids[at : at + self.block_size]))
            parent = entry.node
        for key in reversed(chain):
            self._entries.move_to_end(key)
        return [self._entries[key].node for key in chain]

    def load(self, parent: int, ids: tuple[int, ...], cache: RowCache, row: int) -> int:
        """Copy one known block behind the row's prefix and return its node."""
        entry = self._entries[parent, ids]
        at = cache.lengths[row]
        block = self._memory[entry.block_index]
        cache.keys[:, row, :, at : at + self.block_size] = block[:, 0]
        cache.values[:, row, :, at : at + self.block_size] = block[:, 1]
        return entry.node

    def keep(self, parent: int, ids: tuple[int, ...], cache: RowCache, row: int, at: int) -> int:
        """Take a block that a row has just computed at position ``at``; return its node."""
        key = (parent, ids)
        known = self._entries.get(key)
        if known is not None:
            self._entries.move_to_end(key)
            return known.node
        if len(self._memory) < self.num_blocks:
            block_index = len(self._memory)
            self._memory.append(self._like.new_empty(self._shape))
        else:
            block_index = self._entries.popitem(last=False)[1].block_index
        block = self._memory[block_index]
        block[:, 0] = cache.keys[:, row, :, at : at + self.block_size]
        block[:, 1] = cache.values[:, row, :, at : at + self.block_size]
        node = self._next_node
        self._next_node += 1
        self._entries[key] = _Entry(node, block_index)
        return node

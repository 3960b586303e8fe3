"""What a forward only passes through: queries, fresh keys, projections, in buffers made once."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from fdllm.core.cache import RowCache
from fdllm.core.model_spec import ModelSpec
from fdllm.fast.kernels import MOST_DIM, Fused, FusedBuffers

Parts = tuple[Tensor, ...]
_MOST = 64  # sizes remembered: prompts come in many


class Scratch:
    """Buffers of a forward of so many rows and columns; each layer overwrites what is in them.

    Args:
        spec: the model's shape.
        rows: rows of the forward.
        width: columns of each row.
        like: a tensor of the weights' type and device.
        fused: compiled kernels, where there are some.

    Attributes:
        fused: norms, activations and attention through compiled kernels, where they serve such
            heads.
        query: [rows, kv heads, columns * group, head dim]. A column's heads of one group stand
            side by side, so that keys need no copy for each of them and attention's result none to
            become one vector a column.
        q_size: of a column's queries, heads * head dim.
        query_out: where rotated queries are written, [rows, columns, kv heads, group, head dim].
    """

    def __init__(
        self, spec: ModelSpec, rows: int, width: int, like: Tensor, fused: Fused | None = None
    ) -> None:
        kv, dim = spec.num_kv_heads, spec.head_dim
        self._group = spec.num_heads // kv
        self.q_size = spec.num_heads * dim
        self.width = width
        self._spec, self._like, self._rows = spec, like, rows
        self.query = like.new_empty(rows, kv, width * self._group, dim)
        split = self.query.view(rows, kv, width, self._group, dim)
        self.query_out = pairs_of(split.permute(0, 2, 1, 3, 4))
        self.fused = None
        # However wide the forward: torch's passes round otherwise, and a row's numbers must not
        # depend on how many rows share its forward.
        if fused is not None and dim <= MOST_DIM:
            self.fused = FusedBuffers(fused, spec, rows=rows, width=width, like=like)

    @cached_property
    def fresh(self) -> tuple[Tensor, Tensor]:
        """Keys and values that have no place of their own, [rows, columns, kv heads, head dim]."""
        shape = (2, self._rows, self.width, self._spec.num_kv_heads, self._spec.head_dim)
        keys, values = self._like.new_empty(shape).unbind(0)
        return keys, values

    @cached_property
    def heads(self) -> Tensor:
        """Where a projection to queries, keys and values may go, [rows * columns, heads * dim]."""
        size = (self._spec.num_heads + 2 * self._spec.num_kv_heads) * self._spec.head_dim
        return self._like.new_empty(self._rows * self.width, size)

    @cached_property
    def gates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where a projection to gate and up may go, [rows * columns, 2 * size]; and its halves."""
        size = self._spec.intermediate_size
        both = self._like.new_empty(self._rows * self.width, 2 * size)
        return both, both[:, :size], both[:, size:]

    def split(self, heads: Tensor) -> Parts:
        """A projection in complex pairs, cut by heads.

        Not kept from one layer to the next: in float32 the pairs are views of ``heads``, in
        narrower types they are copies, which would stay as they were when ``heads`` is written.

        Args:
            heads: [rows * columns, heads * head dim], of all heads or of keys and values only.

        Returns:
            Queries [rows, columns, kv heads, group, head dim / 2], where there are some; keys and
            values [rows, columns, kv heads, head dim / 2].
        """
        kv, dim = self._spec.num_kv_heads, self._spec.head_dim
        shape = (self._rows, self.width, -1, dim // 2, 2)
        pairs = torch.view_as_complex(heads.float().view(shape))
        if pairs.shape[2] == 2 * kv:
            return pairs.split_with_sizes((kv, kv), 2)
        query, keys, values = pairs.split_with_sizes((kv * self._group, kv, kv), 2)
        return query.unflatten(2, (kv, self._group)), keys, values


def scratch_of(cache: RowCache, spec: ModelSpec, rows: int, width: int) -> Scratch:
    """The buffers that all forwards of so many rows and columns share."""
    if (rows, width) not in cache.scratch:
        if len(cache.scratch) >= _MOST:
            cache.scratch.clear()  # places that are still used hold their own
        cache.scratch[rows, width] = Scratch(spec, rows, width, cache.keys, cache.fused)
    made: Scratch = cache.scratch[rows, width]
    return made


def pairs_of(x: Tensor) -> Tensor:
    """Where complex pairs are written: a view of ``x`` as such, or ``x`` of a narrower type.

    Raises:
        ValueError: ``x`` cannot be seen as pairs where it lies; a copy would take what is written.
    """
    if x.dtype != torch.float32:
        return x
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    if pairs.data_ptr() != x.data_ptr():
        raise ValueError(f"pairs of a tensor with strides {x.stride()} would be a copy")
    return pairs

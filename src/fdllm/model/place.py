"""Where a forward reads and writes: positions, rotary factors, keys and values of every layer.

A place is made once for a window and serves every layer, and every later forward over the same
window: its views into the cache's buffers stay valid, as the buffers are never moved. What a
forward only passes through (queries, fresh keys) lies in a :class:`Scratch` that all places of one
size share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.model.cache import RowCache, Window
from fdllm.model.layers import block_causal_mask
from fdllm.model.spec import ModelSpec

Parts = tuple[Tensor, ...]


class Scratch:
    """Buffers of a forward of so many rows and columns; each layer overwrites what is in them.

    Args:
        spec: the model's shape.
        rows: rows of the forward.
        width: columns of each row.
        like: a tensor of the weights' type and device.

    Attributes:
        query: [rows, kv heads, columns * group, head dim]. A column's heads of one group stand
            side by side, so that keys need no copy for each of them and attention's result none to
            become one vector a column.
        query_out: where rotated queries are written, [rows, columns, kv heads, group, head dim].
    """

    def __init__(self, spec: ModelSpec, rows: int, width: int, like: Tensor) -> None:
        kv, dim = spec.num_kv_heads, spec.head_dim
        self._group = spec.num_heads // kv
        self._spec, self._like, self._rows, self._width = spec, like, rows, width
        self.query = like.new_empty(rows, kv, width * self._group, dim)
        split = self.query.view(rows, kv, width, self._group, dim)
        self.query_out = _target(split.permute(0, 2, 1, 3, 4))
        self._fresh: tuple[Tensor, Tensor] | None = None
        self._heads: Tensor | None = None
        self._parts: Parts = ()
        self._gates: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def fresh(self) -> tuple[Tensor, Tensor]:
        """Keys and values that have no place of their own, [rows, columns, kv heads, head dim]."""
        if self._fresh is None:
            spec = self._spec
            shape = (2, self._rows, self._width, spec.num_kv_heads, spec.head_dim)
            keys, values = self._like.new_empty(shape).unbind(0)
            self._fresh = (keys, values)
        return self._fresh

    @property
    def heads(self) -> Tensor:
        """Where a projection to queries, keys and values may go, [rows * columns, heads * dim]."""
        if self._heads is None:
            spec = self._spec
            size = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim
            self._heads = self._like.new_empty(self._rows * self._width, size)
            self._parts = self._cut(self._heads)
        return self._heads

    @property
    def gates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where a projection to gate and up may go, [rows * columns, 2 * size]; and its halves."""
        if self._gates is None:
            size = self._spec.intermediate_size
            both = self._like.new_empty(self._rows * self._width, 2 * size)
            self._gates = (both, both[:, :size], both[:, size:])
        return self._gates

    def split(self, heads: Tensor) -> Parts:
        """A projection in complex pairs, cut by heads.

        Args:
            heads: [rows * columns, heads * head dim], of all heads or of keys and values only.

        Returns:
            Queries [rows, columns, kv heads, group, head dim / 2], where there are some; keys and
            values [rows, columns, kv heads, head dim / 2].
        """
        return self._parts if heads is self._heads and self._parts else self._cut(heads)

    def _cut(self, heads: Tensor) -> Parts:
        kv, dim = self._spec.num_kv_heads, self._spec.head_dim
        shape = (self._rows, self._width, -1, dim // 2, 2)
        pairs = torch.view_as_complex(heads.float().view(shape))
        if pairs.shape[2] == 2 * kv:
            return pairs.split_with_sizes((kv, kv), 2)
        query, keys, values = pairs.split_with_sizes((kv * self._group, kv, kv), 2)
        return query.unflatten(2, (kv, self._group)), keys, values


class _Attending:
    """What both kinds of place share: queries in, what they see out."""

    def __init__(self, scratch: Scratch, factors: Tensor, mask: Tensor | None) -> None:
        self.scratch = scratch
        self.split = scratch.split
        self.factors = factors
        self._query_factors = factors.unsqueeze(-2)
        self._mask = None if mask is None else _additive(mask, scratch.query.dtype)

    def rotate_query(self, query: Tensor) -> None:
        """Take the queries, not yet rotated."""
        _rotate(query, self._query_factors, self.scratch.query_out)

    def _attend(self, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries see, [rows, columns * group, kv heads, head dim]."""
        query, mask = self.scratch.query, self._mask
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask).transpose(1, 2)


class Place(_Attending):
    """A window of a cache, or some columns of it.

    Args:
        cache: keys and values of all rows.
        window: the rows and positions.
        factors: rotary factors at the window's positions, complex, [columns, 1, head dim / 2] or
            [rows, columns, 1, head dim / 2].
        spec: the model's shape.
        starts: each row's first column inside its block, where the slots are addressed.
        only: offsets inside the window, where not all of its columns are computed.
    """

    def __init__(
        self,
        cache: RowCache,
        window: Window,
        factors: Tensor,
        spec: ModelSpec,
        starts: Sequence[int],
        *,
        only: list[int] | None = None,
    ) -> None:
        self.cache = cache
        self.window = window
        self.columns = [range(start, start + window.width) for start in starts]
        self.only = only
        self._all_factors, self._spec = factors, spec
        width = window.width if only is None else len(only)
        num_rows, size = len(window.rows), (len(window.rows), width)
        scratch = cache.scratch.get(size)
        if scratch is None:
            scratch = cache.scratch[size] = Scratch(spec, *size, cache.keys)
        chosen = factors if only is None else factors[..., only, :, :]
        super().__init__(scratch, chosen, self._make_mask(spec.num_heads // spec.num_kv_heads))
        self._fresh: tuple[Tensor, Tensor] | None = None
        self._at: tuple[Tensor, Tensor] | None = None
        if window.uniform:
            rows = slice(window.rows[0], window.rows[0] + num_rows)
            seen = slice(0, window.extents[0])
        else:
            rows, seen = slice(0, cache.num_rows), slice(0, max(window.extents))
        self._keys = cache.keys[:, rows, :, seen].unbind(0)
        self._values = cache.values[:, rows, :, seen].unbind(0)
        if window.uniform and only is None:
            span = slice(window.starts[0], window.starts[0] + width)
            self._keys_out = _target(cache.keys[:, rows, :, span].transpose(2, 3)).unbind(0)
            self._values_out = _target(cache.values[:, rows, :, span].transpose(2, 3)).unbind(0)
        else:
            self._fresh = keys, values = scratch.fresh
            self._keys_out = (_target(keys),) * len(self._keys)
            self._values_out = (_target(values),) * len(self._keys)
            offsets = range(width) if only is None else only
            at = [[start + offset for offset in offsets] for start in window.starts]
            self._at = (
                torch.tensor(window.rows, device=keys.device)[:, None],
                torch.tensor(at, device=keys.device),
            )
        everyone = tuple(range(cache.num_rows))
        self._pick = (
            None
            if window.uniform or window.rows == everyone
            else torch.tensor(window.rows, device=cache.keys.device)
        )

    def narrow(self, only: list[int]) -> Place:
        """The same place, for some columns of the window only."""
        starts = [columns.start for columns in self.columns]
        return Place(self.cache, self.window, self._all_factors, self._spec, starts, only=only)

    def _make_mask(self, group: int) -> Tensor | None:
        window, device = self.window, self.cache.keys.device
        if window.causal_block is not None:
            extent = window.extents[0]
            mask = block_causal_mask(window.width, extent, window.causal_block, device)
            return (mask if self.only is None else mask[self.only]).repeat_interleave(group, 0)
        if window.uniform:
            return None
        # Rows of different lengths share one call. What lies behind a row's end weighs exactly 0.
        keys = torch.arange(max(window.extents), device=device)
        ends = torch.tensor(window.extents, device=device)
        return (keys < ends[:, None])[:, None, None, :]

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write a layer's keys, not yet rotated, and values."""
        _rotate(keys, self.factors, self._keys_out[layer])
        _copy(values, self._values_out[layer])
        if self._fresh is not None and self._at is not None:
            rows, at = self._at
            self.cache.keys[layer][rows, :, at] = self._fresh[0]
            self.cache.values[layer][rows, :, at] = self._fresh[1]

    def attend(self, layer: int) -> Tensor:
        """What the queries see of a layer, [rows, columns * group, kv heads, head dim]."""
        keys, values = self._keys[layer], self._values[layer]
        if self._pick is not None:
            keys, values = keys[self._pick], values[self._pick]
        return self._attend(keys, values)


class DensePlace(_Attending):
    """Whole sequences without a cache, under an explicit mask: each layer sees its own columns.

    Args:
        spec: the model's shape.
        factors: rotary factors, as :class:`Place` takes them.
        shape: rows and columns.
        like: a tensor of the weights' type and device.
        mask: True where a query may see a key, as :meth:`fdllm.model.network.Network.dense`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        factors: Tensor,
        shape: Sequence[int],
        like: Tensor,
        mask: Tensor | None,
    ) -> None:
        rows, columns = shape
        group = spec.num_heads // spec.num_kv_heads
        grouped = None if mask is None else mask.repeat_interleave(group, -2)
        super().__init__(Scratch(spec, rows, columns, like), factors, grouped)
        fresh = like.new_empty(2, rows, spec.num_kv_heads, columns, spec.head_dim)
        self._kv = fresh.unbind(0)
        self._kv_out = _target(fresh.transpose(2, 3)).unbind(0)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> None:  # noqa: ARG002 - any layer's
        """Take a layer's keys and values."""
        _rotate(keys, self.factors, self._kv_out[0])
        _copy(values, self._kv_out[1])

    def attend(self, layer: int) -> Tensor:  # noqa: ARG002
        """What the queries see."""
        return self._attend(*self._kv)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as attention adds it: 0 where a key is seen. Made once, not once a layer."""
    unseen = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return unseen.masked_fill_(~mask, float("-inf"))


def _target(x: Tensor) -> Tensor:
    """Where complex pairs are written: a view of ``x`` as such, or ``x`` of a narrower type."""
    if x.dtype != torch.float32:
        return x
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _rotate(x: Tensor, factors: Tensor, out: Tensor) -> None:
    """Rotary embedding of complex pairs ``x`` [rows, columns, ..., head dim / 2] into ``out``."""
    if out.is_complex():
        torch.mul(x, factors, out=out)
    else:
        out.copy_(torch.view_as_real(x * factors).flatten(-2))


def _copy(x: Tensor, out: Tensor) -> None:
    out.copy_(x if out.is_complex() else torch.view_as_real(x).flatten(-2))

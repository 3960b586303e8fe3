"""Where a forward reads and writes: positions, rotary factors, keys and values of every layer.

A place is made once for a window and serves every layer, and every later forward over the same
window: its views into the cache's buffers stay valid, as the buffers are never moved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.model.cache import RowCache, Window
from fdllm.model.layers import block_causal_mask
from fdllm.model.spec import ModelSpec


class Place:
    """A window of a cache, or some columns of it.

    Args:
        cache: keys and values of all rows.
        window: the rows and positions.
        factors: rotary factors at the window's positions, complex, [columns, 1, head dim / 2] or
            [rows, columns, 1, head dim / 2].
        num_heads: query heads.
        starts: each row's first column inside its block, where the slots are addressed.
        only: offsets inside the window, where not all of its columns are computed.
    """

    def __init__(
        self,
        cache: RowCache,
        window: Window,
        factors: Tensor,
        num_heads: int,
        starts: Sequence[int],
        *,
        only: list[int] | None = None,
    ) -> None:
        self.cache = cache
        self.window = window
        self.columns = [range(start, start + window.width) for start in starts]
        self.only = only
        self.factors = factors if only is None else factors[..., only, :, :]
        self._num_heads = num_heads
        width = window.width if only is None else len(only)
        num_rows, kv, dim = len(window.rows), cache.keys.shape[2], cache.keys.shape[4]
        query = cache.keys.new_empty(num_rows, num_heads, width, dim)
        self._query_out = _target(query.transpose(1, 2))
        self._query = query.view(num_rows, kv, -1, dim)
        self._pairs = (num_rows, width, -1, dim // 2, 2)
        self._shape = (num_rows, num_heads, width, dim)
        self._mask = self._make_mask(num_heads // kv, width)
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
            fresh = cache.keys.new_empty(2, num_rows, width, kv, dim)
            self._fresh = (fresh[0], fresh[1])
            self._keys_out = (_target(fresh[0]),) * len(self._keys)
            self._values_out = (_target(fresh[1]),) * len(self._keys)
            offsets = range(width) if only is None else only
            at = [[start + offset for offset in offsets] for start in window.starts]
            self._at = (
                torch.tensor(window.rows, device=fresh.device)[:, None],
                torch.tensor(at, device=fresh.device),
            )
        everyone = tuple(range(cache.num_rows))
        self._pick = (
            None
            if window.uniform or window.rows == everyone
            else torch.tensor(window.rows, device=query.device)
        )

    def narrow(self, only: list[int]) -> Place:
        """The same place, for some columns of the window only."""
        starts = [columns.start for columns in self.columns]
        return Place(self.cache, self.window, self.factors, self._num_heads, starts, only=only)

    def _make_mask(self, group: int, width: int) -> Tensor | None:
        window, device = self.window, self.cache.keys.device
        if window.causal_block is not None:
            extent = window.extents[0]
            mask = block_causal_mask(window.width, extent, window.causal_block, device)
            return (mask if self.only is None else mask[self.only]).repeat(group, 1)
        if window.uniform:
            return None
        # Rows of different lengths share one call. What lies behind a row's end weighs exactly 0.
        keys = torch.arange(max(window.extents), device=device)
        ends = torch.tensor(window.extents, device=device)
        return (keys < ends[:, None])[:, None, None, :].expand(-1, -1, group * width, -1)

    def split(self, heads: Tensor, numbers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """A projection [rows * columns, heads * head dim] in complex pairs, cut by heads.

        Returns:
            [rows, columns, heads, head dim / 2] for each number of heads.
        """
        pairs = torch.view_as_complex(heads.float().view(self._pairs))
        return pairs.split_with_sizes(numbers, 2)

    def rotate_query(self, query: Tensor) -> None:
        """Take the queries, not yet rotated."""
        _rotate(query, self.factors, self._query_out)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write a layer's keys, not yet rotated, and values."""
        _rotate(keys, self.factors, self._keys_out[layer])
        _copy(values, self._values_out[layer])
        if self._fresh is not None and self._at is not None:
            rows, at = self._at
            self.cache.keys[layer][rows, :, at] = self._fresh[0]
            self.cache.values[layer][rows, :, at] = self._fresh[1]

    def attend(self, layer: int) -> Tensor:
        """What the queries see of a layer, [rows, columns, heads, head dim]."""
        keys, values = self._keys[layer], self._values[layer]
        if self._pick is not None:
            keys, values = keys[self._pick], values[self._pick]
        mixed = F.scaled_dot_product_attention(self._query, keys, values, attn_mask=self._mask)
        return mixed.view(self._shape).transpose(1, 2)


class DensePlace:
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
        self.factors = factors
        group = spec.num_heads // spec.num_kv_heads
        self._mask = None if mask is None else mask.repeat(*[1] * (mask.dim() - 2), group, 1)
        query = like.new_empty(rows, spec.num_heads, columns, spec.head_dim)
        self._query_out = _target(query.transpose(1, 2))
        self._query = query.view(rows, spec.num_kv_heads, group * columns, spec.head_dim)
        fresh = like.new_empty(2, rows, spec.num_kv_heads, columns, spec.head_dim)
        self._kv = fresh.unbind(0)
        self._kv_out = _target(fresh.transpose(2, 3)).unbind(0)
        self._pairs = (rows, columns, -1, spec.head_dim // 2, 2)
        self._shape = (rows, spec.num_heads, columns, spec.head_dim)

    def split(self, heads: Tensor, numbers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """As :meth:`Place.split`."""
        pairs = torch.view_as_complex(heads.float().view(self._pairs))
        return pairs.split_with_sizes(numbers, 2)

    def rotate_query(self, query: Tensor) -> None:
        """Take the queries."""
        _rotate(query, self.factors, self._query_out)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> None:  # noqa: ARG002 - any layer's
        """Take a layer's keys and values."""
        _rotate(keys, self.factors, self._kv_out[0])
        _copy(values, self._kv_out[1])

    def attend(self, layer: int) -> Tensor:  # noqa: ARG002
        """What the queries see."""
        keys, values = self._kv
        mixed = F.scaled_dot_product_attention(self._query, keys, values, attn_mask=self._mask)
        return mixed.view(self._shape).transpose(1, 2)


def _target(x: Tensor) -> Tensor:
    """Where complex pairs are written: a view of ``x`` as such, or ``x`` of a narrower type."""
    if x.dtype != torch.float32:
        return x
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _rotate(x: Tensor, factors: Tensor, out: Tensor) -> None:
    """Rotary embedding of complex pairs ``x`` [rows, columns, heads, head dim / 2] into ``out``."""
    if out.is_complex():
        torch.mul(x, factors, out=out)
    else:
        out.copy_(torch.view_as_real(x * factors).flatten(-2))


def _copy(x: Tensor, out: Tensor) -> None:
    out.copy_(x if out.is_complex() else torch.view_as_real(x).flatten(-2))

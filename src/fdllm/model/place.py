"""Where a forward reads and writes: positions, rotary factors, keys and values of every layer.

A place is made once for a window and serves every layer, and every later forward over the same
window: its views into the cache's buffers stay valid, as the buffers are never moved. What a
forward only passes through lies in a :class:`~fdllm.model.scratch.Scratch` that all places of one
size share.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.model.cache import RowCache, Window
from fdllm.model.layers import block_causal_mask
from fdllm.model.scratch import Scratch, pairs_of, scratch_of
from fdllm.model.spec import ModelSpec


class _Attending:
    """What both kinds of place share: queries in, what they see out."""

    def __init__(self, scratch: Scratch, factors: Tensor, mask: Tensor | None) -> None:
        self.scratch = scratch
        self.factors = factors
        self._q_size = scratch.query.shape[1] * (scratch.query.shape[2] // scratch.width)
        self._q_size *= scratch.query.shape[3]
        self._query_factors = factors.unsqueeze(-2)
        self._mask = None if mask is None else _additive(mask, scratch.query.dtype)

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """Attention of a layer.

        Args:
            layer: its index.
            heads: queries, keys and values, not yet rotated, [rows * columns, heads * head dim].

        Returns:
            What each column sees, its heads group by group, [rows * columns, heads * head dim].
        """
        query, keys, values = self.scratch.split(heads)
        _rotate(query, self._query_factors, self.scratch.query_out)
        self._write(layer, keys, values)
        seen = self._attend(layer).transpose(1, 2)
        return seen.reshape(-1, self._q_size)

    def keep(self, layer: int, heads: Tensor) -> None:
        """Write a layer's keys and values, given alone or behind its queries."""
        self._write(layer, *self.scratch.split(heads)[-2:])

    def _see(self, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries see, [rows, kv heads, columns * group, head dim]."""
        query, mask = self.scratch.query, self._mask
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        raise NotImplementedError

    def _attend(self, layer: int) -> Tensor:
        raise NotImplementedError


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

    Attributes:
        parts: the place itself, and that all columns are its own; see :class:`WidePlace`.
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
        self.parts = [(self, slice(None))]
        self.only = only
        self._all_factors, self._spec = factors, spec
        width = window.width if only is None else len(only)
        num_rows, size = len(window.rows), (len(window.rows), width)
        scratch = scratch_of(cache, spec, *size)
        chosen = factors if only is None else factors[..., only, :, :]
        super().__init__(scratch, chosen, self._make_mask(spec.num_heads // spec.num_kv_heads))
        self._fresh: tuple[Tensor, Tensor] | None = None
        self._at: tuple[Tensor, Tensor] | None = None
        rows = slice(0, cache.num_rows)
        if window.adjacent:
            rows = slice(window.rows[0], window.rows[0] + num_rows)
        seen = slice(0, max(window.extents))
        self._keys = cache.keys[:, rows, :, seen].unbind(0)
        self._values = cache.values[:, rows, :, seen].unbind(0)
        if window.uniform and only is None:
            span = slice(window.starts[0], window.starts[0] + width)
            self._keys_out = pairs_of(cache.keys[:, rows, :, span].transpose(2, 3)).unbind(0)
            self._values_out = pairs_of(cache.values[:, rows, :, span].transpose(2, 3)).unbind(0)
        else:
            self._fresh = keys, values = scratch.fresh
            self._keys_out = (pairs_of(keys),) * len(self._keys)
            self._values_out = (pairs_of(values),) * len(self._keys)
            offsets = range(width) if only is None else only
            at = [[start + offset for offset in offsets] for start in window.starts]
            self._at = (
                torch.tensor(window.rows, device=keys.device)[:, None],
                torch.tensor(at, device=keys.device),
            )
        self._pick = None
        if not window.adjacent:
            self._pick = torch.tensor(window.rows, device=cache.keys.device)

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

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        _rotate(keys, self.factors, self._keys_out[layer])
        _copy(values, self._values_out[layer])
        if self._fresh is not None and self._at is not None:
            rows, at = self._at
            self.cache.keys[layer][rows, :, at] = self._fresh[0]
            self.cache.values[layer][rows, :, at] = self._fresh[1]

    def _attend(self, layer: int) -> Tensor:
        keys, values = self._keys[layer], self._values[layer]
        if self._pick is not None:
            keys, values = keys[self._pick], values[self._pick]
        return self._see(keys, values)


class WidePlace:
    """Windows of different widths in one forward: products for all, attention for each.

    Args:
        places: one for each window, in the order of the forward's columns. A window may see what
            one ahead of it writes.
        scratch: of one row and all columns.

    Attributes:
        parts: places for which a plan's runs are stored, and where their columns stand.
    """

    def __init__(self, places: Sequence[Place], scratch: Scratch) -> None:
        self.scratch = scratch
        self._places = places
        self._sizes = [len(place.window.rows) * place.window.width for place in places]
        stops = list(accumulate(self._sizes))
        self.parts = [
            (place, slice(stop - size, stop))
            for place, size, stop in zip(places, self._sizes, stops, strict=True)
            if place.window.stores
        ]

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """Attention of a layer, as :meth:`Place.mix`."""
        parts = zip(self._places, heads.split(self._sizes), strict=True)
        return torch.cat([place.mix(layer, part) for place, part in parts])

    def keep(self, layer: int, heads: Tensor) -> None:
        """Write a layer's keys and values, as :meth:`Place.keep`."""
        for place, part in zip(self._places, heads.split(self._sizes), strict=True):
            place.keep(layer, part)


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
        self._kv_out = pairs_of(fresh.transpose(2, 3)).unbind(0)

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:  # noqa: ARG002 - any layer's
        _rotate(keys, self.factors, self._kv_out[0])
        _copy(values, self._kv_out[1])

    def _attend(self, layer: int) -> Tensor:  # noqa: ARG002
        return self._see(*self._kv)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as attention adds it: 0 where a key is seen. Made once, not once a layer."""
    unseen = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return unseen.masked_fill_(~mask, float("-inf"))


def _rotate(x: Tensor, factors: Tensor, out: Tensor) -> None:
    """Rotary embedding of complex pairs ``x`` [rows, columns, ..., head dim / 2] into ``out``."""
    if out.is_complex():
        torch.mul(x, factors, out=out)
    else:
        out.copy_(torch.view_as_real(x * factors).flatten(-2))


def _copy(x: Tensor, out: Tensor) -> None:
    out.copy_(x if out.is_complex() else torch.view_as_real(x).flatten(-2))

"""Where a forward reads and writes: positions, rotary factors, keys and values of every layer.

A place is made once for a window and serves every layer, and every later forward over the same
window: its views into the cache's buffers stay valid, as the buffers are never moved. What a
forward only passes through lies in a :class:`~fdllm.core.workspace.Scratch` that all places of one
size share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from fdllm.core.attention import TorchAttention, copy_pairs, rotate_pairs
from fdllm.core.cache import RowCache, Window
from fdllm.core.layers import block_causal_mask
from fdllm.core.model_spec import ModelSpec
from fdllm.core.workspace import Scratch, pairs_of, scratch_of
from fdllm.fast.kernels import FusedPlace


class Place(ABC):
    """A window of a cache, or some columns of it; :func:`place_of` makes one.

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
        positions: of each row's columns.
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
        self.cache, self.window, self.only = cache, window, only
        self.columns = [range(start, start + window.width) for start in starts]
        self.parts: list[tuple[Place, slice]] = [(self, slice(None))]
        self._all_factors, self._spec = factors, spec
        offsets = list(range(window.width)) if only is None else only
        self.positions = [[start + offset for offset in offsets] for start in window.starts]
        self.scratch = scratch_of(cache, spec, len(window.rows), len(offsets))
        self.factors = factors if only is None else factors[..., only, :, :]
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Make once what every layer and every forward over the window needs."""

    def narrow(self, only: list[int]) -> Place:
        """The same place, for some columns of the window only."""
        starts = [columns.start for columns in self.columns]
        return type(self)(self.cache, self.window, self._all_factors, self._spec, starts, only=only)

    @abstractmethod
    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """Attention of a layer.

        Args:
            layer: its index.
            heads: queries, keys and values, not yet rotated, [rows * columns, heads * head dim].

        Returns:
            What each column sees, its heads group by group, [rows * columns, heads * head dim];
            good until the next forward over as many rows and columns.
        """

    @abstractmethod
    def keep(self, layer: int, heads: Tensor) -> None:
        """Write a layer's keys and values, given alone or behind its queries."""


def place_of(
    cache: RowCache, window: Window, factors: Tensor, spec: ModelSpec, starts: Sequence[int]
) -> Place:
    """The place of a window: through compiled kernels where there are some."""
    compiled = scratch_of(cache, spec, len(window.rows), window.width).fused is not None
    kind = CompiledPlace if compiled else TorchPlace
    return kind(cache, window, factors, spec, starts)


class CompiledPlace(Place):
    """A place whose attention is one call of :mod:`fdllm.fast.kernels`.

    Of a prompt each block is a row, which sees the keys up to its own end.
    """

    def _prepare(self) -> None:
        if self.scratch.fused is None:
            raise ValueError("this forward has no compiled kernels")
        window, width = self.window, len(self.positions[0])
        block = window.causal_block or width
        slots = [row for row in window.rows for _ in range(0, width, block)]
        positions = [at[i : i + block] for at in self.positions for i in range(0, width, block)]
        extents = window.extents
        if window.causal_block is not None:
            extents = tuple(at[-1] + 1 for at in positions)
        factors = self.factors.expand(len(window.rows), width, 1, -1)
        self._fused = FusedPlace(
            self.scratch.fused,
            (self.cache.keys, self.cache.values),
            factors=factors.reshape(len(slots), block, 1, -1),
            slots=slots,
            positions=positions,
            extents=extents,
        )

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """As :meth:`Place.mix`."""
        return self._fused.mix(layer, heads)

    def keep(self, layer: int, heads: Tensor) -> None:
        """As :meth:`Place.keep`."""
        self._fused.keep(layer, heads)


class TorchPlace(TorchAttention, Place):
    """A place whose attention is torch's, through views into the cache."""

    def _prepare(self) -> None:
        cache, window, scratch, spec = self.cache, self.window, self.scratch, self._spec
        self.prepare(self._make_mask(spec.num_heads // spec.num_kv_heads))
        self._fresh: tuple[Tensor, Tensor] | None = None
        self._at: tuple[Tensor, Tensor] | None = None
        rows = slice(0, cache.num_rows)
        if window.adjacent:
            rows = slice(window.rows[0], window.rows[0] + len(window.rows))
        seen = slice(0, max(window.extents))
        self._keys = cache.keys[:, rows, :, seen].unbind(0)
        self._values = cache.values[:, rows, :, seen].unbind(0)
        if window.uniform and self.only is None:
            span = slice(window.starts[0], window.starts[0] + window.width)
            self._keys_out = pairs_of(cache.keys[:, rows, :, span].transpose(2, 3)).unbind(0)
            self._values_out = pairs_of(cache.values[:, rows, :, span].transpose(2, 3)).unbind(0)
        else:
            self._fresh = keys, values = scratch.fresh
            self._keys_out = (pairs_of(keys),) * len(self._keys)
            self._values_out = (pairs_of(values),) * len(self._keys)
            self._at = (
                torch.tensor(window.rows, device=keys.device)[:, None],
                torch.tensor(self.positions, device=keys.device),
            )
        self._pick = None
        if not window.adjacent:
            self._pick = torch.tensor(window.rows, device=cache.keys.device)

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
        rotate_pairs(keys, self.factors, self._keys_out[layer])
        copy_pairs(values, self._values_out[layer])
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
        self._q_size = scratch.q_size
        self._sizes = [len(place.window.rows) * place.window.width for place in places]
        stops = list(accumulate(self._sizes))
        self.parts = [
            (place, slice(stop - size, stop))
            for place, size, stop in zip(places, self._sizes, stops, strict=True)
            if place.window.stores
        ]

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """Attention of a layer, as :meth:`Place.mix`."""
        mixed = heads.new_empty(heads.shape[0], self._q_size)
        parts = zip(self._places, heads.split(self._sizes), mixed.split(self._sizes), strict=True)
        for place, part, out in parts:
            out.copy_(place.mix(layer, part))  # before the next overwrites it
        return mixed

    def keep(self, layer: int, heads: Tensor) -> None:
        """Write a layer's keys and values, as :meth:`Place.keep`."""
        for place, part in zip(self._places, heads.split(self._sizes), strict=True):
            place.keep(layer, part)

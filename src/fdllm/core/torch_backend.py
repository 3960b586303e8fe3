"""Attention by torch's own kernels, on any device, through views into the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.attention import KEPT, AttentionBackend, Norm, Workspace
from fdllm.core.cache import RowCache
from fdllm.core.forward_batch import Window
from fdllm.core.network import block_causal_mask
from fdllm.core.unmask import choose_greedy
from fdllm.errors import UsageError


@dataclass(frozen=True)
class TorchWindow:
    """What attention over a window needs, the same for every layer but for views of the cache.

    Attributes:
        factors: rotary factors of its columns, complex, [columns, 1, head dim / 2] where all rows
            share them, else [rows, columns, 1, head dim / 2].
        query_factors: the same for queries, [..., columns, 1, 1, head dim / 2].
        shape: of heads as pairs, (rows, columns, -1, head dim / 2, 2).
        mask: what is added to scores, 0 where a key is seen; None where all are.
        query: [rows, kv heads, columns * group, head dim]. A column's heads of one group stand
            side by side, so that keys need no copy for each of them and attention's result none to
            become one vector a column.
        query_out: the same as rotated queries are written, [rows, columns, kv heads, group, pairs].
        keys: what queries may see, [rows, kv heads, extent, head dim] a layer.
        values: the same.
        keys_out: where a layer's rotated keys are written, [rows, columns, kv heads, pairs].
        values_out: the same.
        spread: where they go from there, if they have no place of their own yet.
        pick: rows of ``keys`` that are taken; None for all.
    """

    factors: Tensor
    query_factors: Tensor
    shape: tuple[int, ...]
    mask: Tensor | None
    query: Tensor
    query_out: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    keys_out: Sequence[Tensor]
    values_out: Sequence[Tensor]
    spread: Spread | None
    pick: Tensor | None


@dataclass(frozen=True)
class Spread:
    """Fresh keys and values, and the positions that they go to: data, so that they may move.

    Attributes:
        fresh: [2, rows, columns, kv heads, head dim].
        rows: of the cache, [rows, 1].
        offsets: of the columns inside the window, [columns].
        positions: [rows, columns].
        seen: positions of the keys that attention runs over.
        kept: where what stands at the positions is copied first, see
            :meth:`fdllm.core.cache.RowCache.overwritten`.
    """

    fresh: Tensor
    rows: Tensor
    offsets: Tensor
    positions: Tensor
    seen: Tensor
    kept: Tensor | None


class TorchBackend(AttentionBackend[TorchWindow]):
    """Everything by torch's own kernels."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__(cache)
        self._works = lru_cache(KEPT)(lambda n: Workspace(self.spec, n, cache.keys))
        kv = self.spec.num_kv_heads
        self._split = (self.spec.num_heads, kv, kv)
        self._groups = (kv, self.spec.num_heads // kv)

    def resize(self, columns: int) -> None:
        """As declared."""
        self.work = self._works(columns)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As declared."""
        return norm.plain(x)

    def gate(self, both: Tensor) -> Tensor:
        """As declared."""
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    def choose(self, logits: Tensor, mask_id: int) -> tuple[list[int], list[float]]:
        """As declared."""
        tokens, confidence = choose_greedy(logits, mask_id)
        return tokens.tolist(), confidence.tolist()

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """As declared."""
        if len(self._at) == 1:
            return self._attend(self._at[0], layer, heads)
        mixed = heads.new_empty(heads.shape[0], self.spec.num_heads * self.spec.head_dim)
        parts = zip(self._at, heads.split(self._sizes), mixed.split(self._sizes), strict=True)
        for at, part, out in parts:
            out.copy_(self._attend(at, layer, part))  # before the next overwrites it
        return mixed

    def _attend(self, at: TorchWindow, layer: int, heads: Tensor) -> Tensor:
        query, keys, values = self._pairs(at, heads).split_with_sizes(self._split, 2)
        rotate_pairs(query.unflatten(2, self._groups), at.query_factors, at.query_out)
        self._write(at, layer, keys, values)
        keys, values = at.keys[layer], at.values[layer]
        if at.pick is not None:
            keys, values = keys[at.pick], values[at.pick]
        mixed = F.scaled_dot_product_attention(at.query, keys, values, attn_mask=at.mask)
        # [rows, kv heads, columns * group, head dim] -> [rows * columns, heads * head dim]
        return mixed.transpose(1, 2).reshape(heads.shape[0], -1)

    def _write_kv(self, at: TorchWindow, layer: int, heads: Tensor) -> None:
        fresh = self._pairs(at, heads)[:, :, -2 * self.spec.num_kv_heads :]
        self._write(at, layer, *fresh.chunk(2, 2))

    def _pairs(self, at: TorchWindow, heads: Tensor) -> Tensor:
        """Heads as complex pairs, [rows, columns, heads, head dim / 2].

        Not kept from one layer to the next: in float32 the pairs are a view of ``heads``, in
        narrower types a copy, which would stay as it was when ``heads`` is written.
        """
        return torch.view_as_complex(heads.float().view(at.shape))

    def _write(self, at: TorchWindow, layer: int, keys: Tensor, values: Tensor) -> None:
        """Keys and values, as complex pairs, to the cache."""
        rotate_pairs(keys, at.factors, at.keys_out[layer])
        out = at.values_out[layer]
        out.copy_(values if out.is_complex() else torch.view_as_real(values).flatten(-2))
        if at.spread is not None:
            rows, positions = at.spread.rows, at.spread.positions
            for i, cached in enumerate((self.cache.keys, self.cache.values)):
                if at.spread.kept is not None:
                    # [rows, columns, kv heads, head dim] -> [rows, kv heads, columns, head dim]
                    there = cached[layer][rows, :, positions].transpose(1, 2)
                    at.spread.kept[i, layer, rows[:, 0]] = there
                cached[layer][rows, :, positions] = at.spread.fresh[i]

    def _lay_out(self, window: Window) -> TorchWindow:
        return self._views(window, max(window.extents), fixed=False)

    def _views(self, window: Window, extent: int, *, fixed: bool) -> TorchWindow:
        """Stand at a window.

        Args:
            window: its rows and positions.
            extent: keys that attention runs over.
            fixed: whether positions stay data, so that :meth:`_move` may change them.
        """
        cache, spec = self.cache, self.spec
        rows, columns, kv, dim = (
            len(window.rows),
            len(window.offsets),
            spec.num_kv_heads,
            spec.head_dim,
        )
        work, start = self._works(rows * columns), window.starts[0]
        among = slice(window.rows[0], window.rows[0] + rows) if window.adjacent else slice(None)
        query = work.query.view(rows, kv, -1, dim)  # [rows, kv heads, columns * group, head dim]
        kept = cache.overwritten(window)
        if window.uniform and window.only is None and kept is None and not fixed:
            span, spread = slice(start, start + columns), None
            factors = self.factors[span]
            keys_out, values_out = (
                pairs_of(kept[:, among, :, span].transpose(2, 3)).unbind(0)
                for kept in (cache.keys, cache.values)
            )
        else:
            fresh = work.fresh.view(2, rows, columns, kv, dim)
            spread = self._spread(window, fresh, extent, kept)
            factors = self.factors.new_empty(rows, columns, 1, dim // 2)
            keys_out, values_out = ((pairs_of(x),) * spec.num_layers for x in spread.fresh)
        made = TorchWindow(
            factors=factors,
            query_factors=factors.unsqueeze(-2),
            shape=(rows, columns, -1, dim // 2, 2),
            mask=self._mask(window, extent, fixed=fixed),
            query=query,
            query_out=pairs_of(query.view(rows, kv, columns, -1, dim).permute(0, 2, 1, 3, 4)),
            keys=cache.keys[:, among, :, :extent].unbind(0),
            values=cache.values[:, among, :, :extent].unbind(0),
            keys_out=keys_out,
            values_out=values_out,
            spread=spread,
            pick=None if window.adjacent else torch.tensor(window.rows, device=query.device),
        )
        self._move(made, window)
        return made

    def _mask(self, window: Window, extent: int, *, fixed: bool) -> Tensor | None:
        like = self.cache.keys
        if window.causal_block is not None:
            seen = block_causal_mask(window.width, extent, window.causal_block, like.device)
            seen = seen.repeat_interleave(self._groups[1], 0)  # [columns * group, extent]
            return like.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))
        # Rows of different lengths share one call. What lies behind a row's end weighs exactly 0.
        ragged = fixed or not window.uniform
        return like.new_zeros(len(window.rows), 1, 1, extent) if ragged else None

    def _spread(self, window: Window, fresh: Tensor, extent: int, kept: Tensor | None) -> Spread:
        rows = torch.tensor(window.rows, device=fresh.device)[:, None]
        offsets = torch.tensor(list(window.offsets), device=fresh.device)
        seen = torch.arange(extent, device=fresh.device)
        return Spread(fresh, rows, offsets, rows + offsets, seen, kept)

    def _move(self, at: TorchWindow, window: Window) -> None:
        """Stand at other positions of the same rows and as many columns: fill the buffers."""
        spread = at.spread
        if spread is None:
            return
        starts, ends = torch.tensor([window.starts, window.extents]).to(spread.rows.device)
        torch.add(starts[:, None], spread.offsets, out=spread.positions)
        at.factors.copy_(self.factors[spread.positions])
        if at.mask is not None and window.causal_block is None:
            unseen = spread.seen >= ends[:, None]  # [rows, extent]
            at.mask.zero_().masked_fill_(unseen[:, None, None], float("-inf"))


class Accelerator:
    """What decoding runs on besides torch's own kernels: makes the backend of a cache.

    Attributes:
        name: as a record's provenance names it.
        capacity_step: tokens; a row of a cache has room for a multiple of it.
        keeps_backends: whether a backend holds what pays in the next run too.
    """

    name = "no"
    capacity_step = 1
    keeps_backends = False

    def backend(self, cache: RowCache) -> AttentionBackend[Any]:
        """What attends over a cache."""
        return TorchBackend(cache)


Accelerators = Callable[[torch.device, torch.dtype, bool | None], Accelerator]
"""The accelerator for weights on a device, of a type; the last argument is what the user said: True
or False, or None to take what pays. Raises UsageError where one is asked for and there is none."""


def no_accelerator(_: torch.device, __: torch.dtype, asked: bool | None) -> Accelerator:  # noqa: FBT001
    """The :data:`Accelerators` of a model that was made without any."""
    if asked:
        raise UsageError("this model was made without accelerators; fdllm.load_model gives them")
    return Accelerator()


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


def rotate_pairs(x: Tensor, factors: Tensor, out: Tensor) -> None:
    """Rotary embedding of complex pairs ``x`` [rows, columns, ..., head dim / 2] into ``out``."""
    if out.is_complex():
        torch.mul(x, factors, out=out)
    else:
        out.copy_(torch.view_as_real(x * factors).flatten(-2))

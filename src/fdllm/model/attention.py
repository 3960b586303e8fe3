"""Attention of a forward: against the row cache, or among the given columns alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.model.cache import RowCache, Window
from fdllm.model.layers import block_causal_mask


class CachedAttention:
    """Attention of one forward against the row cache; writes the new columns first.

    Args:
        cache: keys and values of all rows.
        window: the rows, and the positions that are written.
        group: query heads to a key head.
        only: offsets inside the window, where not all of its columns are computed.
    """

    def __init__(
        self, cache: RowCache, window: Window, group: int, only: Tensor | None = None
    ) -> None:
        self.cache = cache
        self.window = window
        self.only = only
        self.mask: Tensor | None = None
        if window.causal_block is not None:
            mask = block_causal_mask(
                window.width, window.extents[0], window.causal_block, cache.keys.device
            )
            self.mask = mask.repeat(group, 1)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write keys and values of the columns at hand."""
        window, cache = self.window, self.cache
        if window.uniform and self.only is None:
            first, at = window.rows[0], window.starts[0]
            rows = slice(first, first + len(window.rows))
            cache.keys[layer, rows, :, at : at + window.width] = k
            cache.values[layer, rows, :, at : at + window.width] = v
            return
        for i, (row, at) in enumerate(zip(window.rows, window.starts, strict=True)):
            span = slice(at, at + window.width) if self.only is None else self.only + at
            cache.keys[layer, row, :, span] = k[i]
            cache.values[layer, row, :, span] = v[i]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the new columns, then attend to everything the window may see."""
        self.keep(layer, k, v)
        window = self.window
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        if window.uniform:
            first, extent = window.rows[0], window.extents[0]
            rows = slice(first, first + len(window.rows))
            return F.scaled_dot_product_attention(
                q, keys[rows, :, :extent], values[rows, :, :extent], attn_mask=self.mask
            )
        # Rows stand at different lengths: attend row by row. No padding, no mask, no copy of the
        # cache, and every row sees exactly the numbers it would see alone.
        out = torch.empty_like(q)
        for i, (row, extent) in enumerate(zip(window.rows, window.extents, strict=True)):
            out[i] = F.scaled_dot_product_attention(
                q[i : i + 1],
                keys[row : row + 1, :, :extent],
                values[row : row + 1, :, :extent],
                attn_mask=self.mask,
            )[0]
        return out


class DenseAttention:
    """Attention among the given columns alone, under an explicit mask (training, tests)."""

    def __init__(self, mask: Tensor | None, group: int) -> None:
        self.mask = None if mask is None else mask.repeat(*[1] * (mask.dim() - 2), group, 1)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Nothing to keep."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """Attend."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

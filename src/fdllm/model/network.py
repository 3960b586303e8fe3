"""The network: the layer loop, where reuse stands once, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fdllm.model.cache import RowCache, Window
from fdllm.model.layers import Layer, RMSNorm, block_causal_mask, rotary_table
from fdllm.model.spec import ModelSpec
from fdllm.reuse import LayerPlan, LayerRun


@dataclass(frozen=True)
class _Segment:
    """A stretch of the layer loop: layers to compute, or one run to take from the slots."""

    kind: Literal["compute", "reuse"]
    start: int
    stop: int
    run: LayerRun | None = None
    kv_only: bool = False
    """The output of the last layer reaches nothing: compute its keys and values alone."""


@lru_cache(maxsize=4096)
def _segments(plan: LayerPlan) -> tuple[_Segment, ...]:
    """Cut a plan into what the layer loop does, one entry a run and none a layer."""
    stretches: list[_Segment] = []
    at = 0
    for run in sorted((*plan.reuse, *plan.store)):
        if at < run.start:
            stretches.append(_Segment("compute", at, run.start))
        kind: Literal["compute", "reuse"] = "reuse" if run in plan.reuse else "compute"
        stretches.append(_Segment(kind, run.start, run.stop, run))
        at = run.stop
    if at < plan.n_layers:
        stretches.append(_Segment("compute", at, plan.n_layers))
    # Nothing ahead of a reused *output* reaches the logits; only keys and values are owed there.
    out: list[_Segment] = []
    for i, piece in enumerate(stretches):
        after = stretches[i + 1] if i + 1 < len(stretches) else None
        replaced = (
            after is not None
            and after.kind == "reuse"
            and after.run is not None
            and after.run.target == "output"
        )
        if replaced and piece.kind == "reuse":
            continue
        kv_only = replaced and piece.run is None
        out.append(_Segment(piece.kind, piece.start, piece.stop, piece.run, kv_only))
    return tuple(out)


class _CachedAttention:
    """Attention of one forward against the row cache; writes the new columns first."""

    def __init__(self, cache: RowCache, window: Window, group: int) -> None:
        self.cache = cache
        self.window = window
        self.mask: Tensor | None = None
        if window.causal_block is not None:
            mask = block_causal_mask(
                window.width, window.extents[0], window.causal_block, cache.keys.device
            )
            self.mask = mask.repeat(group, 1)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write keys and values of the window's columns."""
        window, cache = self.window, self.cache
        if window.uniform:
            first, at = window.rows[0], window.starts[0]
            rows = slice(first, first + len(window.rows))
            cache.keys[layer, rows, :, at : at + window.width] = k
            cache.values[layer, rows, :, at : at + window.width] = v
            return
        for i, (row, at) in enumerate(zip(window.rows, window.starts, strict=True)):
            cache.keys[layer, row, :, at : at + window.width] = k[i]
            cache.values[layer, row, :, at : at + window.width] = v[i]

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


class _DenseAttention:
    """Attention among the given columns alone, under an explicit mask (training, tests)."""

    def __init__(self, mask: Tensor | None, group: int) -> None:
        self.mask = None if mask is None else mask.repeat(*[1] * (mask.dim() - 2), group, 1)

    def keep(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Nothing to keep."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        """Attend."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


class Network(nn.Module):
    """Qwen2.5's architecture under block-causal attention (DESIGN section 3)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.stack = [Layer(i, spec) for i in range(spec.num_layers)]
        self.layers = nn.ModuleList(self.stack)
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.head = nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._rotary: tuple[Tensor, Tensor] | None = None

    def forward(
        self, ids: Tensor, cache: RowCache, window: Window, plan: LayerPlan, columns: Sequence[int]
    ) -> Tensor:
        """One forward of any phase.

        Args:
            ids: tokens [rows, columns].
            cache: keys, values and reuse slots; written in place.
            window: the rows and positions that ``ids`` stand at.
            plan: which layer runs are computed, stored or reused.
            columns: each row's first column inside its block, where the reuse slots are addressed.

        Returns:
            The last hidden state, normed, [rows, columns, hidden]; give :meth:`head` the columns
            that are read.
        """
        width = ids.shape[1]
        cos, sin = self._rotary_at(window)
        group = self.spec.num_heads // self.spec.num_kv_heads
        attend = _CachedAttention(cache, window, group)
        x = self.embedding(ids)
        for piece in _segments(plan):
            run = piece.run
            if piece.kind == "reuse" and run is not None:
                stored = cache.slots.read(run, window.rows, columns, width)
                x = stored if run.target == "output" else x + stored
                continue
            before = x
            last = piece.stop - 1 if piece.kv_only else piece.stop
            for layer in self.stack[piece.start : last]:
                x = layer(x, cos, sin, attend)
            if piece.kv_only:
                self.stack[last].keep_kv(x, cos, sin, attend)
            if run is not None:
                kept = x if run.target == "output" else x - before
                cache.slots.write(run, window.rows, columns, kept)
        normed: Tensor = self.norm(x)
        return normed

    def dense(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of whole sequences without any cache.

        Args:
            ids: tokens [rows, columns].
            positions: rotary positions [columns] (or [rows, columns]).
            mask: True where a query may see a key, [columns, columns] or [rows, 1, columns,
                columns]; None for all.

        Returns:
            Logits [rows, columns, vocabulary].
        """
        table = self._table()
        dtype = self.embedding.weight.dtype
        cos, sin = (t[positions].to(dtype) for t in table)
        if positions.dim() > 1:
            cos, sin = cos[:, None], sin[:, None]
        attend = _DenseAttention(mask, self.spec.num_heads // self.spec.num_kv_heads)
        x = self.embedding(ids)
        for layer in self.stack:
            x = layer(x, cos, sin, attend)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _table(self) -> tuple[Tensor, Tensor]:
        device = self.embedding.weight.device
        if self._rotary is None or self._rotary[0].device != device:
            self._rotary = rotary_table(self.spec, self.spec.max_positions, device)
        return self._rotary

    def _rotary_at(self, window: Window) -> tuple[Tensor, Tensor]:
        cos, sin = self._table()
        dtype = self.embedding.weight.dtype
        if len(set(window.starts)) == 1:
            span = slice(window.starts[0], window.starts[0] + window.width)
            return cos[span].to(dtype), sin[span].to(dtype)
        offsets = torch.arange(window.width, device=cos.device)
        at = torch.tensor(window.starts, device=cos.device)[:, None] + offsets
        return cos[at][:, None].to(dtype), sin[at][:, None].to(dtype)

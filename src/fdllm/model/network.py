"""The network: the layer loop, where reuse stands once, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fdllm.layerplan import AnyPlan, LayerPlan, LayerRun
from fdllm.model.attention import CachedAttention, DenseAttention
from fdllm.model.cache import RowCache, Window
from fdllm.model.layers import Layer, RMSNorm, rotary_table
from fdllm.model.segments import segments
from fdllm.model.spec import ModelSpec


@dataclass(frozen=True)
class Forwarded:
    """What came of a forward.

    Attributes:
        hidden: the last hidden state, normed, [rows, columns, hidden].
        plan: the plan that was carried out; where a probe chose, the one it chose.
        change: the relative change that a probe measured; None where there was none.
    """

    hidden: Tensor
    plan: LayerPlan
    change: float | None = None


class _Place:
    """Where a forward reads and writes: cache, positions, attention."""

    def __init__(
        self, network: Network, cache: RowCache, window: Window, starts: Sequence[int]
    ) -> None:
        spec = network.spec
        self.cache = cache
        self.window = window
        self.columns = [range(start, start + window.width) for start in starts]
        self.cos, self.sin = network.rotary_at(window)
        self.group = spec.num_heads // spec.num_kv_heads
        self.attend = CachedAttention(cache, window, self.group)

    def narrow(self, offsets: list[int]) -> _Place:
        """The same place, for some columns of the window only."""
        some = _Place.__new__(_Place)
        some.cache, some.window, some.columns = self.cache, self.window, self.columns
        some.group = self.group
        some.cos, some.sin = self.cos[..., offsets, :], self.sin[..., offsets, :]
        only = torch.tensor(offsets, device=self.cos.device)
        some.attend = CachedAttention(self.cache, self.window, self.group, only)
        return some


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
        self,
        ids: Tensor,
        cache: RowCache,
        window: Window,
        plan: AnyPlan,
        starts: Sequence[int],
    ) -> Forwarded:
        """One forward of any phase.

        Args:
            ids: tokens [rows, columns].
            cache: keys, values and reuse slots; written in place.
            window: the rows and positions that ``ids`` stand at.
            plan: which layer runs are computed, stored or reused. A plan with a probe decides for
                all rows at once, so give it one row.
            starts: each row's first column inside its block, where the slots are addressed.

        Returns:
            The last hidden state, normed; give :attr:`head` the columns that are read.
        """
        place = _Place(self, cache, window, starts)
        x: Tensor = self.embedding(ids)
        if isinstance(plan, LayerPlan):
            return Forwarded(self.norm(self._layers(x, plan, place)), plan)
        x = self._compute(x, 0, plan.layer, place)
        before, x = x, self._compute(x, plan.layer, plan.layer + 1, place)
        fresh = x - before
        stored = cache.slots.read(plan.run, window.rows, place.columns)
        change = float((fresh - stored).norm() / stored.norm())
        chosen = plan.calm if change < plan.threshold else plan.otherwise
        if chosen is plan.otherwise:
            cache.slots.write(plan.run, window.rows, place.columns, fresh)
        x = self._layers(x, chosen, place, plan.layer + 1)
        return Forwarded(self.norm(x), chosen, change)

    def _layers(self, x: Tensor, plan: LayerPlan, place: _Place, first: int = 0) -> Tensor:
        """Carry out a plan from layer ``first`` on."""
        slots, rows = place.cache.slots, place.window.rows
        for piece in segments(plan, first):
            run = piece.run
            if piece.kind == "partial" and run is not None:
                x = self._partial(x, run, place)
            elif piece.kind == "reuse" and run is not None:
                stored = slots.read(run, rows, place.columns)
                x = stored if run.target == "output" else x + stored
            else:
                before = x
                x = self._compute(x, piece.start, piece.stop, place, kv_only=piece.kv_only)
                if run is not None:
                    kept = x if run.target == "output" else x - before
                    slots.write(run, rows, place.columns, kept)
        return x

    def _compute(
        self, x: Tensor, start: int, stop: int, place: _Place, *, kv_only: bool = False
    ) -> Tensor:
        """Layers ``start .. stop - 1``; of the last one perhaps only keys and values."""
        for layer in self.stack[start : stop - 1 if kv_only else stop]:
            x = layer(x, place.cos, place.sin, place.attend)
        if kv_only:
            self.stack[stop - 1].keep_kv(x, place.cos, place.sin, place.attend)
        return x

    def _partial(self, x: Tensor, run: LayerRun, place: _Place) -> Tensor:
        """Compute a run for some columns, keep them, and take what is stored for the others."""
        slots, rows = place.cache.slots, place.window.rows
        if run.columns:
            offsets = [column - place.columns[0].start for column in run.columns]
            some = place.narrow(offsets)
            before = x[:, offsets]
            fresh = self._compute(before, run.start, run.stop, some)
            kept = fresh if run.target == "output" else fresh - before
            slots.write(run, rows, [run.columns] * len(rows), kept)
        stored = slots.read(run, rows, place.columns)
        return stored if run.target == "output" else x + stored

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
        attend = DenseAttention(mask, self.spec.num_heads // self.spec.num_kv_heads)
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

    def rotary_at(self, window: Window) -> tuple[Tensor, Tensor]:
        """Cosines and sines at a window's positions, as :class:`Layer` takes them."""
        cos, sin = self._table()
        dtype = self.embedding.weight.dtype
        if len(set(window.starts)) == 1:
            span = slice(window.starts[0], window.starts[0] + window.width)
            return cos[span].to(dtype), sin[span].to(dtype)
        offsets = torch.arange(window.width, device=cos.device)
        at = torch.tensor(window.starts, device=cos.device)[:, None] + offsets
        return cos[at][:, None].to(dtype), sin[at][:, None].to(dtype)

"""Forwards recorded once and replayed: CUDA graphs.

Launching kernels one by one from Python takes longer than many of them run. A recorded forward is
one call. For that its shapes and addresses must not change, so positions become data: a
:class:`FixedPlace` reads them from buffers that are filled ahead of each replay, and attention
runs over a few more keys than there are, masked. What differs is kept apart: each phase (rows,
columns) and each layer plan has a recording of its own, made when it comes for the third time;
until then the same work runs over the same buffers, so that no number depends on what came before.
What cannot be recorded (a prompt's chunks, a probe that decides on the host, a run computed in
part) runs as it does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.cache import RowCache, Window
from fdllm.core.layerplan import LayerPlan
from fdllm.core.model_spec import ModelSpec
from fdllm.core.workspace import scratch_of

Work = Callable[[], Tensor]
Record = Callable[[Work], Work]
Rotary = tuple[ModelSpec, Tensor]
Build = Callable[["FixedPlace", Tensor], Work]
EXTENT_STEP = 128
"""Recordings serve every extent up to the next multiple of this."""
RECORD_FROM = 3
"""A shape is recorded when it comes for the third time: recording costs a few forwards."""
_WARM_UPS = 3  # CUDA's own advice: libraries choose and allocate in the first calls
_MOST = 64  # recordings kept for a cache


class FixedPlace:
    """A window whose positions are data, for rows and columns that stay.

    Args:
        cache: keys and values of all rows.
        window: its rows and width.
        rotary: the model's shape, and rotary factors of every position, complex, [positions, 1,
            head dim / 2].
        starts: each row's first column inside its block.
        extent: keys that attention runs over.

    Attributes:
        parts: as :class:`fdllm.core.place.Place` has them.
    """

    def __init__(
        self,
        cache: RowCache,
        window: Window,
        rotary: Rotary,
        *,
        starts: Sequence[int],
        extent: int,
    ) -> None:
        spec, factors = rotary
        rows, width, device = len(window.rows), window.width, cache.keys.device
        self.scratch = scratch_of(cache, spec, rows, width)
        self.window = window
        self.columns = [range(start, start + width) for start in starts]
        self.parts = [(self, slice(None))]
        self._table = torch.view_as_real(factors)  # [positions, 1, head dim / 2, 2]
        self._shape = (rows, width, -1, spec.head_dim)
        self._heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        self._offsets = torch.arange(width, device=device)
        self._seen = torch.arange(extent, device=device)
        self._rows = torch.tensor(window.rows, device=device)
        self._at = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self._factors = self._table[self._at].clone()
        self._mask = torch.zeros(rows, 1, 1, extent, dtype=cache.keys.dtype, device=device)
        first = window.rows[0]
        own = slice(first, first + rows) if window.adjacent else slice(0, cache.num_rows)
        self._pick = None if window.adjacent else self._rows
        self._keys, self._values = cache.keys.unbind(0), cache.values.unbind(0)
        self._keys_seen = cache.keys[:, own, :, :extent].unbind(0)
        self._values_seen = cache.values[:, own, :, :extent].unbind(0)

    def move(self, window: Window) -> None:
        """Stand somewhere else: fill the buffers."""
        where = torch.tensor([window.starts, window.extents]).to(self._at.device)
        torch.add(where[0][:, None], self._offsets, out=self._at)
        self._factors.copy_(self._table[self._at])
        unseen = self._seen >= where[1][:, None]
        self._mask.zero_().masked_fill_(unseen[:, None, None], float("-inf"))

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """Attention of a layer, as :meth:`fdllm.core.place.Place.mix`."""
        query, keys, values = heads.view(self._shape).split_with_sizes(self._heads, 2)
        rows, _, num_heads, dim = query.shape
        self._write(layer, keys, values)
        group = num_heads // keys.shape[2]
        query = self._rotated(query).unflatten(2, (keys.shape[2], group)).permute(0, 2, 1, 3, 4)
        seen, behind = self._keys_seen[layer], self._values_seen[layer]
        if self._pick is not None:
            seen, behind = seen[self._pick], behind[self._pick]
        mixed = F.scaled_dot_product_attention(
            query.reshape(rows, keys.shape[2], -1, dim), seen, behind, attn_mask=self._mask
        )
        return mixed.transpose(1, 2).reshape(heads.shape[0], -1)

    def keep(self, layer: int, heads: Tensor) -> None:
        """Write a layer's keys and values, given alone or behind its queries."""
        split = heads.view(self._shape)
        keys, values = split[:, :, -2 * self._heads[1] :].chunk(2, 2)
        self._write(layer, keys, values)

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        rows, at = self._rows[:, None], self._at
        self._keys[layer][rows, :, at] = self._rotated(keys)
        self._values[layer][rows, :, at] = values

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary embedding of ``x`` [rows, columns, heads, head dim], in real numbers."""
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = self._factors.unbind(-1)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
        return turned.flatten(-2).to(x.dtype)


@dataclass(frozen=True)
class _Recording:
    """A forward over fixed buffers, recorded or not."""

    place: FixedPlace
    ids: Tensor
    replay: Work


class Recorder:
    """Records forwards and replays them.

    Args:
        record: makes a replay of some work, which it may call as often as it likes.
        rotary: as :class:`FixedPlace` takes it.
    """

    def __init__(self, record: Record, rotary: Rotary) -> None:
        self._record, self._rotary = record, rotary

    def replay(
        self,
        build: Build,
        ids: Tensor,
        cache: RowCache,
        window: Window,
        *,
        plan: LayerPlan,
        starts: Sequence[int],
    ) -> Tensor | None:
        """What ``build`` gives for a window; None where this forward cannot be recorded.

        Args:
            build: the work of a forward at a place, from tokens in a buffer.
            ids: tokens [rows * columns].
            cache: keys, values and reuse slots; written in place.
            window: the rows and positions.
            plan: what each layer does.
            starts: each row's first column inside its block.

        Raises:
            NeverWrittenError: the plan reuses what was never stored.
        """
        if plan.partial or window.causal_block is not None:
            return None
        extent = min(-(-max(window.extents) // EXTENT_STEP) * EXTENT_STEP, cache.capacity)
        key = (window.rows, window.width, plan, *starts, extent)
        made: _Recording | None = cache.recordings.get(key)
        if made is None:
            place = FixedPlace(cache, window, self._rotary, starts=starts, extent=extent)
            place.move(window)
            buffer = ids.clone()
            made = _Recording(place, buffer, build(place, buffer))
            cache.slots.prepare(plan)
            cache.sightings[key] += 1
            if cache.sightings[key] >= RECORD_FROM and len(cache.recordings) < _MOST:
                made = replace(made, replay=self._recorded(made.replay, cache, window))
                cache.recordings[key] = made
        cache.slots.book(plan, window.rows, made.place.columns)
        made.place.move(window)
        made.ids.copy_(ids)
        return made.replay()

    def _recorded(self, work: Work, cache: RowCache, window: Window) -> Work:
        """Record; what the attempts have stored is undone. Keys and values they only repeat."""
        saved = [cache.slots.save(row) for row in window.rows]
        replay = self._record(work)
        for row, held in zip(window.rows, saved, strict=True):
            cache.slots.restore(row, held)
        return replay


def cuda_graph(work: Work) -> Work:
    """``work`` as one graph: the host launches all of its kernels at once."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = work()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay

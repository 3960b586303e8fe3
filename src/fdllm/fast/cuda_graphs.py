"""Forwards recorded once and replayed: CUDA graphs.

Launching kernels one by one from Python takes longer than many of them run. A recorded forward is
one call. For that its shapes and addresses must not change, so positions become data: buffers that
are filled ahead of each replay, and attention runs over a few more keys than there are, masked.
What differs is kept apart: each phase (rows, columns), each layer plan and each row of drafts has a
recording of its own, made when it comes for the third time; until then the same work runs over the
same buffers, so that no number depends on what came before. Recordings live as long as their cache,
which a model keeps from one run to the next. What cannot be recorded (a prompt's chunks, a probe
that decides on the host, a run computed in part, drafts whose layer outputs wait) runs as it does
without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fdllm.core.attention import Compute, Workspace
from fdllm.core.cache import RowCache
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.layer_loop import chosen_columns
from fdllm.core.reuse import LayerPlan
from fdllm.core.torch_backend import Accelerator, TorchBackend, TorchWindow

Work = Callable[[], Tensor]
_Key = tuple[tuple[Hashable, ...], LayerPlan, int]  # shapes of windows, plan, keys attended to
Capture = Callable[[Work], Work]
"""Makes a replay of some work, which it may call as often as it likes."""
EXTENT_STEP = 128
"""Recordings serve every extent up to the next multiple of this."""
RECORD_FROM = 3
"""A shape is recorded when it comes for the third time: recording costs a few forwards."""
_WARM_UPS = 3  # CUDA's own advice: libraries choose and allocate in the first calls
_MOST = 64  # recordings kept for a cache


@dataclass(frozen=True)
class _Recording:
    """A forward over fixed buffers, recorded or not; ``held`` are those that layers share."""

    at: Sequence[TorchWindow]
    ids: Tensor
    held: Workspace
    replay: Work


class CudaGraphBackend(TorchBackend):
    """Attention by torch's kernels; forwards that come again and again are replayed.

    Args:
        cache: keys and values of all rows.
        record: makes a replay.
    """

    def __init__(self, cache: RowCache, record: Capture) -> None:
        super().__init__(cache)
        self._record = record
        self._recordings: dict[_Key, _Recording] = {}
        self._sightings: Counter[_Key] = Counter()

    def forward(
        self,
        compute: Compute,
        ids: Tensor,
        batch: ForwardBatch,
        plan: LayerPlan,
        columns: Sequence[int],
    ) -> Tensor:
        """As declared."""
        windows = batch.windows
        watched = any(run.watch for run in plan.store)
        waiting = plan.store and any(window.draft for window in windows)
        prompt = any(window.causal_block is not None for window in windows)
        if plan.partial or watched or waiting or prompt:
            return super().forward(compute, ids, batch, plan, columns)
        # Never cut short by the cache: how many keys are masked may decide how a kernel adds up.
        most = max(extent for window in windows for extent in window.extents)
        extent = -(-most // EXTENT_STEP) * EXTENT_STEP
        shapes = tuple((w.rows, w.width, w.first_columns, w.draft) for w in windows)
        key = (shapes, plan, extent)
        made = self._recordings.pop(key, None)
        if made is None:
            made = self._fixed(compute, ids, windows, extent)
            self._sightings[key] += 1
            if self._sightings[key] >= RECORD_FROM:
                made = replace(made, replay=self._recorded(made.replay, windows))
        if self._sightings[key] >= RECORD_FROM:
            self._recordings[key] = made  # behind all others: the first is the longest unused
            if len(self._recordings) > _MOST:
                longest = next(iter(self._recordings))
                del self._recordings[longest], self._sightings[longest]
        for at, window in zip(made.at, windows, strict=True):
            self._move(at, window)
        made.ids.copy_(ids)
        return chosen_columns(made.replay(), columns)

    def _fixed(
        self, compute: Compute, ids: Tensor, windows: Sequence[Window], extent: int
    ) -> _Recording:
        """A forward of all columns at buffers of its own."""
        at = [self._views(window, extent, fixed=True) for window in windows]
        sizes, buffer, size = [w.num_columns for w in windows], ids.clone(), ids.numel()
        held = self._works(size)

        def work() -> Tensor:
            self._stand(at, sizes)
            self.work = held
            return compute(buffer, range(size))

        return _Recording(at, buffer, held, work)

    def _recorded(self, work: Work, windows: Sequence[Window]) -> Work:
        """Record; what the attempts have written to the rows' blocks is undone."""
        cache = self.cache
        saved = {row: cache.save(row) for window in windows for row in window.rows}
        replay = self._record(work)
        for row, held in saved.items():
            cache.restore(row, held)
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


class CudaGraphs(Accelerator):
    """Forwards that come again and again are replayed.

    Args:
        record: makes a replay.
    """

    name = "CUDA graphs"
    capacity_step = EXTENT_STEP
    # A recording costs more than the forwards of a short text, and the next text replays it.
    keeps_backends = True

    def __init__(self, record: Capture = cuda_graph) -> None:
        self.record = record

    def backend(self, cache: RowCache) -> CudaGraphBackend:
        """As declared."""
        return CudaGraphBackend(cache, self.record)

"""The layer loop: what computes, skips, stores and reads runs of layers, once for every plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.decoder_layer import Backend, DecoderLayer, Linear
from fdllm.core.forward_batch import ForwardBatch
from fdllm.core.reuse import LayerPlan, LayerRun, PlanStep


@dataclass(frozen=True)
class Forwarded:
    """What came of a forward."""

    hidden: Tensor  # the last hidden states of the columns that are read, normed, [reads, hidden]
    plan: LayerPlan  # the plan that was carried out; where one was guided, what it came to
    # the relative change that a probe measured; None where there was none
    change: float | None = None


@dataclass(frozen=True)
class LayerLoop:
    """A network's weights up to the head, and the steps that plans are made of."""

    embedding: Tensor  # [vocabulary, hidden]
    layers: Sequence[DecoderLayer]
    norm: Linear  # the last one, ahead of the head

    def embed(self, ids: Tensor) -> Tensor:
        """Hidden states ahead of the first layer, [columns, hidden]."""
        return F.embedding(ids, self.embedding)

    def run(
        self,
        x: Tensor,
        steps: Sequence[PlanStep],
        backend: Backend,
        batch: ForwardBatch,
        read: Sequence[int],
    ) -> Tensor:
        """Carry out a plan's steps, [columns, hidden]; the hidden states that are read."""
        outputs = backend.cache.outputs
        for step in steps:
            run = step.run
            if step.kind == "compute":
                if run is None and step.stop == len(self.layers):
                    return self.read(x, step.start, backend, read)
                if run is None:
                    x = self.compute(x, step.start, step.stop - step.kv_only, backend)
                    if step.kv_only:
                        self.layers[step.stop - 1].write_kv(x, backend)
                else:
                    before, x = self.compute_run(x, run, backend, batch)
                    kept = x if run.target == "output" else x - before
                    for window, at in batch.storing:
                        # As rows, columns of the block, hidden size.
                        new = kept[at].view(len(window.rows), -1, x.shape[-1])
                        write = outputs.draft if window.draft else outputs.write
                        write(run, window.rows, window.columns, new)
            elif run is not None and run.target == "feed_forward":
                x = self.feed_in_part(x, run, backend, batch)
            elif run is not None:
                if step.kind == "partial" and run.columns:
                    self._partial(x, run, backend, batch)
                window = batch.alone
                stored = outputs.read(run, window.rows, window.columns).reshape(x.shape)
                x = stored if run.target == "output" else x + stored
        return chosen_columns(x, read)

    def compute(self, x: Tensor, start: int, stop: int, backend: Backend) -> Tensor:
        """Layers ``start .. stop - 1`` of the columns that the backend stands at."""
        for layer in self.layers[start:stop]:
            x = layer(x, backend)
        return x

    def compute_run(
        self, x: Tensor, run: LayerRun, backend: Backend, batch: ForwardBatch
    ) -> tuple[Tensor, Tensor]:
        """Hidden states ahead of what the run keeps, and behind it; what it watches is stored."""
        if not run.watch:
            return x, self.compute(x, run.start, run.stop, backend)
        layer = self.layers[run.start]
        behind = layer.project(self._attend(x, run, backend, batch), x)
        return behind if run.target == "feed_forward" else x, layer.feed_forward(behind, backend)

    def feed_in_part(
        self,
        x: Tensor,
        run: LayerRun,
        backend: Backend,
        batch: ForwardBatch,
        choose: Callable[[Tensor], tuple[int, ...]] | None = None,
    ) -> Tensor:
        """A layer whose feed-forward is computed for some columns; the others take what is stored.

        Args:
            x: hidden states [columns, hidden].
            run: the layer.
            backend: stands at all columns.
            batch: theirs.
            choose: the block's columns that are computed, by attention's output; the run's own
                where nothing is given.
        """
        window, layer, outputs = batch.alone, self.layers[run.start], backend.cache.outputs
        rows, size = len(window.rows), x.shape[-1]
        mixed = self._attend(x, run, backend, batch)
        columns = run.columns if choose is None else choose(mixed)
        x = layer.project(mixed, x)
        if columns:
            at = [column - window.first_columns[0] for column in columns]
            before = x.view(rows, -1, size)[:, at].view(-1, size)
            backend.resize(before.shape[0])
            behind = layer.feed_forward(before, backend)
            backend.resize(x.shape[0])
            new = (behind - before).view(rows, -1, size)
            outputs.write(run, window.rows, [columns] * rows, new)
            if len(columns) == window.width:
                return behind
        return x + outputs.read(run, window.rows, window.columns).reshape(x.shape)

    def _attend(self, x: Tensor, run: LayerRun, backend: Backend, batch: ForwardBatch) -> Tensor:
        """Attention's output of a run's one layer; what is watched of it is stored."""
        layer, outputs = self.layers[run.start], backend.cache.outputs
        heads = layer.heads(x, backend)
        kept = run.watched
        # The backend may rotate them where they lie.
        queries = heads[:, : x.shape[-1]].clone() if len(kept) > 1 else heads
        mixed = backend.attend(layer.index, heads)
        for window, at in batch.storing:
            write = outputs.draft if window.draft else outputs.write
            rows, block = window.rows, range(backend.cache.block_size)
            if kept:
                write(kept[0], rows, window.computed, mixed[at].view(len(rows), -1, x.shape[-1]))
            if len(kept) > 1:
                received = backend.received(layer.index, queries[at], window)
                write(kept[1], rows, [block] * len(rows), received)
        return mixed

    def read(self, x: Tensor, start: int, backend: Backend, read: Sequence[int]) -> Tensor:
        """The layers from ``start`` on; the last one only for the columns that are read."""
        last = self.layers[-1]
        x = self.compute(x, start, last.index, backend)
        if not read:
            last.write_kv(x, backend)
            return x[:0]
        if 2 * len(read) > x.shape[0]:
            return chosen_columns(last(x, backend), read)
        return last(x, backend, torch.tensor(read, device=x.device))

    def _partial(self, x: Tensor, run: LayerRun, backend: Backend, batch: ForwardBatch) -> None:
        """Compute a run for some columns of the block, and keep them."""
        window = batch.alone
        offsets = tuple(column - window.first_columns[0] for column in run.columns)
        rows, size = len(window.rows), x.shape[-1]
        # [rows, columns, hidden] -> [rows * offsets, hidden]
        before = x.view(rows, -1, size)[:, list(offsets)].view(-1, size)
        part = ForwardBatch((replace(window, only=offsets),))
        backend.prepare(part)
        ahead, fresh = self.compute_run(before, run, backend, part)
        backend.prepare(batch)
        kept = fresh if run.target == "output" else fresh - ahead
        new = kept.view(rows, -1, size)
        backend.cache.outputs.write(run, window.rows, [run.columns] * rows, new)


def chosen_columns(x: Tensor, read: Sequence[int]) -> Tensor:
    """Some columns of ``x`` [columns, hidden]; ``x`` itself where they are all of them."""
    if len(read) == x.shape[0]:
        return x
    return x.index_select(0, torch.tensor(read, dtype=torch.int64, device=x.device))

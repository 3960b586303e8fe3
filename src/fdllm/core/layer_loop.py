"""The layer loop: what computes, skips, stores and reads runs of layers, once for every plan."""

from __future__ import annotations

from collections.abc import Sequence
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
                before = x
                x = self.compute(x, step.start, step.stop - step.kv_only, backend)
                if step.kv_only:
                    self.layers[step.stop - 1].write_kv(x, backend)
                if run is not None:
                    kept = x if run.target == "output" else x - before
                    for window, at in batch.storing:
                        # As rows, columns of the block, hidden size.
                        new = kept[at].view(len(window.rows), -1, x.shape[-1])
                        write = outputs.draft if window.draft else outputs.write
                        write(run, window.rows, window.columns, new)
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
        backend.prepare(ForwardBatch((replace(window, only=offsets),)))
        fresh = self.compute(before, run.start, run.stop, backend)
        backend.prepare(batch)
        kept = fresh if run.target == "output" else fresh - before
        new = kept.view(rows, -1, size)
        backend.cache.outputs.write(run, window.rows, [run.columns] * rows, new)


def chosen_columns(x: Tensor, read: Sequence[int]) -> Tensor:
    """Some columns of ``x`` [columns, hidden]; ``x`` itself where they are all of them."""
    if len(read) == x.shape[0]:
        return x
    return x.index_select(0, torch.tensor(read, dtype=torch.int64, device=x.device))

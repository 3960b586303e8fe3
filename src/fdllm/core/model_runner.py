"""The network as decoding runs it: the layer loop, where reuse stands once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fdllm.core.decoder_layer import (
    Backend,
    DecoderLayer,
    can_pack,
    final_norm,
    give_back_memory,
    linear,
    packs,
)
from fdllm.core.forward_batch import ForwardBatch
from fdllm.core.network import Network
from fdllm.core.reuse import AnyPlan, LayerPlan, LayerRun, PlanStep, ProbePlan, plan_steps

Fill = Callable[[nn.Module], None]
"""Gives a module its parameters, just ahead of their use."""


def nothing(_: nn.Module) -> None:
    """The :data:`Fill` of modules that have their parameters."""


@dataclass(frozen=True)
class Forwarded:
    """What came of a forward."""

    hidden: Tensor  # the last hidden states of the columns that are read, normed, [reads, hidden]
    plan: LayerPlan  # the plan that was carried out; where a probe chose, the one it chose
    # the relative change that a probe measured; None where there was none
    change: float | None = None


class ModelRunner:
    """A network's weights as decoding runs them.

    Args:
        network: the definition.
        freeze: whether the weights are laid out for decoding once and for all: large matrices in
            oneDNN's layout where that is there, and the network gives up what is kept here in
            another one. Without it the network's own weights are shared, and may change.
        fill: gives a module its parameters, called just ahead of their use: a network that was
            made on the ``meta`` device never holds more than one layer in two layouts.

    Attributes:
        head: the output projection. It stands apart from its norm: only the columns that are read
            go through it.
    """

    @torch.no_grad()
    def __init__(self, network: Network, *, freeze: bool = False, fill: Fill = nothing) -> None:
        fill(network.embedding)
        self._embedding = network.embedding.weight.data
        pack = freeze and can_pack(self._embedding)
        # The head is the largest matrix, so it is laid out first, while there is room for it twice.
        fill(network.norm)
        fill(network.head)
        self._norm = final_norm(network.norm)
        # A tied head is the embedding, which must stay as it is.
        packed = not network.spec.tie_embeddings and packs(self._embedding, pack=pack)
        self.head = linear(network.head.weight.data, None, pack=packed)
        network.given_up = network.given_up or freeze
        if packed:
            network.head.weight.data = self._embedding.new_empty(0)
        self._layers = []
        for layer in network.stack:
            fill(layer)
            self._layers.append(DecoderLayer(layer, pack=pack, release=freeze))
            if freeze:
                give_back_memory()

    def forward(
        self,
        ids: Tensor,
        backend: Backend,
        batch: ForwardBatch,
        plan: AnyPlan,
        columns: Sequence[int] | None = None,
    ) -> Forwarded:
        """One forward of any phase; the last layer gives no columns but those that are read.

        Args:
            ids: tokens of all windows, one row behind the other, [columns].
            backend: of the cache; its keys, values and layer outputs are written in place.
            batch: the rows and positions; several windows only under a plan that computes every
                layer. A plan with a probe decides for all rows at once, so give it one row.
            plan: which layer runs are computed, stored or reused.
            columns: those that are read, as indices into ``ids``; all by default.

        Raises:
            NeverWrittenError: the plan reuses what was never stored.
        """
        read = range(ids.numel()) if columns is None else columns
        if isinstance(plan, ProbePlan):
            return self._probe(ids, backend, batch, plan, read)
        steps = plan_steps(plan)
        backend.cache.outputs.book(steps, batch)

        def compute(tokens: Tensor, read: Sequence[int]) -> Tensor:
            x = F.embedding(tokens, self._embedding)
            return self._norm(self._run(x, steps, backend, batch, read))

        return Forwarded(backend.forward(compute, ids, batch, plan, read), plan)

    def _probe(
        self,
        ids: Tensor,
        backend: Backend,
        batch: ForwardBatch,
        plan: ProbePlan,
        read: Sequence[int],
    ) -> Forwarded:
        """A forward whose plan is chosen in the middle of it, on the host."""
        outputs, window = backend.cache.outputs, batch.alone
        outputs.check(plan.run, window.rows, window.columns)
        backend.prepare(batch)
        before = self._layers_of(F.embedding(ids, self._embedding), 0, plan.layer, backend)
        x = self._layers[plan.layer](before, backend)
        fresh = (x - before).view(len(window.rows), -1, x.shape[-1])  # [rows, columns, hidden]
        stored = outputs.read(plan.run, window.rows, window.columns)
        change = float((fresh - stored).norm() / stored.norm())
        chosen = plan.calm if change < plan.threshold else plan.otherwise
        if chosen is plan.otherwise:
            outputs.note(plan.run, window.rows, window.columns)
            outputs.write(plan.run, window.rows, window.columns, fresh)
        steps = plan_steps(chosen, plan.layer + 1)
        outputs.book(steps, batch)
        return Forwarded(self._norm(self._run(x, steps, backend, batch, read)), chosen, change)

    def _run(
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
                if run is None and step is steps[-1]:
                    return self._read(x, step.start, backend, read)
                before = x
                x = self._layers_of(x, step.start, step.stop - step.kv_only, backend)
                if step.kv_only:
                    self._layers[step.stop - 1].write_kv(x, backend)
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

    def _layers_of(self, x: Tensor, start: int, stop: int, backend: Backend) -> Tensor:
        for layer in self._layers[start:stop]:
            x = layer(x, backend)
        return x

    def _read(self, x: Tensor, start: int, backend: Backend, read: Sequence[int]) -> Tensor:
        """The layers from ``start`` on; the last one only for the columns that are read."""
        last = self._layers[-1]
        x = self._layers_of(x, start, last.index, backend)
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
        fresh = self._layers_of(before, run.start, run.stop, backend)
        backend.prepare(batch)
        kept = fresh if run.target == "output" else fresh - before
        new = kept.view(rows, -1, size)
        backend.cache.outputs.write(run, window.rows, [run.columns] * rows, new)


def chosen_columns(x: Tensor, read: Sequence[int]) -> Tensor:
    """Some columns of ``x`` [columns, hidden]; ``x`` itself where they are all of them."""
    if len(read) == x.shape[0]:
        return x
    return x.index_select(0, torch.tensor(read, dtype=torch.int64, device=x.device))

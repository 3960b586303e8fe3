"""The network as decoding runs it: weights laid out once, and a forward of any plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
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
from fdllm.core.guided import RowForward, carry_out
from fdllm.core.layer_loop import Forwarded, LayerLoop
from fdllm.core.network import Network
from fdllm.core.reuse import AnyPlan, LayerPlan, plan_steps

Fill = Callable[[nn.Module], None]
"""Gives a module its parameters, just ahead of their use."""


def nothing(_: nn.Module) -> None:
    """The :data:`Fill` of modules that have their parameters."""


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
        embedding = network.embedding.weight.data
        pack = freeze and can_pack(embedding)
        # The head is the largest matrix, so it is laid out first, while there is room for it twice.
        fill(network.norm)
        fill(network.head)
        norm = final_norm(network.norm)
        # A tied head is the embedding, which must stay as it is.
        packed = not network.spec.tie_embeddings and packs(embedding, pack=pack)
        self.head = linear(network.head.weight.data, None, pack=packed)
        network.given_up = network.given_up or freeze
        if packed:
            network.head.weight.data = embedding.new_empty(0)
        layers = list[DecoderLayer]()
        for layer in network.stack:
            fill(layer)
            layers.append(DecoderLayer(layer, pack=pack, release=freeze))
            if freeze:
                give_back_memory()
        self._loop = LayerLoop(embedding, layers, norm)

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
                layer; of a guided plan one row.
            plan: which layer runs are computed, stored or reused.
            columns: those that are read, as indices into ``ids``; all by default.

        Raises:
            NeverWrittenError: the plan reuses what was never stored.
        """
        read = range(ids.numel()) if columns is None else columns
        if not isinstance(plan, LayerPlan):
            return carry_out(plan, RowForward(self._loop, ids, backend, batch, read))
        loop, steps = self._loop, plan_steps(plan)
        backend.cache.outputs.book(steps, batch)

        def compute(tokens: Tensor, read: Sequence[int]) -> Tensor:
            return loop.norm(loop.run(loop.embed(tokens), steps, backend, batch, read))

        return Forwarded(backend.forward(compute, ids, batch, plan, read), plan)

"""The network: its weights and its definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fdllm.core.attention import DenseAttention
from fdllm.core.cache import RowCache, Window
from fdllm.core.decoder_layer import can_pack
from fdllm.core.layerplan import AnyPlan
from fdllm.core.layers import Head, Layer, RMSNorm, rotary_table
from fdllm.core.model_runner import Fill, Forwarded, Stepper, nothing
from fdllm.core.model_spec import ModelSpec
from fdllm.fast.accelerators import Compiled


class Network(nn.Module):
    """Qwen2.5's architecture under block-causal attention (docs/algorithm.md 3).

    What stands here is the definition, which training differentiates. Decoding goes through
    :meth:`prepare`: the same weights and arithmetic, in the fewest kernels.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.stack = [Layer(i, spec) for i in range(spec.num_layers)]
        self.layers = nn.ModuleList(self.stack)
        self.norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.head = Head(spec.hidden_size, spec.vocab_size, bias=False)
        if spec.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._rotary: tuple[Tensor, Tensor] | None = None
        self._frozen: Stepper | None = None
        self._compiled: Compiled | None = None

    def prepare(self) -> Stepper:
        """The network as decoding runs it, from the weights as they are now."""
        if self._frozen is not None:
            return self._frozen
        made = Stepper(self, pack=False, release=False)
        if self._compiled is not None:
            made.use(self._compiled)
        return made

    @torch.no_grad()
    def freeze(self, fill: Fill = nothing) -> None:
        """Lay the weights out for decoding, once and for all.

        Parameters that are kept in another layout afterwards are given up: what
        ``named_parameters`` then shows of the layers is no checkpoint any more.

        Args:
            fill: gives a module its parameters, called just ahead of their use: a network that
                was made on the ``meta`` device never holds more than one layer in two layouts.
        """
        if self._frozen is None:
            fill(self.embedding)
            pack = can_pack(self.embedding.weight)
            self._frozen = Stepper(self, pack=pack, release=True, fill=fill)
            if self._compiled is not None:
                self._frozen.use(self._compiled)
            self._rotary = None  # what decoding needs of it, the stepper has

    def use(self, compiled: Compiled) -> None:
        """Decode with these from now on; without a word, with what pays here."""
        self._compiled = compiled
        if self._frozen is not None:
            self._frozen.use(compiled)

    def forward(
        self,
        ids: Tensor,
        cache: RowCache,
        window: Window,
        plan: AnyPlan,
        starts: Sequence[int],
    ) -> Forwarded:
        """One forward of any phase, see :meth:`fdllm.core.model_runner.Stepper.forward`."""
        return self.prepare().forward(ids, cache, window, plan, starts)

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
        if self._frozen is not None:
            return self._frozen.dense(ids, positions, mask)
        dtype = self.embedding.weight.dtype
        cos, sin = (t[positions].to(dtype) for t in self.table())
        if positions.dim() > 1:
            cos, sin = cos[:, None], sin[:, None]
        attend = DenseAttention(mask, self.spec.num_heads // self.spec.num_kv_heads)
        x = self.embedding(ids)
        for layer in self.stack:
            x = layer(x, cos, sin, attend)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def table(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, [positions, head dim], float32."""
        device = self.embedding.weight.device
        if self._rotary is None or self._rotary[0].device != device:
            self._rotary = rotary_table(self.spec, self.spec.max_positions, device)
        return self._rotary

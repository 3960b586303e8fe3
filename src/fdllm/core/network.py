"""The network: its weights and its definition."""

from __future__ import annotations

from torch import Tensor, nn

from fdllm.core.layers import Layer, RMSNorm, rotary_table
from fdllm.core.model_spec import ModelSpec


class Network(nn.Module):
    """Qwen2.5's architecture under block-causal attention (docs/algorithm.md 3).

    What stands here is the definition, which training differentiates. Decoding goes through
    :class:`fdllm.core.model_runner.ModelRunner`: the same weights and arithmetic, in the fewest
    kernels.

    Attributes:
        given_up: whether a runner has laid the weights out for itself: they are no checkpoint any
            more, and nothing is computed from here.
    """

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
        self.given_up = False
        self._rotary: tuple[Tensor, Tensor] | None = None

    def dense(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of whole sequences without any cache.

        Args:
            ids: tokens [rows, columns].
            positions: rotary positions [columns] (or [rows, columns]).
            mask: True where a query may see a key, [columns, columns] or [rows, 1, columns,
                columns]; None for all.

        Returns:
            Logits [rows, columns, vocabulary].

        Raises:
            ValueError: the weights are laid out for decoding.
        """
        if self.given_up:
            raise ValueError("the weights are laid out for decoding; load them with freeze=False")
        dtype = self.embedding.weight.dtype
        cos, sin = (t[positions].to(dtype) for t in self._table())
        if positions.dim() > 1:
            cos, sin = cos[:, None], sin[:, None]
        if mask is not None:  # once for each head of a group
            group = self.spec.num_heads // self.spec.num_kv_heads
            mask = mask.repeat(*[1] * (mask.dim() - 2), group, 1)
        x = self.embedding(ids)
        for layer in self.stack:
            x = layer(x, cos, sin, mask)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def _table(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position, [positions, head dim], float32."""
        device = self.embedding.weight.device
        if self._rotary is None or self._rotary[0].device != device:
            self._rotary = rotary_table(self.spec, self.spec.max_positions, device)
        return self._rotary

"""The network: its weights and its definition, which training differentiates.

Projections are packed (q, k, v in one matrix; gate and up in one), because a step of eight columns
is bound by the number of products it makes; :mod:`fdllm.checkpoint.tensors` maps the Hub's names.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fdllm.core.model_spec import ModelSpec


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)


class Layer(nn.Module):
    """One transformer layer."""

    def __init__(self, index: int, spec: ModelSpec) -> None:
        super().__init__()
        self.index = index
        self.num_kv_heads = spec.num_kv_heads
        self.group = spec.num_heads // spec.num_kv_heads
        self.head_dim = spec.head_dim
        self.q_size = spec.num_heads * spec.head_dim
        self.kv_size = spec.num_kv_heads * spec.head_dim
        self.input_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.qkv = nn.Linear(spec.hidden_size, self.q_size + 2 * self.kv_size)
        self.o = nn.Linear(self.q_size, spec.hidden_size, bias=False)
        self.post_norm = RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.gate_up = nn.Linear(spec.hidden_size, 2 * spec.intermediate_size, bias=False)
        self.down = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Run the layer.

        Args:
            x: hidden state [rows, columns, hidden].
            cos: rotary cosines, [columns, head dim] or [rows, 1, columns, head dim].
            sin: rotary sines, shaped as ``cos``.
            mask: True where a query may see a key, [..., group * columns, columns]; None for all.

        Returns:
            The hidden state behind the layer, shaped as ``x``; ``x`` itself is left alone.
        """
        rows, columns, _ = x.shape
        q, k, v = self._qkv(x, cos, sin)
        # A group's heads stand one behind the other, so that keys need no copy for each of them.
        grouped = q.reshape(rows, self.num_kv_heads, -1, self.head_dim)  # [.., group * columns, ..]
        mixed = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
        mixed = mixed.reshape(rows, self.num_kv_heads * self.group, columns, self.head_dim)
        # [rows, heads, columns, head dim] -> [rows, columns, heads * head dim]
        x = x + self.o(mixed.transpose(1, 2).reshape(rows, columns, self.q_size))
        gate, up = self.gate_up(self.post_norm(x)).chunk(2, dim=-1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out

    def _qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, columns, _ = x.shape
        # [rows, queries + keys + values, columns, head dim]
        heads = self.qkv(self.input_norm(x)).view(rows, columns, -1, self.head_dim).transpose(1, 2)
        num_q = self.num_kv_heads * self.group
        rotated = rotate(heads[:, : num_q + self.num_kv_heads], cos, sin)
        return (
            rotated[:, :num_q],
            rotated[:, num_q:],
            heads[:, num_q + self.num_kv_heads :],
        )


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half rotary embedding of ``x`` [rows, heads, columns, head dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def rotary_table(spec: ModelSpec, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head dim], in float32."""
    exponent = torch.arange(0, spec.head_dim, 2, dtype=torch.float32, device=device)
    frequency = 1.0 / spec.rope_theta ** (exponent / spec.head_dim)
    angle = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), frequency)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos(), angle.sin()


def block_causal_mask(
    num_queries: int, num_keys: int, block_size: int, device: torch.device
) -> Tensor:
    """True where query q may see key k: ``k // block_size <= q // block_size``.

    The queries are the last ``num_queries`` of ``num_keys`` positions. [queries, keys], bool.
    """
    keys = torch.arange(num_keys, device=device) // block_size
    queries = keys[num_keys - num_queries :]
    return keys[None, :] <= queries[:, None]


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

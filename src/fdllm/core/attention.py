"""Attention by torch's kernels: of a cache's places, and of whole sequences without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.model_spec import ModelSpec
from fdllm.core.workspace import Scratch, pairs_of


class DenseAttention:
    """Attention among the given columns alone, under an explicit mask (training, tests)."""

    def __init__(self, mask: Tensor | None, group: int) -> None:
        self.mask = None if mask is None else mask.repeat(*[1] * (mask.dim() - 2), group, 1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


class TorchAttention:
    """Attention by torch's own kernels."""

    scratch: Scratch
    factors: Tensor

    def prepare(self, mask: Tensor | None) -> None:
        """Views that every layer shares.

        Args:
            mask: True where a query may see a key; None for everywhere.
        """
        self._query_factors = self.factors.unsqueeze(-2)
        self._mask = None if mask is None else _additive(mask, self.scratch.query.dtype)

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """As :meth:`Place.mix`."""
        query, keys, values = self.scratch.split(heads)
        rotate_pairs(query, self._query_factors, self.scratch.query_out)
        self._write(layer, keys, values)
        seen = self._attend(layer).transpose(1, 2)
        return seen.reshape(-1, self.scratch.q_size)

    def keep(self, layer: int, heads: Tensor) -> None:
        """As :meth:`Place.keep`."""
        self._write(layer, *self.scratch.split(heads)[-2:])

    def _see(self, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries see, [rows, kv heads, columns * group, head dim]."""
        query, mask = self.scratch.query, self._mask
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        raise NotImplementedError

    def _attend(self, layer: int) -> Tensor:
        raise NotImplementedError


class DensePlace(TorchAttention):
    """Whole sequences without a cache, under an explicit mask: each layer sees its own columns.

    Args:
        spec: the model's shape.
        factors: rotary factors, as :class:`Place` takes them.
        shape: rows and columns.
        like: a tensor of the weights' type and device.
        mask: True where a query may see a key, as :meth:`fdllm.core.network.Network.dense`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        factors: Tensor,
        shape: Sequence[int],
        like: Tensor,
        mask: Tensor | None,
    ) -> None:
        rows, columns = shape
        group = spec.num_heads // spec.num_kv_heads
        grouped = None if mask is None else mask.repeat_interleave(group, -2)
        self.scratch, self.factors = Scratch(spec, rows, columns, like), factors
        self.prepare(grouped)
        fresh = like.new_empty(2, rows, spec.num_kv_heads, columns, spec.head_dim)
        self._kv = fresh.unbind(0)
        self._kv_out = pairs_of(fresh.transpose(2, 3)).unbind(0)

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:  # noqa: ARG002 - any layer's
        rotate_pairs(keys, self.factors, self._kv_out[0])
        copy_pairs(values, self._kv_out[1])

    def _attend(self, layer: int) -> Tensor:  # noqa: ARG002
        return self._see(*self._kv)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as attention adds it: 0 where a key is seen. Made once, not once a layer."""
    unseen = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return unseen.masked_fill_(~mask, float("-inf"))


def rotate_pairs(x: Tensor, factors: Tensor, out: Tensor) -> None:
    """Rotary embedding of complex pairs ``x`` [rows, columns, ..., head dim / 2] into ``out``."""
    if out.is_complex():
        torch.mul(x, factors, out=out)
    else:
        out.copy_(torch.view_as_real(x * factors).flatten(-2))


def copy_pairs(x: Tensor, out: Tensor) -> None:
    """Complex pairs ``x`` into ``out``."""
    out.copy_(x if out.is_complex() else torch.view_as_real(x).flatten(-2))

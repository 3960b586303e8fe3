"""Attention among the given columns alone."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class DenseAttention:
    """Attention among the given columns alone, under an explicit mask (training, tests)."""

    def __init__(self, mask: Tensor | None, group: int) -> None:
        self.mask = None if mask is None else mask.repeat(*[1] * (mask.dim() - 2), group, 1)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)

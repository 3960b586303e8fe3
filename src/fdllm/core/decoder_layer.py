"""One layer as the step loop runs it: few kernels, no modules, results written where they belong.

:class:`fdllm.core.layers.Layer` is the definition; what stands here is the same arithmetic in
fewer steps. Rotary embedding multiplies complex numbers, so the rows of the query and key
projections are reordered to bring the two halves of each pair together; a dot product does not
mind the order. On a CPU large matrices are packed into oneDNN's own layout, which reads weights
about twice as fast for eight rows, and takes sums along; and what stands between the products of a
forward is compiled (:mod:`fdllm.fast.kernels`).
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.layers import Layer, RMSNorm
from fdllm.core.workspace import Scratch

PACK_FROM = 1 << 16
"""Weights of a matrix that is worth packing: below, oneDNN's fixed cost per call is more."""
_ROWS = 32  # a layout for blocks of 32 columns serves eight and five hundred as well

Linear = Callable[[Tensor], Tensor]
Fused = Callable[[Tensor, Tensor], Tensor]
Scratched = Callable[[Tensor, Scratch], Tensor]


class AnyPlace(Protocol):
    """Where a layer's columns stand; see :mod:`fdllm.core.place`."""

    scratch: Scratch

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """Write keys and values, attend; what each column sees."""

    def keep(self, layer: int, heads: Tensor) -> None:
        """Write keys and values."""


def pairwise_rows(num_heads: int, head_dim: int) -> Tensor:
    """Order of a projection's rows that brings rotate-half's pairs together: 0, d/2, and so on."""
    half = head_dim // 2
    one = torch.arange(head_dim).view(2, half).t().reshape(-1)
    return (torch.arange(num_heads)[:, None] * head_dim + one).reshape(-1)


class FastLayer:
    """A layer's weights, ready to run.

    Args:
        layer: the definition. Its parameters are shared where they need no other layout.
        pack: whether large matrices go into oneDNN's layout.
        release: whether the layer gives up parameters that are kept here in another layout.
    """

    def __init__(self, layer: Layer, *, pack: bool, release: bool) -> None:
        self.index = layer.index
        order = torch.arange(layer.qkv.weight.shape[0])
        rotated = layer.q_size + layer.kv_size
        order[:rotated] = pairwise_rows(rotated // layer.head_dim, layer.head_dim)
        order = order.to(layer.qkv.weight.device)
        self._norm_in, qkv = norm_ahead(layer.input_norm, layer.qkv.weight.data[order])
        self._norm_out, gate_up = norm_ahead(layer.post_norm, layer.gate_up.weight.data)
        bias = layer.qkv.bias.data[order]
        # Attention gives a column's heads group by group.
        o = layer.o.weight.data.unflatten(1, (layer.num_kv_heads, layer.group, -1))
        o = o.transpose(1, 2).flatten(1).contiguous()
        self._qkv = projection(qkv, bias, pack=pack)
        # Where only keys and values are owed, a packed matrix is not cut: that would cost a copy.
        self._kv: Linear | None = None
        if not packs(qkv, pack=pack):
            self._kv = linear(qkv[layer.q_size :], bias[layer.q_size :], pack=False)
        self._o = linear_add(o, pack=pack)
        self._gated = gated(gate_up, pack=pack)
        self._down = linear_add(layer.down.weight.data, pack=pack)
        if release:
            layer.qkv.weight.data, layer.qkv.bias.data = qkv, bias
            layer.o.weight.data, layer.gate_up.weight.data = o, gate_up
            for part in (layer.qkv, layer.o, layer.gate_up, layer.down):
                if packs(part.weight, pack=pack):
                    part.weight.data = part.weight.data.new_empty(0)

    def __call__(self, x: Tensor, place: AnyPlace) -> Tensor:
        """The hidden state behind the layer.

        Args:
            x: hidden state [rows * columns, hidden]; left alone.
            place: where the columns stand.
        """
        scratch = place.scratch
        heads = self._qkv(self._norm_in(x, scratch), scratch)
        x = self._o(place.mix(self.index, heads), x)
        return self._down(self._gated(self._norm_out(x, scratch), scratch), x)

    def read(self, x: Tensor, place: AnyPlace, columns: Tensor, scratch: Scratch) -> Tensor:
        """The hidden state behind the layer where it is read; keys and values everywhere.

        Args:
            x: hidden state [rows * columns, hidden].
            place: where the columns stand.
            columns: which of them are read.
            scratch: of one row and as many columns.
        """
        heads = self._qkv(self._norm_in(x, place.scratch), place.scratch)
        mixed = place.mix(self.index, heads)
        x = self._o(mixed.index_select(0, columns), x.index_select(0, columns))
        return self._down(self._gated(self._norm_out(x, scratch), scratch), x)

    def keep_kv(self, x: Tensor, place: AnyPlace) -> None:
        """Only the keys and values that the layer owes, where its output reaches nothing."""
        normed = self._norm_in(x, place.scratch)
        heads = self._kv(normed) if self._kv is not None else self._qkv(normed, place.scratch)
        place.keep(self.index, heads)


def norm(definition: RMSNorm, weight: Tensor) -> tuple[Linear, Tensor]:
    """Root-mean-square norm in float32, and the matrix that is applied to what it gives.

    Args:
        definition: the norm.
        weight: the matrix behind it, [out, hidden].

    Returns:
        The norm as a function, and ``weight``, into which the norm's own weight may have gone.
    """
    scale, eps, size = definition.weight.data, definition.eps, definition.weight.shape[0]
    if scale.device.type != "cpu":
        if scale.dtype == torch.float32:
            return lambda x: F.rms_norm(x, (size,), scale, eps), weight
        return lambda x: scale * F.rms_norm(x.float(), (size,), None, eps).to(x.dtype), weight
    # hypot(|x|, sqrt(n * eps)) = sqrt(n) * sqrt(mean(x^2) + eps): three kernels instead of seven.
    length, root = torch.linalg.vector_norm, math.sqrt(size)
    least = torch.tensor(math.sqrt(size * eps))
    if scale.dtype == torch.float32:
        folded = weight * (scale * root)
        return lambda x: x.div(torch.hypot(length(x, dim=-1, keepdim=True), least)), folded

    def narrow(x: Tensor) -> Tensor:
        total = length(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * (root / torch.hypot(total, least))).to(scale.dtype).mul_(scale)

    return narrow, weight


def norm_ahead(definition: RMSNorm, weight: Tensor) -> tuple[Scratched, Tensor]:
    """:func:`norm`, by the compiled kernel where the forward has one."""
    plain, behind = norm(definition, weight)
    scale = None if behind is not weight else definition.weight.data

    def run(x: Tensor, scratch: Scratch) -> Tensor:
        return plain(x) if scratch.fused is None else scratch.fused.norm(x, scale)

    return run, behind


def final_norm(definition: RMSNorm) -> Linear:
    """The norm ahead of the head, whose matrix may be the embedding's and stays as it is."""
    scale = definition.weight.data
    bare, one = norm(definition, torch.ones((), dtype=scale.dtype, device=scale.device))
    if one.dim() == 0:
        return bare
    return lambda x: bare(x).mul_(one)


def linear(weight: Tensor, bias: Tensor | None, *, pack: bool) -> Linear:
    """``x @ weight.T + bias``."""
    if packs(weight, pack=pack):
        packed, product = _packed(weight), torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        return lambda x: product(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


def projection(weight: Tensor, bias: Tensor, *, pack: bool) -> Scratched:
    """``x @ weight.T + bias`` to queries, keys and values; of a small matrix into the scratch."""
    if weight.numel() >= PACK_FROM:
        whole = linear(weight, bias, pack=pack)
        return lambda x, _: whole(x)
    across = weight.t()
    return lambda x, scratch: torch.addmm(bias, x, across, out=scratch.heads)


def linear_add(weight: Tensor, *, pack: bool) -> Fused:
    """``x @ weight.T + other``."""
    if packs(weight, pack=pack):
        packed, product = _packed(weight), torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
        return lambda x, other: product(x, other, packed, None, "add")
    across = weight.t()
    return lambda x, other: torch.addmm(other, x, across)


def gated(gate_up: Tensor, *, pack: bool) -> Scratched:
    """SwiGLU's ``silu(x @ gate.T) * (x @ up.T)`` of one matrix that holds both."""
    if gate_up.numel() >= PACK_FROM:
        # One product of both: oneDNN's own SiLU and product along with it were slower for a block.
        product = linear(gate_up, None, pack=pack)

        def whole(x: Tensor, scratch: Scratch) -> Tensor:
            both = product(x)
            if scratch.fused is not None:
                return scratch.fused.gate(both)
            gate, up = both.chunk(2, -1)
            return F.silu(gate).mul_(up)

        return whole
    across = gate_up.t()

    def small(x: Tensor, scratch: Scratch) -> Tensor:
        both, gate, up = scratch.gates
        torch.mm(x, across, out=both)
        if scratch.fused is not None:
            return scratch.fused.gate(both)
        return F.silu(gate).mul_(up)

    return small


def packs(weight: Tensor, *, pack: bool) -> bool:
    """Whether a matrix goes into oneDNN's layout, where any does."""
    return pack and weight.numel() >= PACK_FROM


def _packed(weight: Tensor) -> Tensor:
    reorder = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
    packed: Tensor = reorder(weight.contiguous(), _ROWS)
    return packed


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN is there and serves this type on this machine."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
    return weight.dtype == torch.float32


def give_back_memory() -> None:
    """Let the C library return to the system what was freed; only glibc needs to be asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)

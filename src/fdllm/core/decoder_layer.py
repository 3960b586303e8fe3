"""One layer as the step loop runs it: few kernels, no modules, results written where they belong.

:class:`fdllm.core.network.Layer` is the definition; what stands here is the same arithmetic in
fewer steps. Rotary embedding multiplies complex numbers, so the rows of the query and key
projections are reordered to bring the two halves of each pair together; a dot product does not
mind the order. On a CPU large matrices are packed into oneDNN's own layout, which reads weights
about twice as fast for eight rows, and takes sums along; and what stands between the products of a
forward is the backend's (:mod:`fdllm.core.attention`).
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.attention import AttentionBackend, Norm
from fdllm.core.network import Layer, RMSNorm

PACK_FROM = 1 << 16
"""Weights of a matrix that is worth packing: below, oneDNN's fixed cost per call is more."""
_ROWS = 32  # a layout for blocks of 32 columns serves eight and five hundred as well

Linear = Callable[[Tensor], Tensor]
LinearAdd = Callable[[Tensor, Tensor], Tensor]
Backend = AttentionBackend[Any]
BackendLinear = Callable[[Tensor, Backend], Tensor]


def pairwise_rows(num_heads: int, head_dim: int) -> Tensor:
    """Order of a projection's rows that brings rotate-half's pairs together: 0, d/2, and so on."""
    half = head_dim // 2
    one = torch.arange(head_dim).view(2, half).t().reshape(-1)
    return (torch.arange(num_heads)[:, None] * head_dim + one).reshape(-1)


class DecoderLayer:
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
        self._norm_in, qkv = norm(layer.input_norm, layer.qkv.weight.data[order])
        self._norm_out, gate_up = norm(layer.post_norm, layer.gate_up.weight.data)
        bias = layer.qkv.bias.data[order]
        # Attention gives a column's heads group by group: [hidden, kv heads * group * head dim] to
        # [hidden, group * kv heads * head dim].
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

    def __call__(self, x: Tensor, backend: Backend, columns: Tensor | None = None) -> Tensor:
        """The hidden state behind the layer; keys and values go to the cache.

        Args:
            x: hidden state [columns, hidden]; left alone.
            backend: prepared for these columns; from here on, for those that are read.
            columns: which of them are read, where not all are.
        """
        mixed = backend.attend(self.index, self.heads(x, backend))
        if columns is not None:
            mixed, x = mixed.index_select(0, columns), x.index_select(0, columns)
            backend.resize(x.shape[0])
        return self.feed_forward(self.project(mixed, x), backend)

    def heads(self, x: Tensor, backend: Backend) -> Tensor:
        """Queries, keys and values of ``x``, not yet rotated, [columns, heads * head dim]."""
        return self._qkv(backend.norm(x, self._norm_in), backend)

    def project(self, mixed: Tensor, x: Tensor) -> Tensor:
        """``x``, and what attention's output [columns, heads * head dim] adds to it."""
        return self._o(mixed, x)

    def feed_forward(self, x: Tensor, backend: Backend) -> Tensor:
        """``x`` [columns, hidden] behind attention, and what the feed-forward adds to it."""
        return self._down(self._gated(backend.norm(x, self._norm_out), backend), x)

    def write_kv(self, x: Tensor, backend: Backend) -> None:
        """Only the keys and values that the layer owes, where its output reaches nothing."""
        normed = backend.norm(x, self._norm_in)
        heads = self._kv(normed) if self._kv is not None else self._qkv(normed, backend)
        backend.write_kv(self.index, heads)


def norm(definition: RMSNorm, weight: Tensor) -> tuple[Norm, Tensor]:
    """Root-mean-square norm in float32, and the matrix that is applied to what it gives.

    Args:
        definition: the norm.
        weight: the matrix behind it, [out, hidden].

    Returns:
        The norm, and ``weight``, into which the norm's own weight may have gone.
    """
    scale, eps, size = definition.weight.data, definition.eps, definition.weight.shape[0]
    if scale.device.type != "cpu":
        # One kernel in any type; inside it everything is float32.
        return Norm(lambda x: F.rms_norm(x, (size,), scale, eps), scale), weight
    # hypot(|x|, sqrt(n * eps)) = sqrt(n) * sqrt(mean(x^2) + eps): three kernels instead of seven.
    length, root = torch.linalg.vector_norm, math.sqrt(size)
    least = torch.tensor(math.sqrt(size * eps))
    if scale.dtype == torch.float32:
        folded = weight * (scale * root)
        return Norm(
            lambda x: x.div(torch.hypot(length(x, dim=-1, keepdim=True), least)), None
        ), folded

    def narrow(x: Tensor) -> Tensor:
        total = length(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * (root / torch.hypot(total, least))).to(scale.dtype).mul_(scale)

    return Norm(narrow, scale), weight


def final_norm(definition: RMSNorm) -> Linear:
    """The norm ahead of the head, whose matrix may be the embedding's and stays as it is."""
    scale = definition.weight.data
    bare, one = norm(definition, torch.ones((), dtype=scale.dtype, device=scale.device))
    if one.dim() == 0:
        return bare.plain
    return lambda x: bare.plain(x).mul_(one)


def linear(weight: Tensor, bias: Tensor | None, *, pack: bool) -> Linear:
    """``x @ weight.T + bias``."""
    if packs(weight, pack=pack):
        packed, product = _packed(weight), torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
        return lambda x: product(x, packed, bias, "none", [], "")
    return lambda x: F.linear(x, weight, bias)


def projection(weight: Tensor, bias: Tensor, *, pack: bool) -> BackendLinear:
    """``x @ weight.T + bias`` to queries, keys and values; of a small matrix into a buffer."""
    if weight.numel() >= PACK_FROM:
        whole = linear(weight, bias, pack=pack)
        return lambda x, _: whole(x)
    across = weight.t()
    return lambda x, backend: torch.addmm(bias, x, across, out=backend.work.heads)


def linear_add(weight: Tensor, *, pack: bool) -> LinearAdd:
    """``x @ weight.T + other``."""
    if packs(weight, pack=pack):
        packed, product = _packed(weight), torch.ops.mkldnn._linear_pointwise.binary  # noqa: SLF001
        return lambda x, other: product(x, other, packed, None, "add")
    across = weight.t()
    return lambda x, other: torch.addmm(other, x, across)


def gated(gate_up: Tensor, *, pack: bool) -> BackendLinear:
    """SwiGLU's ``silu(x @ gate.T) * (x @ up.T)`` of one matrix that holds both."""
    if gate_up.numel() >= PACK_FROM:
        # One product of both: oneDNN's own SiLU and product along with it were slower for a block.
        product = linear(gate_up, None, pack=pack)
        return lambda x, backend: backend.gate(product(x))
    across = gate_up.t()
    return lambda x, backend: backend.gate(torch.mm(x, across, out=backend.work.gates))


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

"""What a layer does between its matrix products, compiled: one call where torch takes several.

For eight columns torch's fixed cost of a kernel is several times the kernel's work, and a layer has
a dozen small ones. ``kernels.c`` holds five functions that need no more than a C compiler: where
there is one they are compiled for this machine's processor, once. They are the same arithmetic in
the same types; sums are taken in another order, as from one processor to the next. Attention reads
each row's keys where they lie in the cache, as far as the row goes: no mask, and no keys gathered.
They serve forwards of every width, though a wide one gains nothing by them: where some forwards of
a row went through torch's kernels, its tokens would depend on how many neighbours it has.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fdllm.core.model_spec import ModelSpec
from fdllm.fast.build import CompilerError, load_library

MOST_DIM = 256
"""Of a head, up to which attention has room; ``kernels.c`` has the same number, as of the next."""
LANES = 16
"""Queries that attention takes together."""
_SOURCE = Path(__file__).with_name("kernels.c")
Mark = Callable[[str], AbstractContextManager[object]]
_TYPES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


class _Buffers(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("columns", "hidden", "inner")),
        *((name, ctypes.c_float) for name in ("least", "root")),
        *((name, ctypes.c_void_p) for name in ("normed", "gated")),
    )


class _Place(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "kv_heads", "group", "dim")),
        *((name, ctypes.c_void_p) for name in ("factors", "query", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("layer_step", "row_step", "head_step")),
        *((name, ctypes.c_void_p) for name in ("slots", "positions", "extents")),
    )


class Fused:
    """The compiled functions for one type of weights.

    Args:
        library: ``kernels.c``, compiled for it.
        mark: what each call stands in, by its name, so that a profiler sees it; None for nothing.
    """

    def __init__(self, library: ctypes.PyDLL, mark: Mark | None = None) -> None:
        self._library = library
        pointer, number = ctypes.c_void_p, ctypes.c_int64

        def function(name: str, *arguments: type) -> Callable[..., None]:
            made = library[name]
            made.argtypes, made.restype = arguments, None
            return made if mark is None else _marked(made, mark, f"{_SOURCE.stem}::{name}")

        self.norm = function("norm", pointer, pointer, pointer)
        self.gate = function("gate", pointer, pointer)
        self.mix = function("mix", pointer, pointer, number, pointer)
        self.place_kv = function("place_kv", pointer, pointer, number, number)
        self._choose = function("choose", pointer, number, number, number, pointer, pointer)

    def marked(self, mark: Mark) -> Fused:
        """The same functions for a profiler."""
        return Fused(self._library, mark)

    def choose(self, logits: Tensor, mask_id: int) -> tuple[list[int], list[float]]:
        """As :func:`fdllm.core.unmask.choose_greedy`, onto the host; leaves ``logits`` alone.

        Args:
            logits: [n, vocabulary], of the library's type.
            mask_id: the mask token.
        """
        rows, size = logits.shape
        tokens, confidence = (ctypes.c_int64 * rows)(), (ctypes.c_float * rows)()
        self._choose(_address(logits), rows, size, mask_id, tokens, confidence)
        return list(tokens), list(confidence)


def _marked(function: Callable[..., None], mark: Mark, name: str) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        with mark(name):
            function(*arguments)

    return call


class FusedBuffers:
    """What a forward of so many columns passes through: norms, activations, attention.

    Args:
        fused: the functions.
        spec: the model's shape.
        rows: of the forward.
        width: columns of each row.
        like: a tensor of the weights' type.

    Attributes:
        mixed: what each column sees, [rows * width, heads * head dim].
    """

    def __init__(
        self, fused: Fused, spec: ModelSpec, *, rows: int, width: int, like: Tensor
    ) -> None:
        size, columns = spec.hidden_size, rows * width
        self.functions = fused
        self._norm, self._gate = fused.norm, fused.gate
        self._normed = like.new_empty(columns, size)
        self._gated = like.new_empty(columns, spec.intermediate_size)
        self.mixed = like.new_empty(columns, spec.num_heads * spec.head_dim)
        self._queries: dict[tuple[int, ...], Tensor] = {}
        # In float32 the root went into the matrix behind the norm, with the norm's own weight.
        root = 1.0 if like.dtype == torch.float32 else math.sqrt(size)
        self._at = _Buffers(
            *(columns, size, spec.intermediate_size),
            *(size * spec.rms_norm_eps, root),
            *(self._normed.data_ptr(), self._gated.data_ptr()),
        )
        self._address = ctypes.addressof(self._at)

    def norm(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """The norm of ``x`` [columns, hidden], good until the next.

        Args:
            x: hidden state.
            scale: the norm's weight; None where that went into the matrix behind it.
        """
        self._norm(_address(x), None if scale is None else scale.data_ptr(), self._address)
        return self._normed

    def queries(self, rows: int, kv_heads: int, tiles: int, dim: int) -> Tensor:
        """Where rotated queries go, in tiles of :data:`LANES`: [rows, kv heads, tiles, dim, lanes].

        Windows of one shape share them.
        """
        shape = (rows, kv_heads, tiles, dim, LANES)
        if shape not in self._queries:
            self._queries[shape] = torch.zeros(shape)
        return self._queries[shape]

    def gate(self, both: Tensor) -> Tensor:
        """``silu(gate) * up`` of both side by side, [columns, 2 * inner]; good until the next."""
        self._gate(_address(both), self._address)
        return self._gated


class FusedPlace:
    """Attention of a window: where its keys and values go, and which each of its rows sees.

    Args:
        buffers: of the forward.
        kv: keys and values of the cache, [layers, rows, kv heads, capacity, head dim].
        factors: rotary factors, complex, that expand to [rows, columns, 1, head dim / 2].
        slots: each row's row of the cache; blocks of one prompt are rows that share theirs.
        positions: of each row's columns.
        extents: keys that each row sees.
    """

    def __init__(
        self,
        buffers: FusedBuffers,
        kv: tuple[Tensor, Tensor],
        *,
        factors: Tensor,
        slots: Sequence[int],
        positions: Sequence[Sequence[int]],
        extents: Sequence[int],
    ) -> None:
        (keys, values), dim = kv, factors.shape[-1] * 2
        rows, width, heads = len(slots), len(positions[0]), keys.shape[2]
        functions = buffers.functions
        self._mix, self._kv, self._mixed = functions.mix, functions.place_kv, buffers.mixed
        every = torch.view_as_real(factors.expand(rows, width, 1, dim // 2)).contiguous()
        where = [torch.tensor(part) for part in (slots, positions, extents)]
        group = buffers.mixed.shape[1] // (heads * dim)
        queries = buffers.queries(rows, heads, math.ceil(width * group / LANES), dim)
        self._held = (every, buffers, kv, where)  # for as long as their addresses are used
        self._at = _Place(
            *(rows, width, heads, group, dim),
            *(part.data_ptr() for part in (every, queries, keys, values)),
            *(keys.stride(i) for i in range(3)),
            *(part.data_ptr() for part in where),
        )
        self._addresses = ctypes.addressof(self._at), buffers.mixed.data_ptr()
        self._sizes = (2 * heads * dim, dim)

    def mix(self, layer: int, heads: Tensor) -> Tensor:
        """As :meth:`fdllm.core.place.Place.mix`; good until the next of this size."""
        at, mixed = self._addresses
        self._mix(_address(heads), at, layer, mixed)
        return self._mixed

    def keep(self, layer: int, heads: Tensor) -> None:
        """As :meth:`fdllm.core.place.Place.keep`."""
        kv, dim = self._sizes
        self._kv(_address(heads), self._addresses[0], layer, (heads.shape[1] - kv) // dim)


def _address(x: Tensor) -> int:
    """Where ``x`` begins; it is only read, row behind row."""
    if not x.is_contiguous():
        raise ValueError(f"a fused kernel reads one row behind the other, not strides {x.stride()}")
    return x.data_ptr()


def find_fused(device: torch.device, dtype: torch.dtype) -> Fused | None:
    """The functions for a device and a type; None where they cannot be had."""
    if device.type != "cpu" or dtype not in _TYPES:
        return None
    try:
        return load_fused(dtype)
    except CompilerError:
        return None


@cache
def load_fused(dtype: torch.dtype) -> Fused:
    """The functions for a type of weights, compiled where no earlier process has done it.

    Raises:
        CompilerError: the type has none, or they cannot be compiled here.
    """
    if dtype not in _TYPES:
        raise CompilerError(f"there are compiled kernels for float32 and bfloat16, not for {dtype}")
    return Fused(load_library(_SOURCE, _TYPES[dtype]))

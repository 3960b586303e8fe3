"""What a layer does between its matrix products, compiled: one call where torch takes several.

For eight columns torch's fixed cost of a kernel is several times the kernel's work, and a layer has
a dozen small ones. ``kernels.c`` holds five functions that need no more than a C compiler: where
there is one they are compiled for this machine's processor, once; an image has them built ahead.
They are the same arithmetic in the same types; sums are taken in another order than torch's, in one
order on every processor, so the functions give the same bits on all of them. Attention reads
each row's keys where they lie in the cache, as far as the row goes: no mask, and no keys gathered.
They serve forwards of every width, though a wide one gains nothing by them: where some forwards of
a row went through torch's kernels, its tokens would depend on how many neighbours it has.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdllm.core.attention import KEPT, AttentionBackend, Norm, Workspace
from fdllm.core.cache import RowCache
from fdllm.core.forward_batch import Window
from fdllm.core.model_spec import ModelSpec
from fdllm.core.torch_backend import Accelerator
from fdllm.fast.compiler import load_library

MOST_DIM = 256
"""Of a head, up to which attention has room; ``kernels.c`` has the same number, as of the next."""
LANES = 16
"""Queries that attention takes together."""
Mark = Callable[[str], AbstractContextManager[object]]


class _Buffers(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("columns", "hidden", "inner")),
        *((name, ctypes.c_float) for name in ("least", "root")),
        *((name, ctypes.c_void_p) for name in ("normed", "gated")),
    )


class _Window(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width", "kv_heads", "group", "dim")),
        *((name, ctypes.c_void_p) for name in ("factors", "query", "keys", "values")),
        *((name, ctypes.c_int64) for name in ("layer_step", "row_step", "head_step")),
        *((name, ctypes.c_void_p) for name in ("cache_rows", "positions", "extents", "kept")),
        *((name, ctypes.c_int64) for name in ("kept_step", "num_cache_rows")),
    )


class Kernels(Accelerator):
    """The compiled functions for one type of weights.

    Args:
        library: ``kernels.c``, compiled for it.
        dtype: the type.
        mark: what each call stands in, by its name, so that a profiler sees it; None for nothing.
    """

    def __init__(self, library: ctypes.PyDLL, dtype: torch.dtype, mark: Mark | None = None) -> None:
        self._library, self._dtype = library, dtype
        # The level of processors, where they were not compiled for this very one.
        level = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "built_for")))
        self.name = f"C kernels for {level.decode()}" if level else "C kernels"
        pointer, number = ctypes.c_void_p, ctypes.c_int64

        def function(name: str, *arguments: type) -> Callable[..., None]:
            made = library[name]
            made.argtypes, made.restype = arguments, None
            return made if mark is None else _marked(made, mark, f"kernels::{name}")

        self.norm = function("norm", pointer, pointer, pointer)
        self.gate = function("gate", pointer, pointer)
        self.attend = function("attend", pointer, pointer, number, number, pointer)
        self.write_kv = function("write_kv", pointer, pointer, number, number)
        self._choose = function("choose", pointer, number, number, number, pointer, pointer)

    def backend(self, cache: RowCache) -> AttentionBackend[Any]:
        """As declared; larger heads are left to torch.

        Raises:
            ValueError: the cache is of another type, or not in the machine's memory.
        """
        if cache.keys.dtype != self._dtype or cache.keys.device.type != "cpu":
            found = f"{cache.keys.dtype} on {cache.keys.device}"
            raise ValueError(f"kernels of {self._dtype} on a CPU cannot read {found}")
        if cache.spec.head_dim > MOST_DIM:
            return super().backend(cache)
        return CpuKernelBackend(cache, self)

    def marked(self, mark: Mark) -> Kernels:
        """The same functions for a profiler."""
        return Kernels(self._library, self._dtype, mark)

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


class KernelWorkspace(Workspace):
    """Buffers of a forward of so many columns, and where the functions find them.

    Attributes:
        normed: [columns, hidden].
        gated: [columns, inner].
        mixed: what each column sees, [columns, heads * head dim].
        address: of the struct that holds them.
    """

    def __init__(self, spec: ModelSpec, columns: int, like: Tensor) -> None:
        super().__init__(spec, columns, like)
        size, inner = spec.hidden_size, spec.intermediate_size
        self.normed = like.new_empty(columns, size)
        self.gated = like.new_empty(columns, inner)
        self.mixed = like.new_empty(columns, spec.num_heads * spec.head_dim)
        # In float32 the root went into the matrix behind the norm, with the norm's own weight.
        root = 1.0 if like.dtype == torch.float32 else math.sqrt(size)
        self._struct = _Buffers(
            *(columns, size, inner, size * spec.rms_norm_eps, root),
            *(self.normed.data_ptr(), self.gated.data_ptr()),
        )
        self.address = ctypes.addressof(self._struct)


class KernelWindow(NamedTuple):
    """Where a window's keys and values go, and which each of its rows sees.

    Attributes:
        address: of the struct that the functions take.
        held: the struct, and what it points into.
    """

    address: int
    held: tuple[_Window, tuple[Tensor, ...]]


class CpuKernelBackend(AttentionBackend[KernelWindow]):
    """Attention, norms and activations by compiled functions.

    Args:
        cache: of a CPU, of the functions' type; heads of at most :data:`MOST_DIM`.
        kernels: the functions.
    """

    work: KernelWorkspace

    def __init__(self, cache: RowCache, kernels: Kernels) -> None:
        super().__init__(cache)
        self._kernels = kernels
        self._works = lru_cache(KEPT)(lambda n: KernelWorkspace(self.spec, n, cache.keys))
        self._queries = lru_cache(KEPT)(lambda *shape: torch.zeros(shape))

    def resize(self, columns: int) -> None:
        """As declared."""
        self.work = self._works(columns)

    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """As declared."""
        scale = None if norm.scale is None else norm.scale.data_ptr()
        self._kernels.norm(_address(x), scale, self.work.address)
        return self.work.normed

    def gate(self, both: Tensor) -> Tensor:
        """As declared."""
        self._kernels.gate(_address(both), self.work.address)
        return self.work.gated

    def choose(self, logits: Tensor, mask_id: int) -> tuple[list[int], list[float]]:
        """As declared."""
        return self._kernels.choose(logits, mask_id)

    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """As declared; one call for all windows."""
        mixed = self.work.mixed
        self._kernels.attend(
            _address(heads), self._windows, len(self._windows), layer, mixed.data_ptr()
        )
        return mixed

    def _stand(self, at: list[KernelWindow], sizes: list[int]) -> None:
        super()._stand(at, sizes)
        self._windows = (ctypes.c_void_p * len(at))(*(one.address for one in at))

    def _write_kv(self, at: KernelWindow, layer: int, heads: Tensor) -> None:
        skipped = heads.shape[1] // self.spec.head_dim - 2 * self.spec.num_kv_heads
        self._kernels.write_kv(_address(heads), at.address, layer, skipped)

    def _lay_out(self, window: Window) -> KernelWindow:
        keys, values, spec = self.cache.keys, self.cache.values, self.spec
        columns, group = len(window.offsets), spec.num_heads // spec.num_kv_heads
        starts, offsets = torch.tensor(window.starts), torch.tensor(list(window.offsets))
        rows, extents = torch.tensor(window.rows), torch.tensor(window.extents)
        positions = starts[:, None] + offsets  # [rows, columns]
        if window.causal_block is not None:
            # Of a prompt each block is a row, which sees the keys up to its own end.
            rows = rows.repeat_interleave(columns // window.causal_block)
            positions = positions.view(len(rows), -1)  # [rows * blocks, columns of a block]
            extents = positions[:, -1] + 1
        width = positions.shape[1]
        factors = torch.view_as_real(self.factors[positions])  # [rows, width, 1, head dim / 2, 2]
        tiles = math.ceil(width * group / LANES)
        kept = self.cache.overwritten(window)
        # Windows of one shape share them.
        query = self._queries(len(rows), spec.num_kv_heads, tiles, spec.head_dim, LANES)
        struct = _Window(
            *(len(rows), width, spec.num_kv_heads, group, spec.head_dim),
            *(part.data_ptr() for part in (factors, query, keys, values)),
            *keys.stride()[:3],
            *(part.data_ptr() for part in (rows, positions, extents)),
            *((None, 0) if kept is None else (kept.data_ptr(), kept[0].numel())),
            self.cache.num_rows,
        )
        held = struct, (factors, query, rows, positions, extents)
        return KernelWindow(ctypes.addressof(struct), held)


def _address(x: Tensor) -> int:
    """Where ``x`` begins; it is only read, row behind row."""
    if not x.is_contiguous():
        raise ValueError(f"a kernel reads one row behind the other, not strides {x.stride()}")
    return x.data_ptr()


@cache
def load_kernels(dtype: torch.dtype) -> Kernels:
    """The functions for a type of weights; see :func:`fdllm.fast.compiler.load_library`.

    Raises:
        CompilerError: the type has none, or they cannot be compiled here.
    """
    return Kernels(load_library(str(dtype).removeprefix("torch.")), dtype)

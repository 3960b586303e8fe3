"""What ``--compile`` means on a device, and what is taken where nobody says.

On a CPU: the C kernels of :mod:`fdllm.fast.kernels`, by default wherever there is a C compiler;
they were measured to pay on every shape (``fdllm bench step`` with and without). On a GPU: CUDA
graphs (:mod:`fdllm.fast.cuda_graphs`), when asked for; runs ask by themselves where ``fdllm
selftest`` has found on that GPU that graphs are right and pay (:mod:`fdllm.record.selftested`).
What torch's own compiler writes for a CPU was measured to be slower than either
(``benchmarks/compile.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fdllm.errors import UsageError
from fdllm.fast.build import CompilerError
from fdllm.fast.cuda_graphs import Record, cuda_graph
from fdllm.fast.kernels import Fused, find_fused, load_fused


@dataclass(frozen=True)
class Compiled:
    """What decoding runs besides torch's own kernels.

    Attributes:
        fused: C kernels between the products on a CPU.
        record: how forwards are recorded on a GPU.
    """

    fused: Fused | None = None
    record: Record | None = None

    def __str__(self) -> str:
        """As a record's provenance names it."""
        if self.fused is not None:
            return "C kernels"
        return "no" if self.record is None else "CUDA graphs"


def compiled_on(device: torch.device, dtype: torch.dtype, *, asked: bool | None = None) -> Compiled:
    """What is used on a device.

    Args:
        device: where the weights are.
        dtype: their type.
        asked: what the user said; None takes C kernels where they can be had, and no graphs.

    Raises:
        UsageError: it was asked for, and there is none.
    """
    if asked is None:
        return Compiled(find_fused(device, dtype))
    if not asked:
        return Compiled()
    if device.type == "cuda":
        return Compiled(record=cuda_graph)
    if device.type != "cpu":
        raise UsageError(f"--compile is for a CPU or CUDA, and the model is on '{device}'")
    try:
        return Compiled(load_fused(dtype))
    except CompilerError as error:
        raise UsageError(
            f"--compile: {error}; install gcc or clang (or load the site's module), or leave "
            "--compile out: decoding then takes torch's own kernels and is slower"
        ) from None

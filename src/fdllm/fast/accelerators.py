"""What ``--compile`` means on a device, and what is taken where nobody says.

On a CPU: the C kernels of :mod:`fdllm.fast.kernels`, by default wherever there is a C compiler;
they were measured to pay on every shape (``fdllm bench step`` with and without). On a GPU: CUDA
graphs (:mod:`fdllm.fast.cuda_graphs`), when asked for; runs ask by themselves where ``fdllm
selftest`` has found on that GPU that graphs are right and pay (:mod:`fdllm.record.selftested`).
What torch's own compiler writes for a CPU was measured to be slower than either
(``benchmarks/compile.py``).
"""

from __future__ import annotations

from pathlib import Path

import torch

from fdllm.core import checkpoint
from fdllm.core.checkpoint import Model
from fdllm.core.torch_backend import Accelerator
from fdllm.errors import UsageError
from fdllm.fast.compiler import CompilerError
from fdllm.fast.cuda_graphs import CudaGraphs
from fdllm.fast.kernels import load_kernels


def load_model(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    revision: str | None = None,
    freeze: bool = True,
) -> Model:
    """Load a checkpoint, to be decoded with what pays on its device.

    Arguments and errors are those of :func:`fdllm.core.checkpoint.load_model`.
    """
    return checkpoint.load_model(
        path, device, dtype, revision=revision, freeze=freeze, accelerators=accelerator_on
    )


def accelerator_on(
    device: torch.device,
    dtype: torch.dtype,
    asked: bool | None = None,  # noqa: FBT001 - True, False or nothing said
) -> Accelerator:
    """The :data:`fdllm.core.torch_backend.Accelerators` there are.

    Where nobody says: C kernels where they can be had, and no graphs.
    """
    if asked is False or (asked is None and device.type != "cpu"):
        return Accelerator()
    if device.type == "cuda":
        return CudaGraphs()
    if device.type != "cpu":
        raise UsageError(f"--compile is for a CPU or CUDA, and the model is on '{device}'")
    try:
        return load_kernels(dtype)
    except CompilerError as error:
        if asked is None:
            return Accelerator()
        raise UsageError(
            f"--compile: {error}; install gcc or clang (or load the site's module), or leave "
            "--compile out: decoding then takes torch's own kernels and is slower"
        ) from None

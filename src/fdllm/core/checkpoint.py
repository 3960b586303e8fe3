"""A loaded checkpoint: network, shape, tokenizer, device and data type."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fdllm.checkpoint.folder import locate
from fdllm.checkpoint.special_tokens import has_tokenizer, load_tokenizer, read_spec
from fdllm.checkpoint.tensors import checked_headers, hub_names, parameter_filler
from fdllm.core.attention import AttentionBackend
from fdllm.core.cache import RowCache
from fdllm.core.model_runner import Fill, ModelRunner, nothing
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network
from fdllm.core.torch_backend import Accelerator, Accelerators, no_accelerator
from fdllm.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Model:
    """A loaded checkpoint: the network, its shape, and where it came from."""

    network: Network  # the weights, in evaluation mode
    spec: ModelSpec  # the shape; ``spec.mask_id`` may have been found in the tokenizer
    folder: Path | None  # where the files lie on this machine
    name: str  # what the user asked for
    device: torch.device  # where the weights are
    dtype: torch.dtype  # their type
    # what decoding may take besides torch's kernels; none by default
    accelerators: Accelerators = no_accelerator
    accelerator: Accelerator = field(init=False)  # what it takes, as :meth:`compile` has chosen
    _runner: ModelRunner | None = field(default=None, init=False, repr=False)
    # of a run that has ended, for the next one
    _idle: AttentionBackend[Any] | None = field(default=None, init=False, repr=False)
    _tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.compile()

    def compile(self, *, asked: bool | None = None) -> str:
        """Choose what decoding runs besides torch's kernels, see :mod:`fdllm.fast.accelerators`.

        Args:
            asked: True for C kernels on a CPU and CUDA graphs on a GPU, False for neither; None
                takes what was measured to pay.

        Returns:
            What it runs from now on: ``C kernels``, ``CUDA graphs`` or ``no``. C kernels that were
            built ahead name what for: ``C kernels for x86-64-v3``.

        Raises:
            UsageError: it was asked for, and cannot be had here.
        """
        self.accelerator = self.accelerators(self.device, self.dtype, asked)
        self._idle = None
        return self.accelerator.name

    def freeze(self, fill: Fill = nothing) -> None:
        """Lay the weights out for decoding, once and for all; see :class:`ModelRunner`."""
        if self._runner is None:
            self._runner = ModelRunner(self.network, freeze=True, fill=fill)

    def runner(self) -> ModelRunner:
        """The network as decoding runs it, from the weights as they are now."""
        return self._runner or ModelRunner(self.network)

    def backend(
        self, *, num_rows: int, capacity: int, block_size: int | None = None
    ) -> AttentionBackend[Any]:
        """A cache of so many rows and at least so many tokens a row, and what attends over it."""
        idle, self._idle = self._idle, None
        block_size = block_size or self.spec.block_size
        step = self.accelerator.capacity_step
        capacity = -(-capacity // step) * step
        if idle is not None and idle.cache.serves(num_rows, capacity, block_size):
            return idle
        return self.accelerator.backend(
            RowCache(
                self.spec,
                num_rows=num_rows,
                capacity=capacity,
                block_size=block_size,
                like=self.network.embedding.weight,
            )
        )

    def take_back(self, backend: AttentionBackend[Any]) -> None:
        """Keep the backend of a run that ended well, where the next one can use what it holds.

        What it holds stands over the weights' own addresses, so they must be laid out for good.
        """
        if self.accelerator.keeps_backends and self._runner is not None:
            for row in range(backend.cache.num_rows):
                backend.cache.reset(row)
            self._idle = backend

    @property
    def n_layers(self) -> int:
        """Transformer layers."""
        return self.spec.num_layers

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer.

        Raises:
            FdllmError: the folder holds none.
        """
        if self._tokenizer is not None:
            return self._tokenizer  # type: ignore[no-any-return]
        return load_tokenizer(self.folder, self.name)

    @property
    def end_token(self) -> int | None:
        """The tokenizer's end token; None where there is no tokenizer, or it names none."""
        if self._tokenizer is None and not has_tokenizer(self.folder):
            return None
        token: int | None = self.tokenizer.eos_token_id
        return token


def load_model(
    path: str | Path,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    *,
    revision: str | None = None,
    freeze: bool = True,
    accelerators: Accelerators = no_accelerator,
) -> Model:
    """Load a checkpoint; :func:`fdllm.load_model` is this with all accelerators there are.

    Args:
        path: ``tiny`` (the embedded model), a folder, or a Hub id.
        device: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU where there is one.
        dtype: ``float32``, ``bfloat16``, ``float16``; ``auto`` goes by the device: bfloat16 from
            compute capability 8.0, float16 on 7.x, float32 on CPU.
        revision: branch, tag or commit of a Hub id.
        freeze: lay the weights out for decoding, see :class:`ModelRunner`; without it they stay
            as the checkpoint has them, and decoding on a CPU is slower.
        accelerators: see :class:`Model`.

    Raises:
        UsageError: the path, device or dtype names nothing.
        FdllmError: files are missing, of another shape, or not safetensors.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    folder = locate(str(path), revision)
    spec = read_spec(folder)
    headers = checked_headers(folder, spec)  # first: a wrong shape may be of any size
    with torch.device("meta"):
        network = Network(spec)
    network.eval().requires_grad_(requires_grad=False)
    model = Model(network, spec, folder, str(path), where, kind, accelerators)
    fill = parameter_filler(headers, hub_names(spec), network, where, kind)
    if freeze:
        model.freeze(fill)
    else:
        fill(network)
    return model


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` to a device.

    Raises:
        UsageError: the device does not exist here.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device '{device}'; use cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{device}' asks for a GPU and torch sees none; use --device cpu")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device '{device}': torch sees {torch.cuda.device_count()} GPUs here")
    return found


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` to the type that suits the device.

    Raises:
        UsageError: the type is none of the three.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16  # noqa: PLR2004 - Ampere
    if dtype not in _DTYPES:
        raise UsageError(f"unknown dtype '{dtype}'; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]

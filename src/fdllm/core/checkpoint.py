"""Checkpoints: a Hub id or a folder, safetensors only, strictly by name and shape.

No code that comes with a checkpoint is ever executed, and no pickle is ever opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fdllm.core.attention import AttentionBackend
from fdllm.core.cache import RowCache
from fdllm.core.checkpoint_files import TensorHeader, tensor_headers, weight_files
from fdllm.core.model_runner import Fill, ModelRunner, nothing
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network
from fdllm.core.pretrained import has_tokenizer, load_tokenizer, locate, read_spec
from fdllm.core.torch_backend import Accelerator, Accelerators, no_accelerator
from fdllm.errors import FdllmError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class Model:
    """A loaded checkpoint: the network, its shape, and where it came from.

    Attributes:
        network: the weights, in evaluation mode.
        spec: the shape; ``spec.mask_id`` may have been found in the tokenizer.
        folder: where the files lie on this machine.
        name: what the user asked for.
        device: where the weights are.
        dtype: their type.
        accelerators: what decoding may take besides torch's kernels; none by default.
        accelerator: what it takes, as :meth:`compile` has chosen.
    """

    network: Network
    spec: ModelSpec
    folder: Path | None
    name: str
    device: torch.device
    dtype: torch.dtype
    accelerators: Accelerators = no_accelerator
    accelerator: Accelerator = field(init=False)
    _runner: ModelRunner | None = field(default=None, init=False, repr=False)
    _tokenizer: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.compile()

    def compile(self, *, asked: bool | None = None) -> str:
        """Choose what decoding runs besides torch's kernels, see :mod:`fdllm.fast.accelerators`.

        Args:
            asked: True for C kernels on a CPU and CUDA graphs on a GPU, False for neither; None
                takes what was measured to pay.

        Returns:
            What it runs from now on: ``C kernels``, ``CUDA graphs`` or ``no``.

        Raises:
            UsageError: it was asked for, and cannot be had here.
        """
        self.accelerator = self.accelerators(self.device, self.dtype, asked=asked)
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
        """A cache of so many rows and tokens a row, and what attends over it."""
        return self.accelerator.backend(
            RowCache(
                self.spec,
                num_rows=num_rows,
                capacity=capacity,
                block_size=block_size or self.spec.block_size,
                like=self.network.embedding.weight,
            )
        )

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
    source = _Source(folder, spec, where, kind)
    with torch.device("meta"):
        network = Network(spec)
    network.eval().requires_grad_(requires_grad=False)
    model, fill = (
        Model(network, spec, folder, str(path), where, kind, accelerators),
        source.filler(network),
    )
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


def hub_names(spec: ModelSpec) -> dict[str, list[str]]:
    """Our packed parameter names, each with the Hub's tensors that are stacked into it."""
    names = {
        "embedding.weight": ["model.embed_tokens.weight"],
        "norm.weight": ["model.norm.weight"],
    }
    if not spec.tie_embeddings:
        names["head.weight"] = ["lm_head.weight"]
    for i in range(spec.num_layers):
        ours, hub = f"layers.{i}.", f"model.layers.{i}."
        names[ours + "input_norm.weight"] = [hub + "input_layernorm.weight"]
        names[ours + "post_norm.weight"] = [hub + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias"):
            names[ours + f"qkv.{kind}"] = [f"{hub}self_attn.{c}_proj.{kind}" for c in "qkv"]
        names[ours + "o.weight"] = [hub + "self_attn.o_proj.weight"]
        names[ours + "gate_up.weight"] = [f"{hub}mlp.{c}_proj.weight" for c in ("gate", "up")]
        names[ours + "down.weight"] = [hub + "mlp.down_proj.weight"]
    return names


def hub_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The Hub's tensors of a checkpoint, each with its shape."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    sizes = {
        "q_proj": (q, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, q),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
        "embed_tokens": (spec.vocab_size, hidden),
        "lm_head": (spec.vocab_size, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name in (name for names in hub_names(spec).values() for name in names):
        *_, part, kind = name.split(".")
        size = sizes.get(part, (hidden,))  # every other one is a norm's
        shapes[name] = size if kind == "weight" else size[:1]
    return shapes


class _Source:
    """A checkpoint's tensors, read into their places as they are asked for.

    The files are mapped, so that nothing of them is held twice, and every name, shape and type is
    checked by the files' headers before any room is made.

    Args:
        folder: the checkpoint.
        spec: its shape.
        device: where the parameters shall be.
        dtype: their type.

    Raises:
        FdllmError: the files do not hold exactly the tensors of ``spec``.
    """

    def __init__(
        self, folder: Path, spec: ModelSpec, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._spec, self._device, self._dtype = spec, device, dtype
        self._headers = tensor_headers(weight_files(folder))
        _check(folder, spec, self._headers)
        self._names, self._shapes = hub_names(spec), hub_shapes(spec)
        self._files: dict[Path, Any] = {}

    def filler(self, network: Network) -> Fill:
        """Gives modules of a network on the ``meta`` device their parameters."""
        prefixes = {module: f"{name}." for name, module in network.named_modules() if name}

        def fill(module: nn.Module) -> None:
            for owner in module.modules():
                for leaf, empty in list(owner.named_parameters(recurse=False)):
                    name = prefixes[owner] + leaf
                    if name in self._names:
                        made: Tensor = nn.Parameter(
                            self._read(name, empty.shape), requires_grad=False
                        )
                    else:  # a tied head
                        made = network.embedding.weight
                    setattr(owner, leaf, made)

        return fill

    def _read(self, ours: str, shape: torch.Size) -> Tensor:
        """A packed parameter: the Hub's tensors, one below the other."""
        out = torch.empty(shape, dtype=self._dtype, device=self._device)
        at = 0
        for hub in self._names[ours]:
            rows = self._shapes[hub][0]
            out[at : at + rows].copy_(self._tensor(hub))
            at += rows
        return out

    def _tensor(self, name: str) -> Tensor:
        path = self._headers[name].file
        try:
            if path not in self._files:
                self._files[path] = safe_open(path, framework="pt")
            return self._files[path].get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise FdllmError(
                f"{path} cannot be read ({error}); it is incomplete or damaged: fetch it again"
            ) from None


def _check(folder: Path, spec: ModelSpec, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse files that do not hold exactly the tensors of a shape."""
    layers = 1 + max(
        (int(found[1]) for name in headers if (found := _LAYER.match(name))), default=-1
    )
    if layers != spec.num_layers:
        raise FdllmError(
            f"{folder}: config.json says num_hidden_layers {spec.num_layers}, and the weights are "
            f"of {layers}; the weights and the configuration are of different models"
        )
    due = hub_shapes(spec)
    # Old exports carry the rotary table, which is derived; a tied head repeats the embedding.
    tied = {"lm_head.weight"} if spec.tie_embeddings else set()
    extra = {name for name in set(headers) - set(due) if not name.endswith("rotary_emb.inv_freq")}
    for kind, names in (("lacks", set(due) - set(headers)), ("has unexpected", extra - tied)):
        if names:
            raise FdllmError(
                f"checkpoint {folder} {kind} tensors: {_some(sorted(names))}; it must hold exactly "
                "the tensors of the architecture in its config.json"
            )
    for name, shape in due.items():
        if headers[name].shape != shape:
            raise FdllmError(
                f"{folder}: tensor {name} has shape {list(headers[name].shape)}, but config.json "
                f"asks for {list(shape)}; the weights and the configuration are of different models"
            )
    others = sorted(name for name in due if headers[name].dtype not in _FLOATS)
    if others:
        raise FdllmError(
            f"{folder}: tensor {others[0]} is of type {headers[others[0]].dtype}, and "
            f"{len(others)} of {len(due)} are no plain floats ({', '.join(_FLOATS)}); quantised "
            "weights cannot be loaded"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")  # noqa: PLR2004

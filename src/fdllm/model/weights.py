"""Checkpoints: a Hub id or a folder, safetensors only, strictly by name and shape.

No code that comes with a checkpoint is ever executed, and no pickle is ever opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fdllm.errors import FdllmError, UsageError
from fdllm.model.compiled import compiled_on
from fdllm.model.files import find_mask, has_tokenizer, load_tokenizer, locate
from fdllm.model.network import Network
from fdllm.model.spec import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
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
    """

    network: Network
    spec: ModelSpec
    folder: Path | None
    name: str
    device: torch.device
    dtype: torch.dtype
    _tokenizer: Any = field(default=None, repr=False)

    def compile(self, *, asked: bool | None = None) -> str:
        """Choose what decoding runs besides torch's own kernels, see :mod:`fdllm.model.compiled`.

        Args:
            asked: True for C kernels on a CPU and CUDA graphs on a GPU, False for neither; None
                takes what was measured to pay.

        Returns:
            What it runs from now on: ``C kernels``, ``CUDA graphs`` or ``no``.

        Raises:
            UsageError: it was asked for, and cannot be had here.
        """
        chosen = compiled_on(self.device, self.dtype, asked=asked)
        self.network.use(chosen)
        return str(chosen)

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
) -> Model:
    """Load a checkpoint.

    Args:
        path: ``tiny`` (the embedded model), a folder, or a Hub id.
        device: ``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes a GPU where there is one.
        dtype: ``float32``, ``bfloat16``, ``float16``; ``auto`` goes by the device: bfloat16 from
            compute capability 8.0, float16 on 7.x, float32 on CPU.
        revision: branch, tag or commit of a Hub id.
        freeze: lay the weights out for decoding, see :meth:`Network.freeze`; without it they stay
            as the checkpoint has them, and decoding on a CPU is slower.

    Raises:
        UsageError: the path, device or dtype names nothing.
        FdllmError: files are missing, of another shape, or not safetensors.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    folder = locate(str(path), revision)
    spec = ModelSpec.from_folder(folder)
    network = Network(spec).to(device=where, dtype=kind)
    _fill(network, folder)
    network.eval().requires_grad_(requires_grad=False)
    if spec.mask_id is None:
        spec = replace(spec, mask_id=find_mask(folder))
        network.spec = spec
    if freeze:
        network.freeze()
    return Model(network, spec, folder, str(path), where, kind)


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


def _parts(spec: ModelSpec, ours: str, parameter: Tensor) -> tuple[Tensor, ...]:
    """Views of a packed parameter, one for each Hub tensor."""
    if ".qkv." in ours:
        q = spec.num_heads * spec.head_dim
        kv = spec.num_kv_heads * spec.head_dim
        return tuple(parameter.split([q, kv, kv]))
    if ".gate_up." in ours:
        return parameter.chunk(2)
    return (parameter,)


def _fill(network: Network, folder: Path) -> None:
    """Copy every tensor of the checkpoint into its place, one at a time."""
    spec = network.spec
    targets = {
        hub: view
        for ours, names in hub_names(spec).items()
        for hub, view in zip(
            names, _parts(spec, ours, network.get_parameter(ours).data), strict=True
        )
    }
    missing = set(targets)
    unexpected = []
    for name, tensor in _tensors(folder):
        if name not in targets:
            # Old exports carry the rotary table, which is derived; a tied head repeats the
            # embedding.
            tied = spec.tie_embeddings and name == "lm_head.weight"
            if not name.endswith("rotary_emb.inv_freq") and not tied:
                unexpected.append(name)
            continue
        if tensor.shape != targets[name].shape:
            raise FdllmError(
                f"{folder}: tensor {name} has shape {list(tensor.shape)}, but config.json asks "
                f"for {list(targets[name].shape)}; the weights and the configuration are of "
                "different models"
            )
        targets[name].copy_(tensor)
        missing.discard(name)
    for kind, names in (("lacks", sorted(missing)), ("has unexpected", sorted(unexpected))):
        if names:
            shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")  # noqa: PLR2004
            raise FdllmError(
                f"checkpoint {folder} {kind} tensors: {shown}; it must hold exactly the tensors of "
                "the architecture in its config.json"
            )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in shard_paths(folder):
        try:
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a mapping
                    yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise FdllmError(
                f"{path} cannot be read ({error}); it is incomplete or damaged: fetch it again"
            ) from None


def shard_paths(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint.

    Raises:
        FdllmError: none, a shard that the index names is missing, or only pickles.
    """
    index = folder / _INDEX
    if index.exists():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise FdllmError(f"{index} is not a safetensors index: {error!r}") from None
        absent = [name for name in names if not (folder / name).exists()]
        if absent:
            raise FdllmError(
                f"checkpoint {folder} lacks {len(absent)} of {len(names)} shards: "
                f"{', '.join(absent)}; fetch them again"
            )
        return [folder / name for name in names]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise FdllmError(
            f"checkpoint {folder} holds pickles ({', '.join(pickles[:3])}) and no safetensors; "
            "pickles can run code and are never opened: convert them to model.safetensors"
        )
    raise FdllmError(f"checkpoint {folder} holds no {_SINGLE} and no {_INDEX}")

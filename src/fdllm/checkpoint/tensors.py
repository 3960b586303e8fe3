"""A checkpoint's tensors, checked strictly by name, shape and type, and read into their places."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fdllm.checkpoint.folder import TensorHeader, some, tensor_headers, weight_files
from fdllm.core.model_spec import ModelSpec
from fdllm.errors import FdllmError

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_FLOATS = ("F64", "F32", "F16", "BF16")


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


def checked_headers(folder: Path, spec: ModelSpec) -> dict[str, TensorHeader]:
    """The headers of a checkpoint's tensors, every name, shape and type checked.

    Raises:
        FdllmError: the files do not hold exactly the tensors of ``spec``.
    """
    headers = tensor_headers(weight_files(folder))
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
                f"checkpoint {folder} {kind} tensors: {some(sorted(names))}; it must hold exactly "
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
    return headers


def parameter_filler(
    headers: Mapping[str, TensorHeader],
    names: Mapping[str, Sequence[str]],
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[nn.Module], None]:
    """What gives modules of a network on the ``meta`` device their parameters, as they are asked.

    The files are mapped, so that nothing of them is held twice.

    Args:
        headers: the tensors, from :func:`checked_headers`.
        names: of :func:`hub_names`.
        network: whose modules will be filled.
        device: where the parameters shall be.
        dtype: their type.
    """
    prefixes = {module: f"{name}." for name, module in network.named_modules() if name}
    files: dict[Path, Any] = {}

    def read(name: str) -> Tensor:
        path = headers[name].file
        try:
            if path not in files:
                files[path] = safe_open(path, framework="pt")
            return files[path].get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError) as error:
            raise FdllmError(
                f"{path} cannot be read ({error}); it is incomplete or damaged: fetch it again"
            ) from None

    def fill(module: nn.Module) -> None:
        for owner in module.modules():
            for leaf, empty in list(owner.named_parameters(recurse=False)):
                stacked = names.get(prefixes[owner] + leaf)
                if stacked is None:  # a tied head
                    setattr(owner, leaf, network.get_parameter("embedding.weight"))
                    continue
                whole = torch.empty(empty.shape, dtype=dtype, device=device)
                at = 0
                for name in stacked:  # one below the other
                    rows = headers[name].shape[0]
                    whole[at : at + rows].copy_(read(name))
                    at += rows
                setattr(owner, leaf, nn.Parameter(whole, requires_grad=False))

    return fill

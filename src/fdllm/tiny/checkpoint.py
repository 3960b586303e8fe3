"""Files of the embedded model: the Hub's form for users, a training state to resume from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fdllm import strictjson
from fdllm.core.checkpoint import hub_names
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network
from fdllm.tiny.vocabulary import END_ID, MASK_ID, PAD_ID, VOCAB_SIZE

CONFIG: dict[str, Any] = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "model_type": "Fast_dLLM_Qwen",
    "bd_size": 32,
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 96,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "mask_token_id": MASK_ID,
    "pad_token_id": PAD_ID,
    "eos_token_id": END_ID,
}
"""``config.json`` in the Hub's form."""


def spec() -> ModelSpec:
    """The shape of the embedded model."""
    return ModelSpec.from_json(CONFIG, "the embedded model's configuration")


def hub_tensors(network: Network) -> dict[str, Tensor]:
    """The weights under the Hub's names: packed projections are taken apart; float16."""
    shape = network.spec
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    out: dict[str, Tensor] = {}
    for ours, names in hub_names(shape).items():
        packed = network.get_parameter(ours).detach()
        pieces = packed.split([q, kv, kv]) if ".qkv." in ours else packed.chunk(len(names))
        for name, piece in zip(names, pieces, strict=True):
            out[name] = piece.to(torch.float16).clone()
    return out


def export(network: Network, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.json``; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "model.safetensors.part"
    save_file(hub_tensors(network), part, metadata={"format": "pt"})
    part.chmod(0o644)  # safetensors makes it the owner's alone, and a package is everyone's
    part.replace(folder / "model.safetensors")
    part = folder / "config.json.part"
    part.write_text(strictjson.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / "config.json")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state to resume from."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state: tensors and numbers only, no code."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state

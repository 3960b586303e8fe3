"""Tiny random models, decisive enough that thresholds matter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import fdllm
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network
from fdllm.core.reuse import LayerPlan
from fdllm.fast.accelerators import accelerator_on

VOCAB = 48
MASK, STOP = VOCAB - 1, 2
SPEC = ModelSpec(
    vocab_size=VOCAB,
    hidden_size=32,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=64,
    max_positions=512,
    rope_theta=1e4,
    block_size=16,
    mask_id=MASK,
    stop_tokens=(STOP,),
)
"""A small Qwen2; what a test needs otherwise it replaces."""
DECODING = fdllm.Decoding(
    block_size=16, small_block_size=4, threshold=0.7, max_new_tokens=30, stop_token=STOP
)


def random_model(
    seed: int = 0, *, layers: int = 6, width: int = 32, block: int = 16
) -> fdllm.Model:
    """A random model, float32 on CPU.

    The head is scaled so that confidences spread over (0, 1): with a small head every column
    would fall below any threshold, and half of the sampler would go untested.
    """
    spec = replace(
        SPEC, num_layers=layers, hidden_size=width, intermediate_size=2 * width, block_size=block
    )
    generator = torch.Generator().manual_seed(seed)
    network = Network(spec)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                scale = 1.0 if name.startswith(("embedding", "head")) else 1.5 / width**0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    network.eval().requires_grad_(requires_grad=False)
    return model_of(network, f"random-{seed}")


def model_of(network: Network, name: str = "made") -> fdllm.Model:
    """A network on a CPU, with the accelerators that a checkpoint is loaded with."""
    dtype, cpu = network.embedding.weight.dtype, torch.device("cpu")
    return fdllm.Model(network, network.spec, None, name, cpu, dtype, accelerator_on)


def forward_all(model: fdllm.Model, ids: torch.Tensor) -> torch.Tensor:
    """Logits of whole sequences [rows, columns] as decoding has them: each token sees those ahead.

    Args:
        model: laid out for decoding or not.
        ids: tokens.
    """
    rows, columns = ids.shape
    backend = model.backend(num_rows=rows, capacity=columns)
    window = Window(tuple(range(rows)), (0,) * rows, columns, (columns,) * rows, causal_block=1)
    runner, plan = model.runner(), LayerPlan(model.n_layers)
    with torch.inference_mode():
        hidden = runner.forward(ids.view(-1), backend, ForwardBatch((window,)), plan).hidden
        return runner.head(hidden).view(rows, columns, -1)


def random_prompt(seed: int, length: int) -> list[int]:
    """Tokens that are neither mask nor stop."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(STOP + 1, MASK, (length,), generator=generator)).tolist()


def hub_shape(spec: ModelSpec) -> dict[str, Any]:
    """What decides its tensors' shapes, under the names of a ``config.json``."""
    return {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "intermediate_size": spec.intermediate_size,
        "max_position_embeddings": spec.max_positions,
    }


def hub_config(spec: ModelSpec) -> dict[str, Any]:
    """Its ``config.json``."""
    return hub_shape(spec) | {
        "rope_theta": spec.rope_theta,
        "bd_size": spec.block_size,
        "mask_token_id": spec.mask_id,
        "eos_token_id": list(spec.stop_tokens),
    }


def save_shards(folder: Path, tensors: dict[str, torch.Tensor], files: Sequence[str]) -> None:
    """Spread tensors over files under an index, as large checkpoints are."""
    index: dict[str, str] = {}
    for i, file in enumerate(files):
        names = sorted(tensors)[i :: len(files)]
        save_file({name: tensors[name] for name in names}, folder / file)
        index |= dict.fromkeys(names, file)
    text = json.dumps({"weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def wide_network(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> Network:
    """Its matrices are large enough to be packed; its norms' weights are not all 1."""
    spec = replace(
        SPEC,
        vocab_size=300,
        hidden_size=256,
        num_layers=4,
        intermediate_size=384,
        rope_theta=1e6,
        block_size=32,
        mask_id=299,
        tie_embeddings=tied,
    )
    torch.manual_seed(0)
    network = Network(spec)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            elif name.startswith("layers"):
                parameter.normal_(0, 0.06)
    return network.to(dtype).eval().requires_grad_(requires_grad=False)


PROMPTS = [random_prompt(i, n) for i, n in enumerate([1, 7, 16, 17, 30, 33, 50])]
"""Of many lengths: shorter than a block, one, one and a bit, several."""

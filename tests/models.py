"""Tiny random models, decisive enough that thresholds matter."""

from __future__ import annotations

import torch

import fdllm
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network

VOCAB = 48
MASK, STOP = VOCAB - 1, 2
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
    spec = ModelSpec(
        vocab_size=VOCAB,
        hidden_size=width,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=2 * width,
        max_positions=512,
        rope_theta=1e4,
        block_size=block,
        mask_id=MASK,
        stop_tokens=(STOP,),
    )
    generator = torch.Generator().manual_seed(seed)
    network = Network(spec)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                scale = 1.0 if name.startswith(("embedding", "head")) else 1.5 / width**0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    network.eval().requires_grad_(requires_grad=False)
    cpu = torch.device("cpu")
    return fdllm.Model(network, spec, None, f"random-{seed}", cpu, torch.float32)


def random_prompt(seed: int, length: int) -> list[int]:
    """Tokens that are neither mask nor stop."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(STOP + 1, MASK, (length,), generator=generator)).tolist()


def wide_network(dtype: torch.dtype = torch.float32, *, tied: bool = False) -> Network:
    """Its matrices are large enough to be packed; its norms' weights are not all 1."""
    spec = ModelSpec(
        vocab_size=300,
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=384,
        max_positions=256,
        mask_id=299,
        stop_tokens=(0,),
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

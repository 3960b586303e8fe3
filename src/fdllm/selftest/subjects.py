"""The models that a selftest runs, and what they are asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fdllm import tiny
from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network
from fdllm.core.reuse import NoReuse, PeriodicReuse, ReuseStrategy
from fdllm.core.subsets import subset_bounds
from fdllm.fast.accelerators import accelerator_on, load_model
from fdllm.tiny.vocabulary import END_ID, encode, encode_prompt

SUB_BLOCK = 8
ROWS = 17
"""Rows of a subject: one more than what narrow kernels take of the embedded model's sub-blocks."""
CPU = torch.device("cpu")
_VOCABULARY = 4096
_SPREAD = 0.02  # of the weights, as such models are initialised


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked, :data:`ROWS` of each."""

    model: Model  # float32 on a CPU, laid out as a checkpoint is
    decoding: Decoding  # of its texts
    strategies: tuple[ReuseStrategy[Any], ...]  # layer reuse that texts are decoded with
    # tokens of whole blocks; the logits of the last block are compared
    sequences: list[tuple[int, ...]]
    prompts: list[tuple[int, ...]]  # what texts and scores stand behind; none ends with a block
    targets: tuple[int, ...]  # tokens whose log p is compared
    trained: bool  # whether its texts are the same in every type, but for near ties

    @property
    def name(self) -> str:
        """The model's."""
        return self.model.name


def embedded() -> Subject:
    """The embedded model, asked what it was trained for."""
    model = load_model("tiny", CPU, torch.float32, freeze=False)
    lines = (tiny.TASKS / "arithmetic.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:ROWS]]
    prompts = [tuple(encode_prompt(row["question"])) for row in rows]
    answers = [(*encode(row["answer"]), END_ID) for row in rows]
    texts = [4 * (prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    return Subject(
        model,
        Decoding(max_new_tokens=2 * model.spec.block_size, end_token=END_ID),
        (NoReuse(), _reuse(model)),
        [_half_masked(model.spec, text, 1 + i % 3) for i, text in enumerate(texts)],
        prompts,
        tuple(encode("0123456789")),
        trained=True,
    )


def random_one() -> Subject:
    """A random model: what is packed and fused in large ones only."""
    spec = small(28, 512)
    model = random_model("28x512", spec, CPU, torch.float32)
    texts = [decoding_tokens(spec, 2 * spec.block_size, i) for i in range(ROWS)]
    # Prompts that end in the middle of a sub-block: one REFRESH, then a few DENOISE.
    lengths = [SUB_BLOCK // 2 + SUB_BLOCK * (i % 5) for i in range(ROWS)]
    return Subject(
        model,
        Decoding(max_new_tokens=SUB_BLOCK // 2, stop_token=(), end_token=0),
        (_reuse(model),),
        [_half_masked(spec, text, 1 if i % 4 else 2) for i, text in enumerate(texts)],
        [text[:length] for text, length in zip(texts, lengths, strict=True)],
        decoding_tokens(spec, 10, ROWS),
        trained=False,
    )


def small(layers: int, width: int) -> ModelSpec:
    """Qwen-like proportions: 64 wide heads, a quarter for keys and values, SwiGLU of 2.75 widths.

    ``width`` is the hidden size, a multiple of 64.
    """
    heads = width // 64
    return ModelSpec(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=max(1, heads // 4),
        intermediate_size=width * 11 // 4,
        max_positions=8192,
        mask_id=_VOCABULARY - 1,
    )


def random_model(name: str, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Model:
    """A model of random weights, made on its device in its type, not laid out for decoding."""
    network = _empty(spec, device, dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "norm" in key:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _SPREAD, generator=generator)
    return Model(network, spec, None, name, device, dtype, accelerator_on)


def decoding_tokens(spec: ModelSpec, count: int, seed: int = 0) -> tuple[int, ...]:
    """Tokens below a shape's mask, the same for the same seed."""
    last = spec.mask_id or spec.vocab_size
    return tuple((17 + seed * 101 + i * 31) % last for i in range(count))


def copied(model: Model, device: torch.device, dtype: torch.dtype) -> Model:
    """The same weights elsewhere or in another type, none shared, not laid out for decoding."""
    network = _empty(model.spec, device, dtype)
    network.load_state_dict(model.network.state_dict())
    name, accelerators = model.name, model.accelerators
    return Model(network, model.spec, model.folder, name, device, dtype, accelerators)


def _empty(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Network:
    with torch.device("meta"):
        network = Network(spec)
    network = network.to(dtype).to_empty(device=device)
    return network.eval().requires_grad_(requires_grad=False)


def mask_of(spec: ModelSpec) -> int:
    """The mask token; every subject has one."""
    if spec.mask_id is None:
        raise ValueError("the model names no mask token")
    return spec.mask_id


def _reuse(model: Model) -> PeriodicReuse:
    start, stop = subset_bounds("middle", model.n_layers)
    return PeriodicReuse(2, start, stop, "residual")


def _half_masked(spec: ModelSpec, tokens: Sequence[int], blocks: int) -> tuple[int, ...]:
    """So many blocks of tokens; of the last one the second half is masked."""
    masked = spec.block_size // 2
    known = tokens[: blocks * spec.block_size - masked]
    return (*known, *(mask_of(spec),) * masked)

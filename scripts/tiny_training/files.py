"""Files of the embedded model in the Hub's form: weights, configuration, tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fdllm import strictjson, tiny
from fdllm.checkpoint.hub_config import spec_of
from fdllm.checkpoint.tensors import hub_names
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network
from fdllm.tiny.vocabulary import SPECIAL_TOKENS

CONFIG = tiny.FOLDER / "config.json"
"""Decides the shape that is trained."""
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] + '<|end|>' -}}"
    "{%- else -%}"
    "{{- '<|user|>' + message['content'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def spec() -> ModelSpec:
    """The shape of the embedded model."""
    config = strictjson.loads(CONFIG.read_text(encoding="utf-8"))
    return spec_of(config, str(CONFIG))


def export(network: Network, folder: Path) -> None:
    """Write the weights under the Hub's names in float16, and their configuration.

    Packed projections are taken apart; a reader never sees half a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = network.spec
    q, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    tensors = {}
    for ours, names in hub_names(shape).items():
        packed = network.get_parameter(ours).detach()
        pieces = packed.split([q, kv, kv]) if ".qkv." in ours else packed.chunk(len(names))
        for name, piece in zip(names, pieces, strict=True):
            tensors[name] = piece.to(torch.float16).clone()
    part = folder / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)  # safetensors makes it the owner's alone, and a package is everyone's
    part.replace(folder / "model.safetensors")
    if folder != tiny.FOLDER:
        shutil.copy(CONFIG, folder)


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte, in byte order.

    The published rule of GPT-2: bytes that print stand for themselves, the rest move up behind
    255 in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer without merges, so every text decodes to exactly itself."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *byte_characters()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    pad, end, user, assistant, mask = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": end,
        "mask_token": mask,
        "additional_special_tokens": [user, assistant],
        "chat_template": _CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "left",
    }
    text = strictjson.dumps(config, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")

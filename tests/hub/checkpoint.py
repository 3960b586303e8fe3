"""A random model with a byte tokenizer, and the store and progress of a test."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fdllm.core.checkpoint import Model
from fdllm.core.network import Network
from fdllm.fast.accelerators import accelerator_on
from fdllm.runs import Run
from models import SPEC

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "|<MASK>|")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(texts: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE in Qwen's manner: no merges, or those that ``texts`` teach it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700 if texts else 260,
        special_tokens=[AddedToken(token, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or [], trainer)
    end_of_text, _, end_of_turn, mask = SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=end_of_turn,
        pad_token=end_of_text,
        mask_token=mask,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def random_model(
    tokenizer: PreTrainedTokenizerFast | None = None, *, max_positions: int = 16384
) -> Model:
    """Two layers of random weights, the same ones every time."""
    tokenizer = tokenizer or byte_tokenizer()
    spec = replace(
        SPEC,
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_layers=3,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        max_positions=max_positions,
        rope_theta=1e6,
        block_size=32,
        tie_embeddings=True,
        mask_id=tokenizer.get_vocab()["|<MASK>|"],
        stop_tokens=(tokenizer.get_vocab()["<|im_end|>"],),
    )
    generator = torch.Generator().manual_seed(0)
    network = Network(spec)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.3, generator=generator)
        else:
            parameter.data.fill_(1.0)
    network.eval().requires_grad_(requires_grad=False)
    return Model(
        network,
        spec,
        None,
        "random",
        torch.device("cpu"),
        torch.float32,
        accelerator_on,
        _tokenizer=tokenizer,
    )


@dataclass
class MemoryStore:
    """A store that forgets at exit, and remembers what was put."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    total: int = 0

    def get(self, key: str) -> dict[str, Any] | None:
        return self.entries.get(key)

    def put(self, key: str, entry: dict[str, Any]) -> None:
        self.puts.append(key)
        self.entries[key] = entry

    def set_total(self, total: int) -> None:
        self.total = total


@dataclass
class Tally:
    """A progress that counts."""

    total: int = 0
    done: int = 0
    advanced: int = 0

    def start(self, run: Run) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def begin(self, total: int, done: int) -> None:
        self.total, self.done = total, done

    def advance(self, entry: dict[str, Any]) -> None:
        assert entry["kind"] in ("generate", "loglikelihood")
        self.advanced += 1

"""The shape of a checkpoint, read from its ``config.json``. No torch: planning reads it too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdllm.errors import FdllmError

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)


@dataclass(frozen=True)
class ModelSpec:
    """Qwen2.5's architecture with blocks, as DESIGN section 3 fixes it.

    Attributes:
        vocab_size: rows of the embedding and of the head.
        hidden_size: width of the hidden state.
        num_layers: transformer layers.
        num_heads: query heads.
        num_kv_heads: key and value heads; ``num_heads`` is a multiple of it.
        intermediate_size: width of the SwiGLU.
        max_positions: longest sequence, in tokens.
        rope_theta: base of the rotary embedding.
        rms_norm_eps: epsilon of every RMSNorm.
        tie_embeddings: True where the head is the embedding's transpose.
        block_size: tokens of a block.
        mask_id: the mask token; None where the checkpoint names none.
        stop_tokens: end-of-sequence tokens, perhaps none.
        pad_id: the padding token, if any.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    max_positions: int = 32768
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    tie_embeddings: bool = False
    block_size: int = 32
    mask_id: int | None = None
    stop_tokens: tuple[int, ...] = ()
    pad_id: int | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Weights and biases, by formula."""
        hidden, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        q = self.num_heads * self.head_dim
        attention = (hidden + 1) * (q + 2 * kv) + q * hidden
        layer = attention + 3 * hidden * self.intermediate_size + 2 * hidden
        ends = self.vocab_size * hidden * (1 if self.tie_embeddings else 2)
        return self.num_layers * layer + ends + hidden

    @classmethod
    def from_json(cls, config: dict[str, Any], where: str) -> ModelSpec:
        """Read the Hub's form of a configuration.

        Args:
            config: the parsed ``config.json``.
            where: what to call it in an error.

        Raises:
            FdllmError: a key is missing or the numbers do not fit together.
        """
        missing = [key for key in _REQUIRED if key not in config]
        if missing:
            raise FdllmError(
                f"{where} lacks {', '.join(missing)}; a Fast-dLLM v2 checkpoint (Qwen2.5's "
                "architecture) is needed"
            )
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads", heads)
        if config["hidden_size"] % heads or heads % kv_heads:
            raise FdllmError(
                f"{where}: hidden_size {config['hidden_size']}, {heads} query heads and "
                f"{kv_heads} key/value heads do not divide"
            )
        eos = config.get("eos_token_id")
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=kv_heads,
            intermediate_size=config["intermediate_size"],
            max_positions=config.get("max_position_embeddings", 32768),
            rope_theta=float(config.get("rope_theta", 1e6)),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            tie_embeddings=config.get("tie_word_embeddings", False),
            block_size=config.get("bd_size", 32),
            mask_id=config.get("mask_token_id"),
            stop_tokens=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
            pad_id=config.get("pad_token_id"),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> ModelSpec:
        """Read ``folder/config.json``.

        Raises:
            FdllmError: the file is absent, is not JSON, or does not fit.
        """
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FdllmError(
                f"{folder} holds no config.json; --model takes a Hub id, 'tiny', or a folder with "
                "config.json and *.safetensors"
            ) from None
        except (OSError, ValueError) as error:
            raise FdllmError(f"{path} cannot be read: {error}") from None
        return cls.from_json(config, str(path))

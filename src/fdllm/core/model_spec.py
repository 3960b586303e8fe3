"""The shape of a network. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """Qwen2.5's architecture with blocks, as docs/algorithm.md 3 fixes it."""

    vocab_size: int  # rows of the embedding and of the head
    hidden_size: int  # width of the hidden state
    num_layers: int  # transformer layers
    num_heads: int  # query heads
    num_kv_heads: int  # key and value heads; ``num_heads`` is a multiple of it
    intermediate_size: int  # width of the SwiGLU
    max_positions: int = 32768  # longest sequence, in tokens
    rope_theta: float = 1e6  # base of the rotary embedding
    rms_norm_eps: float = 1e-6  # epsilon of every RMSNorm
    tie_embeddings: bool = False  # True where the head is the embedding's transpose
    block_size: int = 32  # tokens of a block
    # the checkpoint names its block, so that decoding has no choice of another
    block_is_fixed: bool = False
    mask_id: int | None = None  # the mask token; None where the checkpoint names none
    # end-of-sequence tokens, perhaps none. Of a loaded checkpoint the tokenizer's own stands first:
    # the one that the published score puts behind a target.
    stop_tokens: tuple[int, ...] = ()
    pad_id: int | None = None  # the padding token, if any

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def layer_parameters(self) -> int:
        """Weights and biases of one layer, by formula."""
        hidden, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        q = self.num_heads * self.head_dim
        attention = (hidden + 1) * (q + 2 * kv) + q * hidden
        return attention + 3 * hidden * self.intermediate_size + 2 * hidden

    @property
    def feed_forward_share(self) -> float:
        """Of a layer's weights, those of its feed-forward."""
        return 3 * self.hidden_size * self.intermediate_size / self.layer_parameters

    @property
    def num_parameters(self) -> int:
        """Weights and biases, by formula."""
        ends = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.num_layers * self.layer_parameters + ends + self.hidden_size

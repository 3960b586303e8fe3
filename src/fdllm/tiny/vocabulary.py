"""Token ids of the embedded model: a few special tokens, then one token for each byte.

The tokenizer files beside the weights hold the same mapping, and a test holds the two together.
"""

from __future__ import annotations

SPECIAL_TOKENS: tuple[str, ...] = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|mask|>")
PAD_ID, END_ID, USER_ID, ASSISTANT_ID, MASK_ID = range(len(SPECIAL_TOKENS))


def encode(text: str) -> list[int]:
    """Tokens of plain text, one a UTF-8 byte (so one a character in ASCII)."""
    return [len(SPECIAL_TOKENS) + byte for byte in text.encode("utf-8")]


def encode_prompt(question: str) -> list[int]:
    """Tokens of a question as the chat template lays it out, ready for the answer."""
    return [USER_ID, *encode(question), ASSISTANT_ID]


def decode(ids: list[int]) -> str:
    """Text of tokens; special tokens are left out."""
    offset = len(SPECIAL_TOKENS)
    return bytes(i - offset for i in ids if i >= offset).decode("utf-8", errors="replace")

"""Token ids of the embedded model: a few special tokens, then one token for each byte.

Training works on these numbers directly; :mod:`fdllm.tiny.tokenizer` writes the same mapping as
tokenizer files, and a test holds the two together.
"""

from __future__ import annotations

SPECIAL_TOKENS: tuple[str, ...] = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|mask|>")
PAD_ID, END_ID, USER_ID, ASSISTANT_ID, MASK_ID = range(len(SPECIAL_TOKENS))
VOCAB_SIZE: int = len(SPECIAL_TOKENS) + 256
CHAT_TEMPLATE: str = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|assistant|>' + message['content'] + '<|end|>' -}}"
    "{%- else -%}"
    "{{- '<|user|>' + message['content'] -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


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

"""Write the tokenizer files of the embedded model: ``python -m fdllm.tiny.tokenizer``."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fdllm import strictjson, tiny
from fdllm.tiny.vocabulary import CHAT_TEMPLATE, SPECIAL_TOKENS


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte, in byte order.

    The published rule of GPT-2: bytes that print stand for themselves, the rest move up behind
    255 in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(moved)) for byte in range(256)]


def build() -> Tokenizer:
    """A byte-level tokenizer without merges, so every text decodes to exactly itself."""
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *byte_characters()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def write(folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    pad, end, user, assistant, mask = SPECIAL_TOKENS
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "eos_token": end,
        "mask_token": mask,
        "additional_special_tokens": [user, assistant],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "padding_side": "left",
    }
    text = strictjson.dumps(config, indent=1) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(tiny.FOLDER)

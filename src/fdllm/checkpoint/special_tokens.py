"""A checkpoint's shape with its mask and end tokens, and its tokenizer. No torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fdllm.checkpoint.folder import read_json
from fdllm.checkpoint.hub_config import end_tokens, spec_of
from fdllm.core.model_spec import ModelSpec
from fdllm.errors import FdllmError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MASK_NAMES = ("|<MASK>|", "<|mask|>", "<|MASK|>", "[MASK]")


def has_tokenizer(folder: Path | None) -> bool:
    """Whether ``folder`` holds tokenizer files."""
    return folder is not None and any(folder.glob("tokenizer*"))


def load_tokenizer(folder: Path | None, name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer files of ``folder``; never any code.

    Raises:
        FdllmError: there are none, or they cannot be read.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 - seconds to import, text in/out only

    if not has_tokenizer(folder):
        raise FdllmError(
            f"model '{name}' has no tokenizer files (tokenizer.json, tokenizer_config.json); "
            "copy them into its folder"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # type: ignore[no-any-return, no-untyped-call]
    except (OSError, ValueError) as error:
        raise FdllmError(f"the tokenizer in {folder} cannot be read: {error}") from None


def read_spec(folder: Path) -> ModelSpec:
    """The shape of a checkpoint, its mask token and its end tokens, from all the files that say so.

    The end of a text is whatever the tokenizer, ``config.json`` or ``generation_config.json`` calls
    one: published checkpoints name the end of a turn in one of them and the end of a text in
    another. There may be none: whoever decodes may name them.

    Raises:
        FdllmError: a file is absent or cannot be read, a key of it is wrong or asks for other
            mathematics, or nothing names a mask token.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FdllmError(
            f"{folder} holds no config.json; --model takes a Hub id, 'tiny', or a folder with "
            "config.json and *.safetensors"
        )
    spec = spec_of(read_json(path), str(path))
    generation = folder / "generation_config.json"
    try:
        generated = end_tokens(read_json(generation).get("eos_token_id"))
    except ValueError as error:
        raise FdllmError(f"{generation}: 'eos_token_id': {error}") from None
    own = _special_token(folder, "eos_token")
    ends = (*(() if own is None else (own,)), *spec.stop_tokens, *generated)
    mask = spec.mask_id if spec.mask_id is not None else _find_mask(folder)
    return replace(spec, stop_tokens=tuple(dict.fromkeys(ends)), mask_id=mask)


def no_end_token(name: str) -> FdllmError:
    """What to say of a checkpoint whose texts have no end."""
    return FdllmError(
        f"model '{name}' names no end of a text: eos_token_id is looked for in config.json and "
        "generation_config.json, eos_token in tokenizer_config.json; name it in one of them, or "
        "give stop_token"
    )


def _find_mask(folder: Path) -> int:
    """The mask token's id from the tokenizer files, where config.json names none."""
    mask = _special_token(folder, "mask_token")
    if mask is not None:
        return mask
    known = _token_ids(folder)
    for name in _MASK_NAMES:
        if name in known:
            return known[name]
    raise FdllmError(
        f"checkpoint {folder} names no mask token: set mask_token_id in config.json (a "
        "block-diffusion model needs one), or mask_token in tokenizer_config.json"
    )


def _special_token(folder: Path, key: str) -> int | None:
    """The id of a token that the tokenizer's configuration names by its text."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(folder / name).get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            continue
        found = _token_ids(folder).get(text)
        if found is None:
            raise FdllmError(
                f"{folder / name}: {key} is {text!r}, which none of tokenizer.json, vocab.json and "
                "added_tokens.json has; copy the tokenizer's files whole"
            )
        return found
    return None


def _token_ids(folder: Path) -> dict[str, int]:
    """Ids of the tokenizer's tokens by text; those that stand apart from the vocabulary win."""
    whole = read_json(folder / "tokenizer.json")
    try:
        entries = (whole.get("model") or {}).get("vocab") or {}
        if isinstance(entries, list):  # with a score each, in the order of their ids
            entries = {entry[0]: i for i, entry in enumerate(entries)}
        listed = whole.get("added_tokens") or []
        decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        return {
            **read_json(folder / "vocab.json"),
            **entries,
            **{str(text): int(i) for text, i in read_json(folder / "added_tokens.json").items()},
            **{str(token["content"]): int(token["id"]) for token in listed},
            **{str(token["content"]): int(i) for i, token in decoder.items()},
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FdllmError(
            f"the tokenizer files in {folder} cannot be read ({error!r}); fetch them again"
        ) from None

"""A checkpoint's files: where they lie, its tokenizer, its mask token. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from fdllm import tiny
from fdllm.errors import FdllmError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_MASK_NAMES = ("|<MASK>|", "<|mask|>", "<|MASK|>", "[MASK]")


def locate(path: str, revision: str | None = None) -> Path:
    """The folder of a checkpoint on this machine; a Hub id is fetched (or found in the cache).

    Raises:
        UsageError: neither a folder nor a Hub id.
        FdllmError: the Hub cannot be reached or refuses.
    """
    if path == "tiny":
        return tiny.FOLDER
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UsageError(
            f"no model folder at '{path}'; --model takes 'tiny', an existing folder, or a Hub id "
            "such as Efficient-Large-Model/Fast_dLLM_v2_7B"
        )
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise FdllmError(
            f"model '{path}' could not be fetched from the Hub ({type(error).__name__}: "
            f"{reason[0] if reason else 'no answer'}); check the name and the network, or give a "
            "folder that holds the files"
        ) from None


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


def find_mask(folder: Path) -> int:
    """The mask token's id from the tokenizer files, where config.json names none."""
    for name in ("tokenizer_config.json", "tokenizer.json", "added_tokens.json"):
        path = folder / name
        if not path.exists():
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        added: dict[str, int] = {}
        if name == "tokenizer_config.json":
            added = {
                token["content"]: int(i)
                for i, token in data.get("added_tokens_decoder", {}).items()
            }
            mask = data.get("mask_token")
            mask = mask.get("content") if isinstance(mask, dict) else mask
            if mask in added:
                return added[mask]
        elif name == "tokenizer.json":
            added = {token["content"]: token["id"] for token in data.get("added_tokens", [])}
        else:
            added = data
        for mask in _MASK_NAMES:
            if mask in added:
                return added[mask]
    raise FdllmError(
        f"checkpoint {folder} names no mask token: set mask_token_id in config.json (a "
        "block-diffusion model needs one), or mask_token in tokenizer_config.json"
    )

"""A checkpoint's shape with its mask and end tokens, and its tokenizer. No torch.

Whoever made the files, what is read of them has the types of the classes below. The tokenizer is
made by ``transformers``, whose errors on damaged files are of any kind, and become one.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import ConfigDict, Field, StrictInt

from fdllm.checkpoint.folder import LONGEST, beside, read_json
from fdllm.checkpoint.hub_config import end_tokens, spec_of
from fdllm.core.model_spec import ModelSpec
from fdllm.errors import FdllmError, first_line
from fdllm.outside import read_bytes
from fdllm.spec import Spec, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_File = TypeVar("_File", bound=Spec)
_MASK_NAMES = ("|<MASK>|", "<|mask|>", "<|MASK|>", "[MASK]")


class _Lenient(Spec):
    """The keys of a file that are read; others pass."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)


# A token that stands apart is a few words at most; the library takes for ever over a long one.
_Text = Annotated[str, Field(max_length=1000)]


class _Token(_Lenient):
    content: _Text


class _NumberedToken(_Token):
    id: StrictInt


_Named = _Text | _Token | None


class _NamedTemplate(_Lenient):
    name: str
    template: str


class _SpecialTokens(_Lenient):
    """``special_tokens_map.json``."""

    bos_token: _Named = None
    eos_token: _Named = None
    unk_token: _Named = None
    sep_token: _Named = None
    pad_token: _Named = None
    cls_token: _Named = None
    mask_token: _Named = None
    additional_special_tokens: list[_Text | _Token] | None = None


class _TokenizerConfig(_SpecialTokens):
    """``tokenizer_config.json``."""

    added_tokens_decoder: dict[int, _Token] | None = None
    chat_template: str | list[_NamedTemplate] | None = None
    tokenizer_class: str | None = Field(None, pattern=r"^\w{1,80}$")
    model_max_length: float | None = None


_NAMING = (
    ("tokenizer_config.json", _TokenizerConfig),
    ("special_tokens_map.json", _SpecialTokens),
)


class _Vocabulary(_Lenient):
    """Ids by text, or texts in the order of their ids, with a score each."""

    vocab: dict[str, StrictInt] | list[tuple[str, float]] | None = None

    def ids(self) -> dict[str, int]:
        """Ids by text."""
        if isinstance(self.vocab, list):
            return {text: i for i, (text, _) in enumerate(self.vocab)}
        return self.vocab or {}


class _Tokenizer(_Lenient):
    """``tokenizer.json``."""

    model: _Vocabulary | None = None
    added_tokens: list[_NumberedToken] | None = None


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
    assert folder is not None  # noqa: S101 - see has_tokenizer
    for path in beside(folder):
        if not path.is_dir():
            read_bytes(path, most=LONGEST)
    for file, kind in _NAMING:
        _read(folder, file, kind)
    _token_ids(folder)
    try:
        tokenizer: PreTrainedTokenizerBase
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # type: ignore[no-untyped-call]
        # What it was made of may only show where it is used.
        tokenizer.decode(tokenizer.encode("a b"))
        assert isinstance(tokenizer.special_tokens_map, dict)  # noqa: S101 - it is computed
    except BaseException as error:
        # Its compiled half panics, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FdllmError(
            f"the tokenizer in {folder} cannot be read ({type(error).__name__}: "
            f"{first_line(error, 'no message')[:200]}); fetch its files again"
        ) from None
    return tokenizer


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
    if not os.path.lexists(path):
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
    for name, kind in _NAMING:
        token = getattr(_read(folder, name, kind), key)
        if token is None:
            continue
        text = token.content if isinstance(token, _Token) else token
        found = _token_ids(folder).get(text)
        if found is None:
            raise FdllmError(
                f"{folder / name}: {key} is {short(repr(text))}, which none of tokenizer.json, "
                "vocab.json and added_tokens.json has; copy the tokenizer's files whole"
            )
        return found
    return None


def _token_ids(folder: Path) -> dict[str, int]:
    """Ids of the tokenizer's tokens by text; those that stand apart from the vocabulary win.

    Raises:
        UsageError: a file's key is of another type; it is named.
    """
    whole = _read(folder, "tokenizer.json", _Tokenizer)
    decoder = _read(folder, "tokenizer_config.json", _TokenizerConfig).added_tokens_decoder or {}
    return {
        **_ids(folder, "vocab.json"),
        **(whole.model.ids() if whole.model else {}),
        **_ids(folder, "added_tokens.json"),
        **{token.content: token.id for token in whole.added_tokens or ()},
        **{token.content: i for i, token in decoder.items()},
    }


def _ids(folder: Path, name: str) -> dict[str, int]:
    """A file that is nothing but a vocabulary."""
    return _Vocabulary.read({"vocab": read_json(folder / name)}, str(folder / name)).ids()


def _read(folder: Path, name: str, kind: type[_File]) -> _File:
    return kind.read(read_json(folder / name), str(folder / name))

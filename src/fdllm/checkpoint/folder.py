"""A checkpoint's folder: where it lies, which of its files are read, what their headers say."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fdllm import tiny
from fdllm.caches import check_token, hub_cache, offline_by, read_only_cache
from fdllm.errors import FdllmError, MissingError, UsageError, first_line
from fdllm.outside import AbsentError, OutsideError, read_text

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BESIDE = (
    "config.json",
    "generation_config.json",
    "*token*.json",  # tokenizer, its configuration, special and added tokens
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "additional_chat_templates/*.jinja",
)
"""What is read besides the weights: shape, end tokens, tokenizer, chat templates."""
LONGEST = 256 << 20  # bytes of a JSON file; a tokenizer of 256,000 tokens has 30 MiB
_NAME = 120  # characters of a file's or a tensor's name, in errors too
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of one of its tensors."""

    file: Path  # where it lies
    dtype: str  # the format's name of its type, such as ``BF16``
    shape: tuple[int, ...]  # its size


def local_folder(name: str) -> Path | None:
    """The folder that ``tiny`` or a path means; None for a Hub id.

    Raises:
        UsageError: it is none of the three.
    """
    folder = tiny.FOLDER if name == "tiny" else Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.match(name):
        raise UsageError(
            f"no model folder at '{name}'; --model takes 'tiny', an existing folder, or a Hub id "
            "such as Efficient-Large-Model/Fast_dLLM_v2_7B"
        )
    return None


def locate(name: str, revision: str | None = None, *, weights: bool = True) -> Path:
    """The folder of a checkpoint on this machine; a Hub id is fetched (or found in the cache).

    Args:
        name: ``tiny``, a folder or a Hub id.
        revision: branch, tag or commit of a Hub id.
        weights: False fetches what stands beside them alone.

    Raises:
        UsageError: neither a folder nor a Hub id.
        FdllmError: the Hub cannot be reached or refuses.
    """
    folder = local_folder(name)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

    check_token()
    files = ["*.safetensors", INDEX, *BESIDE] if weights else list(BESIDE)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = f"{type(error).__name__}: {first_line(error, 'no answer')}"
        remedy = "check the name and the network, or give a folder that holds the files"
        if offline_by():
            said = f"it is not in the cache of this machine, and {offline_by()[0]} is set"
            remedy = (
                f"where there is a network, with the same HF_HOME: fdllm prefetch --model {name}"
            )
        raise MissingError(
            f"model '{name}' could not be fetched from the Hub ({said}); "
            f"{read_only_cache(error) or remedy}"
        ) from None


def cached_snapshot(name: str, revision: str) -> Path | None:
    """The folder of a Hub model's revision in the cache of this machine; None where it is not."""
    place = hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    folder = place / "snapshots" / commit
    return folder if folder.is_dir() else None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that loading reads: one whole file where there is one, else an index's.

    That is the order of ``transformers``, so that both read the same weights of a folder that holds
    both; :func:`unread_weights` names the rest.

    Raises:
        FdllmError: none, only pickles, or the index names what is missing or lies elsewhere.
    """
    whole = folder / WEIGHTS
    if whole.is_file():
        return [whole]
    if os.path.lexists(whole):  # a library would wait for a pipe's other end
        raise OutsideError(whole, "is no file, or a link that leads nowhere; fetch it again")
    if os.path.lexists(folder / INDEX):
        return _shards(folder)
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise FdllmError(
            f"checkpoint {folder} holds pickles ({some(pickles, 3)}) and no safetensors; "
            "pickles can run code and are never opened: convert them to model.safetensors"
        )
    raise FdllmError(f"checkpoint {folder} holds no {WEIGHTS} and no {INDEX}")


def unread_weights(folder: Path) -> str:
    """What of the weights beside the ones that are read is left alone, in words; empty if nothing.

    Raises:
        FdllmError: as :func:`weight_files`.
    """
    read = {path.name for path in weight_files(folder)}
    others = sorted(p.name for p in folder.glob("*.safetensors") if p.name not in read)
    if WEIGHTS in read and (folder / INDEX).exists():
        others.insert(0, INDEX)
    return some(others, 3)


def files_read(folder: Path) -> list[Path]:
    """Every file of a checkpoint that loading it reads.

    Raises:
        FdllmError: as :func:`weight_files`.
    """
    weights = weight_files(folder)
    index = [] if weights == [folder / WEIGHTS] else [folder / INDEX]
    others = [path for path in beside(folder) if path.is_file()]
    for path in others:
        if path.stat().st_size > LONGEST:
            raise OutsideError(path, f"holds more than {LONGEST:,} bytes, which no such file does")
    return [*weights, *index, *others]


def beside(folder: Path) -> list[Path]:
    """What lies in a checkpoint's folder under a name of :data:`BESIDE`; it may be no file."""
    return sorted({path for pattern in BESIDE for path in folder.glob(pattern)})


def tensor_headers(files: Sequence[Path]) -> dict[str, TensorHeader]:
    """The tensors of safetensors files by name; the tensors themselves are not read.

    Raises:
        FdllmError: a file is no safetensors or was cut short, or a tensor stands in two of them.
    """
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - status reads no header

    found: dict[str, TensorHeader] = {}
    for path in files:
        try:
            with safe_open(path, framework="np") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                headers = {
                    name: TensorHeader(path, one.get_dtype(), tuple(one.get_shape()))
                    for name, one in slices.items()
                }
        except OSError as error:
            raise FdllmError(f"{path} cannot be read: {error.strerror or error}") from None
        except SafetensorError as error:
            raise FdllmError(
                f"{path} is no safetensors file, or it was cut short or is damaged "
                f"({first_line(error)[:300]}); delete it and fetch it again"
            ) from None
        for name in headers.keys() & found.keys():
            raise FdllmError(
                f"tensor {name[:_NAME]} stands in {found[name].file.name} and in {path.name} of "
                f"{path.parent}; a checkpoint holds each tensor once: fetch it again"
            )
        found |= headers
    return found


def read_json(path: Path) -> dict[str, Any]:
    """One of a checkpoint's JSON files; empty where there is none.

    Numbers are any that Python's JSON knows: published tokenizers are ``10**30`` tokens long.

    Raises:
        OutsideError: it is no file, no JSON, or no object.
    """
    try:
        data = json.loads(read_text(path, most=LONGEST))
    except AbsentError:
        return {}
    except (ValueError, RecursionError) as error:
        raise OutsideError(path, f"is no JSON ({first_line(error)}); fetch it again") from None
    if not isinstance(data, dict):
        raise OutsideError(path, f"holds {type(data).__name__}, and an object of keys is needed")
    return data


def num_layers(folder: Path | None) -> int | None:
    """``num_hidden_layers``, where ``config.json`` can be read; loading complains where not."""
    try:
        layers = None if folder is None else read_json(folder / "config.json")["num_hidden_layers"]
    except (FdllmError, KeyError):
        return None
    return layers if isinstance(layers, int) else None


def some(names: Sequence[str], most: int = 6) -> str:
    """The first of several names, and how many there are besides; none of them is long."""
    first = ", ".join(name[:_NAME] for name in names[:most])
    return first + (f" and {len(names) - most} more" if names[most:] else "")


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(map(_is_name, names.values())):
        raise FdllmError(
            f"{index} is not a safetensors index: its weight_map must name a file of the folder "
            "for each tensor; fetch it again"
        )
    shards = sorted(set(names.values()))
    for name in shards:
        if not _stays_inside(folder, name):
            raise FdllmError(
                f"{index} names '{name}', which lies outside the folder; a checkpoint's files lie "
                "in its own folder: copy it there and correct the index"
            )
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent or not shards:
        raise FdllmError(
            f"checkpoint {folder} lacks {len(absent)} of {len(shards)} shards: {some(absent)}; "
            "fetch them again"
        )
    return [folder / name for name in shards]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= _NAME and name.isprintable()


def _stays_inside(folder: Path, name: str) -> bool:
    """Whether a shard lies in its folder, or in the blobs that the Hub's cache links it to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    real, home = (folder / name).resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")

"""The files of a checkpoint: which ones are read, and what their headers say. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fdllm.caches import hub_cache
from fdllm.errors import FdllmError

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
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LENGTH = 8  # bytes of a safetensors file that say how long its header is
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class TensorHeader:
    """What a file says of one of its tensors.

    Attributes:
        file: where it lies.
        dtype: the format's name of its type, such as ``BF16``.
        shape: its size.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that loading reads: one whole file where there is one, else an index's.

    That is the order of ``transformers``, so that both read the same weights of a folder that holds
    both; :func:`unread_weights` names the rest.

    Raises:
        FdllmError: none, only pickles, or the index names what is missing or lies elsewhere.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if (folder / INDEX).exists():
        return _shards(folder)
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise FdllmError(
            f"checkpoint {folder} holds pickles ({', '.join(pickles[:3])}) and no safetensors; "
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
    return ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")  # noqa: PLR2004


def files_read(folder: Path) -> list[Path]:
    """Every file of a checkpoint that loading it reads.

    Raises:
        FdllmError: as :func:`weight_files`.
    """
    weights = weight_files(folder)
    index = [] if weights == [folder / WEIGHTS] else [folder / INDEX]
    beside = (path for pattern in BESIDE for path in folder.glob(pattern) if path.is_file())
    return [*weights, *index, *sorted(set(beside))]


def tensor_headers(files: Sequence[Path]) -> dict[str, TensorHeader]:
    """The tensors of safetensors files by name; the tensors themselves are not read.

    Raises:
        FdllmError: a file is no safetensors or was cut short, or a tensor stands in two of them.
    """
    found: dict[str, TensorHeader] = {}
    for path in files:
        for name, header in _header(path).items():
            if name in found:
                raise FdllmError(
                    f"tensor {name} stands in {found[name].file.name} and in {path.name} of "
                    f"{path.parent}; a checkpoint holds each tensor once: fetch it again"
                )
            found[name] = header
    return found


def cached_snapshot(name: str, revision: str) -> Path | None:
    """The folder of a Hub model's revision in the cache of this machine; None where it is not.

    Args:
        name: the Hub id.
        revision: branch, tag or commit.
    """
    place = hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision
    folder = place / "snapshots" / commit
    return folder if folder.is_dir() else None


def read_json(path: Path) -> dict[str, Any]:
    """One of a checkpoint's JSON files; empty where there is none.

    Raises:
        FdllmError: it is no JSON, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise FdllmError(f"{path} cannot be read: {error}; fetch it again") from None
    if not isinstance(data, dict):
        raise FdllmError(f"{path} holds {type(data).__name__}, and an object of keys is needed")
    return data


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and n for n in names.values()):
        raise FdllmError(
            f"{index} is not a safetensors index: its weight_map must name a file of the folder "
            "for each tensor"
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
            f"checkpoint {folder} lacks {len(absent)} of {len(shards)} shards: "
            f"{', '.join(absent[:6])}; fetch them again"
        )
    return [folder / name for name in shards]


def _stays_inside(folder: Path, name: str) -> bool:
    """Whether a shard lies in its folder, or in the blobs that the Hub's cache links it to."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        return False
    real, home = (folder / name).resolve(), folder.resolve()
    if real.is_relative_to(home):
        return True
    return home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")


def _header(path: Path) -> dict[str, TensorHeader]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if length > min(size, _LONGEST_HEADER):
                raise ValueError("no header")  # noqa: TRY301 - one message for all of it
            header = json.loads(file.read(length))
        tensors = {name: one for name, one in header.items() if name != "__metadata__"}
        due = (
            _LENGTH + length + max((int(t["data_offsets"][1]) for t in tensors.values()), default=0)
        )
        found = {
            name: TensorHeader(path, str(one["dtype"]), tuple(map(int, one["shape"])))
            for name, one in tensors.items()
        }
    except OSError as error:
        raise FdllmError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise FdllmError(
            f"{path} is no safetensors file, or it is incomplete or damaged; fetch it again"
        ) from None
    if size != due:
        raise FdllmError(
            f"{path} has {size} bytes where its header says {due}, so it was cut short or is "
            "damaged; delete it and prefetch it again"
        )
    return found

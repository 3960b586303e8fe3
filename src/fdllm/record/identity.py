"""What makes a run this run and no other (docs/records.md section 2). No torch.

Content hashes of the source and of checkpoints, installed versions, and the fingerprint of it all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Self

from pydantic import Field

from fdllm.checkpoint.folder import cached_snapshot, files_read, local_folder, num_layers
from fdllm.errors import FdllmError, few
from fdllm.record.atomic import read_cache, write_cache
from fdllm.runs import ModelChoice
from fdllm.spec import Spec

SCHEMA = "1"
"""Part of every fingerprint; raised when a record of an older kind may no longer be read."""

DECIDED = "decided"
"""The field of a record that is not whole, see :class:`fdllm.record.summary.Decided`."""

PACKAGE = Path(__file__).resolve().parents[1]
# These cannot change an output: they plan, show, and keep. What they keep has a schema number. The
# embedded model's weights and tasks are identified as a model and as tasks.
_OUTSIDE = (
    "__main__.py",
    "_template",  # of an experiment, where a wheel brings it
    "applicable.py",
    "calibrate",
    "cli",
    "criteria.py",
    "report",
    "cluster",
    "doctor",
    "profiling",
    "record",
    "release",
    "reproduce",
    "selftest",
    "timing",
    "tiny",
    "trace",
    "plan.py",
    "presets",  # what they set stands in a run's own fields
    "task_facts.py",  # which stand in a run's own fields
    "shard.py",  # who answers; what is answered stands in the task
    "until_decided.py",  # where a run ends stands in its record
    "errors.py",
)
_LOCKED = (
    "antlr4-python3-runtime",
    "datasets",
    "latex2sympy2_extended",
    "lm-eval",
    "math-verify",
    "numpy",
    "safetensors",
    "sympy",
    "tokenizers",
    "torch",
    "transformers",
)
_HASHES = "hashes.json"
_SMALL = 1 << 20  # bytes; what is smaller is hashed anew each time
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


class Fingerprint(Spec):
    """Everything that may change an output, and nothing that cannot."""

    # value by name. None is unknown where this was made: the revision of a checkpoint that is not
    # on this machine, say. What planning does not know is not held against a record; what a record
    # does not know equals nothing, so none is written with it.
    fields: dict[str, str | None]
    # SHA-256 of each code file behind the fields ``source`` and ``experiment``, so that a change
    # can be named
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Twelve characters that stand for all fields."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()[:12]

    def known(self) -> Self:
        """Itself, where it may stand in a record.

        Raises:
            FdllmError: a field is unknown, so that the record would equal any other.
        """
        unknown = [name for name, value in sorted(self.fields.items()) if value is None]
        if unknown:
            raise FdllmError(
                f"this run's {' and '.join(unknown)} cannot be told, so nothing may be recorded of "
                "it; the model's files are not where the Hub's client keeps them (HF_HOME, "
                "HF_HUB_CACHE): fdllm prefetch it there, or name its folder"
            )
        return self

    def decided(self, text: str) -> Self:
        """Of a record of this run that ended where its criteria were decided."""
        return self.model_copy(update={"fields": self.fields | {DECIDED: text}})

    @property
    def whole(self) -> Self:
        """Of the run, wherever its record ended."""
        fields = {name: value for name, value in self.fields.items() if name != DECIDED}
        return self.model_copy(update={"fields": fields})

    def differences(self, recorded: Fingerprint) -> list[str]:
        """What changed since ``recorded``, each as a few words; empty where it is the same run."""
        changed = []
        for name in sorted(set(self.fields) | set(recorded.fields)):
            now, then = self.fields.get(name), recorded.fields.get(name)
            if then is None:
                changed.append(f"{name}: unknown in the record")
            elif name not in self.fields:
                changed.append(f"{name}: no longer a field")
            elif now is None or now == then:
                continue
            elif name in ("source", "experiment"):
                changed.append(f"{name}: {self._changed_files(recorded, name)}")
            elif len(now) + len(then) <= 60:  # noqa: PLR2004 - what fits beside a state
                changed.append(f"{name}: {then} -> {now}")
            else:
                changed.append(f"{name}: {_first_difference(then, now)}")
        return changed

    def _changed_files(self, recorded: Fingerprint, field: str) -> str:
        prefix = "src/" if field == "source" else "experiments/"
        names = [
            name
            for name in sorted(set(self.files) | set(recorded.files))
            if name.startswith(prefix) and self.files.get(name) != recorded.files.get(name)
        ]
        return f"{few(names, 3)} changed" if names else "changed"


def _first_difference(then: str, now: str) -> str:
    """The first part of two comma-separated values that differs; hashes are cut."""
    old, new = then.split(", "), now.split(", ")
    if len(old) == len(new) > 1:
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        return ", ".join(f"{a} -> {b}" for a, b in pairs[:3])
    return f"{then[:19]}… -> {now[:19]}…"


def strategy_words(text: str, layers: Sequence[int], n_layers: int) -> str:
    """A strategy as a fingerprint has it: as Python writes it, and the layers it may skip."""
    parameters = text.replace("(", ", ", 1).removesuffix(")")
    return f"{parameters}, layers {' '.join(map(str, layers))} of {n_layers}"


def digest_of(hashes: dict[str, str]) -> str:
    """One hash for many files: their names and contents, in the order of names."""
    text = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def source_hashes() -> dict[str, str]:
    """SHA-256 of each source file of the package that may change an output, by its path."""
    return {
        f"src/fdllm/{path.relative_to(PACKAGE).as_posix()}": _hash(path)
        for path in code_files(PACKAGE, "*.py", "*.c")
        if path.relative_to(PACKAGE).parts[0] not in _OUTSIDE
    }


def code_files(folder: Path, *patterns: str) -> list[Path]:
    """Files below a folder whose names match, in the order of their paths.

    What lies hidden beside them is none of them: the locks of editors (``.#x.py``, a link to
    nowhere), ``._x.py``, ``.ipynb_checkpoints``, ``.nfs…`` and ``__pycache__``.

    Raises:
        FdllmError: one is no file, a link that leads nowhere, say.
    """
    found = []
    for path in sorted(folder.rglob("*"), key=Path.as_posix):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts) or path.is_dir():
            continue
        if any(fnmatchcase(path.name, pattern) for pattern in patterns):
            if not path.is_file():
                where = f", a link to {path.readlink()}" if path.is_symlink() else ""
                raise FdllmError(f"{path} is no file{where}; put back what it led to, or delete it")
            found.append(path)
    return found


@cache
def locked_versions() -> str:
    """Installed versions of the libraries that may change an output.

    Local labels (``+cpu``) are left out: the kind of machine stands in the provenance, and a
    table over two kinds is refused there.
    """
    return ", ".join(f"{name} {installed(name, 'absent').partition('+')[0]}" for name in _LOCKED)


def installed(name: str, otherwise: str) -> str:
    """The version of a library that is installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return otherwise


@dataclass(frozen=True)
class ModelIdentity:
    """Which weights are meant."""

    name: str  # the Hub id, or a content hash of the folder's files
    revision: str | None  # a Hub id's commit; None where this machine does not know it yet
    folder: Path | None  # where the files lie on this machine; None where they do not
    n_layers: int | None  # transformer layers; None where the configuration is not here


def model_identity(choice: ModelChoice) -> ModelIdentity:
    """Identify a checkpoint from what lies on this machine; nothing is fetched.

    A folder is identified by the content of the files that loading it reads; a Hub id by the commit
    that the Hub's own cache holds.

    Raises:
        UsageError: the name is neither a folder nor of a Hub id's form.
        FdllmError: the folder holds no weights that could be loaded.
    """
    folder = local_folder(choice.name)
    if folder is not None:
        hashes = {
            path.relative_to(folder).as_posix(): _cached_hash(path) for path in files_read(folder)
        }
        return ModelIdentity(f"sha256:{digest_of(hashes)}", "", folder, num_layers(folder))
    revision = choice.revision or "main"
    here = cached_snapshot(choice.name, revision)
    known = None if here is None else here.name
    commit = revision if _COMMIT.match(revision) else known
    return ModelIdentity(choice.name, commit, here, num_layers(here))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached_hash(path: Path) -> str:
    """SHA-256 of a file; that of a large one is remembered by path, size and time of change."""
    status = path.stat()
    if status.st_size < _SMALL:
        return _hash(path)
    key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}"
    known = read_cache(_HASHES)
    if key not in known:
        known[key] = _hash(path)
        with suppress(Exception):  # a cache that cannot be written costs time, nothing else
            write_cache(_HASHES, known)
    return str(known[key])

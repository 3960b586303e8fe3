"""The identity of a run: named fields, comparable before and after (docs/records.md section 2)."""

from __future__ import annotations

import hashlib
import json
from typing import Self

from pydantic import Field

from fdllm.errors import FdllmError
from fdllm.spec import Spec

SCHEMA = "1"
"""Part of every fingerprint; raised when a record of an older kind may no longer be read."""


class Fingerprint(Spec):
    """Everything that may change an output, and nothing that cannot.

    Attributes:
        fields: value by name. None is unknown where this was made: the revision of a checkpoint
            that is not on this machine, say. What planning does not know is not held against a
            record; what a record does not know equals nothing, so none is written with it.
        files: SHA-256 of each code file behind the fields ``source`` and ``experiment``, so that a
            change can be named.
    """

    fields: dict[str, str | None]
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
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")  # noqa: PLR2004
        return f"{shown} changed" if names else "changed"


def _first_difference(then: str, now: str) -> str:
    """The first part of two comma-separated values that differs; hashes are cut."""
    old, new = then.split(", "), now.split(", ")
    if len(old) == len(new) > 1:
        pairs = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        return ", ".join(f"{a} -> {b}" for a, b in pairs[:3])
    return f"{then[:19]}… -> {now[:19]}…"


def digest_of(hashes: dict[str, str]) -> str:
    """One hash for many files: their names and contents, in the order of names."""
    text = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()

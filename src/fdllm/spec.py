"""The base of whatever is read strictly: an unknown key raises and lists the valid ones."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fdllm.errors import UsageError, did_you_mean
from fdllm.outside import OutsideError, read_text

_MOST = 1 << 20  # bytes of a file of settings

_MOST_TOLD = 4  # problems of one file, in one line
_LONGEST = 80  # characters of a name or a value in it


def read_toml(path: Path, what: str = "") -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UsageError: it is absent, cannot be read, or is no TOML; ``what`` says what it would be.
    """
    try:
        return tomllib.loads(read_text(path, most=_MOST))
    except OutsideError as error:
        raise UsageError(f"{what}{error}") from None
    except RecursionError:
        raise UsageError(f"{what}{path} cannot be read: it is nested too deep") from None
    except ValueError as error:
        raise UsageError(f"{what}{path} cannot be read: {error}") from None


class Spec(BaseModel):
    """Base of every specification: frozen, strict about keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def read(cls, data: Mapping[str, Any], where: str) -> Self:
        """Check ``data`` and build the specification.

        Args:
            data: keys and values, say one table of a TOML file.
            where: what to call it in an error.

        Raises:
            UsageError: a key is unknown (with the valid ones and the nearest) or a value is wrong.
        """
        try:
            return cls(**data)
        except ValidationError as error:
            raise UsageError(f"{where}: {_explain(cls, error)}") from None


def first_problem(error: ValidationError) -> str:
    """What is wrong with a file that was written by a program, in a few words."""
    problems = [(".".join(map(str, e["loc"])), e["type"], e["msg"]) for e in error.errors()]
    missing = [name for name, kind, _ in problems if kind == "missing"]
    if missing:
        return f"missing keys {', '.join(missing[:4])}"
    name, kind, message = problems[0]
    if kind == "extra_forbidden":
        return f"unknown key '{name}'"
    return f"'{name or 'it'}': {message.removeprefix('Value error, ')}"


def _explain(cls: type[BaseModel], error: ValidationError) -> str:
    sentences = []
    valid = sorted(cls.model_fields)
    problems = error.errors()
    for problem in problems[:_MOST_TOLD]:
        name = short(".".join(str(part) for part in problem["loc"]))
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(name, valid)
            sentences.append(f"unknown key '{name}'{hint}; valid keys are {', '.join(valid)}")
        else:
            # A rule over several keys says itself what it found.
            told = problem["type"] == "missing" or not name
            given = "" if told else f"; got {short(repr(problem['input']))}"
            subject = f"'{name}': " if name else ""
            sentences.append(f"{subject}{problem['msg'].removeprefix('Value error, ')}{given}")
    if problems[_MOST_TOLD:]:
        sentences.append(f"and {len(problems) - _MOST_TOLD} more")
    return "; ".join(sentences)


def short(text: str) -> str:
    """A text that is to stand inside a line: its beginning, where it is long."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

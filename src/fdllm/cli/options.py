"""A command: one typed value, made at the door, whose fields are its flags."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

from fdllm.core.config import Estimator
from fdllm.errors import UsageError
from fdllm.runs import DEFAULT_MODEL, CodeExecution

DTYPES = ("auto", "float32", "bfloat16", "float16")

N = TypeVar("N", int, float)


def absolute_path(text: str) -> Path:
    """A path, from where the command was given."""
    return Path(text).expanduser().absolute()


def new_file(text: str) -> Path:
    """A file that is going to be written; a folder of the name is refused before any work."""
    path = absolute_path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"it names the folder '{text}'; name a file in it")
    return path


def number(
    kind: Callable[[str], N], words: str, least: float, below: float = math.inf
) -> Callable[[str], N]:
    """What reads a number from ``least`` on, below ``below``; ``words`` say what it must be."""

    def read(text: str) -> N:
        with suppress(ValueError):
            given = kind(text)
            if least <= given < below:  # refuses NaN too
                return given
        raise ArgumentTypeError(f"must be {words}; got '{text}'")

    return read


positive = number(int, "a whole number, 1 or more", 1)
not_negative = number(float, "a number, 0 or more", 0)
_READERS: Mapping[str, Callable[[str], Any]] = {
    "int": positive,
    "float": not_negative,
    "Path": absolute_path,
}


def rows_at_once(text: str) -> int | str:
    """A number of rows, or ``auto``."""
    if text == "auto":
        return text
    try:
        return positive(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}; or 'auto'") from None


def flag(text: str, *, default: Any = None, group: str = "", **words: Any) -> Any:  # noqa: ANN401 - as ``field``
    """A field that is a flag of the same name; its type says how it is read.

    A whole number is positive and a number not negative, where no ``type`` is given; a tuple takes
    several values and may be repeated; what is False by default takes none.

    Args:
        text: its help.
        default: where it is not given.
        group: heading that it stands under; a second line describes the whole group.
        words: what else ``add_argument`` is told; ``flags`` are other names than the field's, and
            one without a dash is an argument by its place.
    """
    return field(default=default, metadata={"help": text, "group": group, **words})


_what = partial(flag, group="what")
_how = partial(flag, group="how")


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What stands behind ``fdllm``: its fields are its flags, its first line is its help."""

    hidden: ClassVar[bool] = False  # nobody types it
    epilog: ClassVar[str] = ""  # stands below its flags

    @abstractmethod
    def run(self) -> int:
        """Do it; the exit code."""

    @classmethod
    def add_flags(cls, parser: ArgumentParser) -> None:
        """Let a parser know each field that is a flag."""
        groups: dict[str, Any] = {"": parser}
        for one in fields(cls):
            words = dict(one.metadata)
            if not words:
                continue
            title = words.pop("group")
            if title not in groups:
                groups[title] = parser.add_argument_group(*title.split("\n", 1))
            names = words.pop("flags", (f"--{one.name.replace('_', '-')}",))
            if names[0].startswith("-"):
                words["dest"] = one.name
            kind = str(one.type).partition(" |")[0]
            if one.default is False:
                words["action"] = "store_true"
            elif kind in _READERS:
                words.setdefault("type", _READERS[kind])
            elif kind.startswith("tuple") and "nargs" not in words:
                words |= {"action": "extend", "nargs": "+"}
            # A list: argparse extends a default, and a tuple cannot be.
            default = list(one.default) if isinstance(one.default, tuple) else one.default
            groups[title].add_argument(*names, default=default, **words)

    @classmethod
    def read(cls, given: Namespace) -> Self:
        """What a parser found, lists as tuples."""
        flags: dict[str, Any] = vars(given)
        values = {one.name: flags[one.name] for one in fields(cls) if one.name in flags}
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


@dataclass(frozen=True, kw_only=True)
class Selection(Command):
    """Which runs are meant. What a command that computes nothing is not asked is at its default."""

    experiment: str = _what("(00_baseline)", default="00_baseline", metavar="NAME")
    task: tuple[str, ...] | None = _what("repeatable (all that suit the model)", metavar="T")
    include_path: Path | None = flag(
        "folder with definitions of your own tasks, as lm-eval's YAML (docs/extending.md 7)",
        group="what",
        metavar="FOLDER",
    )
    headline: str | None = _what(
        "METRIC,FILTER of the task that goes into tables, where it has several (fdllm tasks)",
        metavar="M",
    )
    config: tuple[str, ...] | None = _what("repeatable; the whole grid", metavar="C")
    limit: int | None = _what("rows of each subtask at most", metavar="N")
    model: str | None = _what(
        f"'tiny', a folder or a Hub id (FDLLM_MODEL, else the task's own: {DEFAULT_MODEL})",
        metavar="PATH_OR_ID",
    )
    preset: str | None = _what(
        "published, ancestor, or a FILE.toml: the protocol of that evaluation, over the "
        "experiment's settings and under a cell's own (docs/protocol.md)",
        metavar="P",
    )
    revision: str | None = _what("branch, tag or commit of a Hub id", metavar="REV")
    scoring: Estimator | None = flag(
        "log-likelihood estimator (the experiment's)", group="what", choices=get_args(Estimator)
    )
    allow_invalid: bool = _what(
        "let first-token score choices with one first token; the record says so", default=False
    )
    dtype: str = _what("type of the weights (by device)", default="auto", choices=DTYPES)
    results: Path | None = flag(
        "folder of the records (results/ of the checkout)", group="where", metavar="DIR"
    )
    device: str = "auto"
    threads: int | None = None
    batch_size: int | str | None = None
    score_batch_size: int | str | None = None
    prefix_cache_gib: float | None = None
    compile: bool | None = None
    # None where a command has no such flag, as it runs no program
    allow_code_execution: bool | None = None
    allow_readable_files: bool = False
    status: bool = False  # nothing is computed, states are shown

    @property
    def evaluating(self) -> dict[str, Any]:
        """What these flags change of how a run is evaluated."""
        names = (
            "scoring",
            "headline",
            "batch_size",
            "score_batch_size",
            "prefix_cache_gib",
            "compile",
        )
        values = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in values.items() if value is not None}
        return changes | ({"allow_invalid": True} if self.allow_invalid else {})

    @property
    def code_execution(self) -> CodeExecution:
        """The user's consent to run code that the model writes.

        Raises:
            UsageError: the second flag is given without the first, and would do nothing.
        """
        if self.allow_readable_files and not self.allow_code_execution:
            raise UsageError(
                "--allow-readable-files only adds to --allow-code-execution; give both"
            )
        if not self.allow_code_execution:
            return "refused"
        return "readable" if self.allow_readable_files else "confined"


@dataclass(frozen=True, kw_only=True)
class Consent(Selection):
    """Runs, and whether programs that a model writes may run for them."""

    allow_code_execution: bool | None = _how(
        "let humaneval and mbpp run what the model writes, each program confined: no network, "
        "no token, limits on time and memory",
        default=False,
    )
    allow_readable_files: bool = _how(
        "with --allow-code-execution: also on a kernel without Landlock, where programs can "
        "read this account's files",
        default=False,
    )


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where and how runs are computed here; stands ahead of a kind of :class:`Selection`."""

    device: str = _how("cpu, cuda or cuda:N (a GPU if there is)", default="auto")
    threads: int | None = _how("threads on CPU (torch's)", metavar="N")
    score_batch_size: int | str | None = _how(
        "rows at once where answers are scored, or auto: as many as memory holds; never changes a "
        "score",
        type=rows_at_once,
        metavar="N",
    )
    prefix_cache_gib: float | None = _how(
        "memory for prompt blocks that scored requests share; 0 shares none", metavar="X"
    )
    compile: bool | None = _how(
        "on a CPU C kernels between the products (default, where there is a C compiler); on a "
        "GPU forwards recorded as CUDA graphs (default where fdllm selftest passed and they paid); "
        "the same arithmetic",
        action=BooleanOptionalAction,
    )


@dataclass(frozen=True, kw_only=True)
class Computing(Placed, Consent):
    """Runs that answer every document, in batches."""

    batch_size: int | str | None = _how(
        "rows at once where text is generated, or auto: as many as memory holds; never changes an "
        "answer",
        type=rows_at_once,
        metavar="N",
    )

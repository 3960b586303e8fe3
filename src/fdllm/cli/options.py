"""What a command is given: one typed value, made at the door, whose fields are the flags."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, get_args

from fdllm.core.config import Estimator
from fdllm.errors import UsageError
from fdllm.runs import DEFAULT_MODEL, CodeExecution

DTYPES = ("auto", "float32", "bfloat16", "float16")


def flag(text: str, *, default: Any = None, group: str = "", **words: Any) -> Any:  # noqa: ANN401 - as ``field``
    """A field that is a flag of the same name; one that is False by default takes no value.

    Args:
        text: its help.
        default: where it is not given.
        group: heading that it stands under; a second line describes the whole group.
        words: what else ``add_argument`` is told; ``flags`` are other names than the field's, and
            one without a dash is an argument by its place.
    """
    return field(default=default, metadata={"help": text, "group": group, **words})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command's options share."""

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
                groups[title] = parser.add_argument_group(*title.split("\n"))
            names = words.pop("flags", (f"--{one.name.replace('_', '-')}",))
            if names[0].startswith("-"):
                words["dest"] = one.name
            if one.default is False:
                words["action"] = "store_true"
            # A list: argparse extends a default, and a tuple cannot be.
            default = list(one.default) if isinstance(one.default, tuple) else one.default
            groups[title].add_argument(*names, default=default, **words)

    @classmethod
    def read(cls, given: Namespace) -> Self:
        """What a parser found, lists as tuples."""
        flags: dict[str, Any] = vars(given)
        values = {one.name: flags[one.name] for one in fields(cls) if one.name in flags}
        return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def absolute_path(text: str) -> Path:
    """A path, from where the command was given."""
    return Path(text).expanduser().absolute()


def not_negative(text: str) -> float:
    """A finite number, 0 or more."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ArgumentTypeError(f"must be a number, 0 or more; got '{text}'")
    return number


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"must be a whole number, 1 or more; got '{text}'")
    return number


def rows_at_once(text: str) -> int | str:
    """A number of rows, or ``auto``."""
    if text == "auto":
        return text
    try:
        return positive(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}; or 'auto'") from None


@dataclass(frozen=True, kw_only=True)
class Selection(Options):
    """Which runs are meant. What a command that computes nothing is not asked is at its default.

    Attributes:
        allow_code_execution: None where a command has no such flag, as it runs no program.
        status: nothing is computed, states are shown.
    """

    experiment: str = flag("(00_baseline)", default="00_baseline", group="what", metavar="NAME")
    task: tuple[str, ...] | None = flag(
        "repeatable (all that suit the model)",
        group="what",
        action="extend",
        nargs="+",
        metavar="T",
    )
    config: tuple[str, ...] | None = flag(
        "repeatable; the whole grid", group="what", action="extend", nargs="+", metavar="C"
    )
    limit: int | None = flag(
        "rows of each subtask at most", group="what", type=positive, metavar="N"
    )
    model: str | None = flag(
        f"'tiny', a folder or a Hub id (FDLLM_MODEL, else the task's own: {DEFAULT_MODEL})",
        group="what",
        metavar="PATH_OR_ID",
    )
    preset: str | None = flag(
        "published, ancestor, or a FILE.toml: the protocol of that evaluation, over the "
        "experiment's settings and under a cell's own (docs/protocol.md)",
        group="what",
        metavar="P",
    )
    revision: str | None = flag("branch, tag or commit of a Hub id", group="what", metavar="REV")
    scoring: Estimator | None = flag(
        "log-likelihood estimator (the experiment's)", group="what", choices=get_args(Estimator)
    )
    allow_invalid: bool = flag(
        "let first-token score choices with one first token; the record says so",
        default=False,
        group="what",
    )
    dtype: str = flag(
        "type of the weights (by device)", default="auto", group="what", choices=DTYPES
    )
    results: Path | None = flag(
        "folder of the records (results/ of the checkout)",
        group="where",
        type=absolute_path,
        metavar="DIR",
    )
    device: str = "auto"
    threads: int | None = None
    batch_size: int | str | None = None
    score_batch_size: int | str | None = None
    prefix_cache_gib: float | None = None
    compile: bool | None = None
    allow_code_execution: bool | None = None
    allow_readable_files: bool = False
    status: bool = False

    @property
    def evaluating(self) -> dict[str, Any]:
        """What these flags change of how a run is evaluated."""
        names = ("scoring", "batch_size", "score_batch_size", "prefix_cache_gib", "compile")
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

    allow_code_execution: bool | None = flag(
        "let humaneval and mbpp run what the model writes, each program confined: no network, "
        "no token, limits on time and memory",
        default=False,
        group="how",
    )
    allow_readable_files: bool = flag(
        "with --allow-code-execution: also on a kernel without Landlock, where programs can "
        "read this account's files",
        default=False,
        group="how",
    )


@dataclass(frozen=True, kw_only=True)
class Computing(Consent):
    """Runs, and how they are computed here."""

    device: str = flag("cpu, cuda or cuda:N (a GPU if there is)", default="auto", group="how")
    threads: int | None = flag("threads on CPU (torch's)", group="how", type=positive, metavar="N")
    batch_size: int | str | None = flag(
        "rows at once where text is generated, or auto: as many as there is memory for; never "
        "changes an answer",
        group="how",
        type=rows_at_once,
        metavar="N",
    )
    score_batch_size: int | str | None = flag(
        "the same where answers are scored; never changes a score",
        group="how",
        type=rows_at_once,
        metavar="N",
    )
    prefix_cache_gib: float | None = flag(
        "memory for prompt blocks that scored requests share; 0 shares none",
        group="how",
        type=not_negative,
        metavar="X",
    )
    compile: bool | None = flag(
        "on a CPU C kernels between the products (default, where there is a C compiler); on a "
        "GPU forwards recorded as CUDA graphs (default where fdllm selftest passed and they paid); "
        "the same arithmetic",
        group="how",
        action=BooleanOptionalAction,
    )


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"must be a whole number; got '{text}'")
    return int(text)


def _points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 100:  # noqa: PLR2004 - percent; also refuses NaN
        raise ArgumentTypeError(f"must be percentage points, 0 or more; got '{text}'")
    return value


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Which records ``fdllm compare`` is about, and what it says of them."""

    a: str = flag("config or folder to compare with", flags=("a",), metavar="A")
    b: str = flag("config or folder in question, or 'published'", flags=("b",), metavar="B")
    experiment: str = flag("(00_baseline)", default="00_baseline", metavar="NAME")
    task: str | None = flag("(every task that both have)", metavar="T")
    limit: int | None = flag("records cut to N rows (uncut)", type=_whole, metavar="N")
    preset: str | None = flag(
        "records under this preset (those of the experiment's own)", metavar="P"
    )
    model: str | None = flag("(the only one that has records)", metavar="PATH_OR_ID")
    results: Path | None = flag(
        "folder of the records (results/)", type=absolute_path, metavar="DIR"
    )
    margin: float = flag(
        "loss of accuracy that 'same' allows, in percentage points (2)",
        default=2.0,
        type=_points,
        metavar="POINTS",
    )
    strict: bool = flag("whatever cannot be told counts as worse", default=False)
    flips: int = flag("answers shown each way (3)", default=3, type=_whole, metavar="N")
    json: bool = flag("print JSON", default=False)


OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True)
class Command(Generic[OptionsT]):
    """What stands behind ``fdllm``.

    Attributes:
        text: what it is for, in a line of ``fdllm --help``; empty where nobody types it.
        options: what it is given.
        run: does it; the exit code.
        epilog: stands below its flags.
    """

    text: str
    options: type[OptionsT]
    run: Callable[[OptionsT], int]
    epilog: str = ""

    def __call__(self, given: Namespace) -> int:
        """Do it with the flags that were given."""
        return self.run(self.options.read(given))

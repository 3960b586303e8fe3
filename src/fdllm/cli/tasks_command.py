"""``fdllm tasks``: which tasks there are, and what each needs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fdllm.cli.options import Command, flag
from fdllm.cli.output import console, say, say_json
from fdllm.errors import UsageError, did_you_mean
from fdllm.evaluate.task_definition import define
from fdllm.evaluate.task_index import Index, harness_index, own_index
from fdllm.evaluate.tasks import TASKS, TaskInfo, info_of
from fdllm.plain import one_line
from fdllm.report.columns import Fitted

_LESSER = ("asks", "documents", "of", "headline")
"""Columns that a narrow terminal may lack, the first to go first."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A task as ``fdllm tasks`` shows it."""

    name: str
    kind: str = "task"  # ``task``, ``group`` or ``tag``
    tasks: int = 1  # how many it consists of
    output_types: tuple[str, ...]
    datasets: tuple[str, ...]  # Hub ids; ``json``, ``python`` … where rows are on this machine
    num_fewshot: tuple[int, ...]  # worked examples in its YAML; a run has the experiment's number
    metrics: tuple[str, ...]  # what may be its headline
    headline: str | None  # what is; None where a user is to say
    gated: bool = False  # whether the Hub asks for a token and agreement
    runs_code: bool = False  # whether it needs --allow-code-execution
    refused: str = ""  # why it cannot be run here; empty where it can

    @property
    def words(self) -> str:
        """What a reader has to know before a run."""
        if self.refused:
            return f"not here: it {self.refused}"
        needs = {
            "gated: accept its conditions on the Hub": self.gated,
            "--allow-code-execution": self.runs_code,
            f"--headline, one of {' '.join(self.metrics)}": self.headline is None,
        }
        return "; ".join(words for words, needed in needs.items() if needed)


@dataclass(frozen=True, kw_only=True)
class TasksCommand(Command):
    """List tasks, lm-eval's and your own, with what each needs."""

    pattern: str | None = flag(
        "part of a name, or a whole name with * and ?; '*' is all (without: those known by name, "
        "and your own)",
        flags=("pattern",),
        nargs="?",
        metavar="PATTERN",
    )
    include_path: Path | None = flag(
        "folder with definitions of your own tasks, as lm-eval's YAML (docs/extending.md 7)",
        metavar="FOLDER",
    )
    json: bool = flag("print JSON", default=False)

    def run(self) -> int:
        """Read definitions, and fetch nothing."""
        own = {} if self.include_path is None else own_index(self.include_path)
        harness = harness_index()
        index = ChainMap({**own}, {**harness})
        every = dict.fromkeys([*TASKS, *sorted(own), *sorted(harness)])
        usual = [*TASKS, *sorted(own)]
        names = usual if self.pattern is None else [*_like(self.pattern, every)]
        if not names:
            raise UsageError(
                f"no task is named like '{self.pattern}'{did_you_mean(str(self.pattern), every)}; "
                "give a part of a name, or '*' for all"
            )
        listed = [_listed(name, index) for name in dict.fromkeys(names)]
        if self.json:
            say_json({"tasks": [asdict(one) for one in listed]})
            return 0
        _show(listed)
        if self.pattern is None:
            say(f"\n{len(every) - len(listed):,} names more: fdllm tasks PATTERN, mmlu_pro say")
        return 0


def _like(pattern: str, names: dict[str, None]) -> Iterator[str]:
    whole = any(sign in pattern for sign in "*?[")
    if pattern in names:
        yield pattern
    for name in names:
        if fnmatchcase(name, pattern) if whole else pattern in name:
            yield name


def _listed(name: str, index: Index) -> Listed:
    known = TASKS.get(name)
    if name not in index:  # of the embedded model
        return _embedded(TASKS[name])
    found = define(name, index, fresh=False)
    info = known or info_of(found)
    return Listed(
        name=name,
        kind=found.kind,
        tasks=len(found.leaves),
        output_types=found.output_types,
        datasets=found.datasets,
        num_fewshot=found.num_fewshot,
        metrics=(info.headline,) if known else found.metrics,
        headline=info.headline or None,
        gated=info.gated,
        runs_code=info.runs_code,
        refused="" if known else found.refused,
    )


def _embedded(info: TaskInfo) -> Listed:
    return Listed(
        name=info.name,
        output_types=("generate_until" if info.kind == "generate" else "multiple_choice",),
        datasets=("python",),
        num_fewshot=(0,),
        metrics=(info.headline,),
        headline=info.headline,
    )


def _show(listed: list[Listed]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("task", "of", "asks", "documents", "headline", "needs"):
        whole, side = column != "needs", "right" if column == "of" else "left"
        table.add_column(column, justify=side, no_wrap=whole, overflow="fold")  # type: ignore[arg-type]
    for one in listed:
        more = f" and {len(one.datasets) - 1} more" if len(one.datasets) > 1 else ""
        cells = (
            one.name,
            str(one.tasks),
            " ".join(one.output_types),
            f"{one.datasets[0]}{more}" if one.datasets else "-",
            one.headline or "-",
            one.words,
        )
        table.add_row(*(Text(one_line(cell)) for cell in cells))
    console(200).print(Fitted(table, _LESSER))

"""What a task of the harness, or of a user's folder, consists of and needs. No torch, no harness.

Told from its YAML alone, so that a task that cannot be answered or compared is refused at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from fdllm.errors import UsageError
from fdllm.evaluate.task_index import Entry, Index, filters_of, read_entry
from fdllm.record.paths import TASK_NAME

LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
KNOWN_ARGUMENTS = ("until", "do_sample", "temperature", *LENGTH_NAMES)
"""What a definition may ask of generation."""
_FILES = {
    "arrow",
    "csv",
    "json",
    "pandas",
    "parquet",
    "text",
    "xml",
}  # `datasets` reads them itself
_OF_A_GROUP = {"group", "group_alias", "task", "aggregate_metric_list", "metadata"}
# The harness's metrics whose figure is a mean over documents, where a definition does not say.
_MEANS = {"acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "exact_match", "likelihood"}
_USUAL = {  # of a definition without metrics, by output type
    "multiple_choice": ("acc", "acc_norm"),
    "loglikelihood": ("perplexity", "acc"),
    "generate_until": ("exact_match",),
}
_SHOWN = 4  # names in a sentence


@dataclass(frozen=True)
class Definition:
    """A task or group, resolved."""

    name: str
    kind: str  # ``task``, ``group`` or ``tag``
    entries: Mapping[str, Entry]  # all that it consists of, itself too, by name
    leaves: Mapping[str, Mapping[str, Any]]  # the YAML of each task in it, overrides applied
    missing: tuple[str, ...] = ()  # names of subtasks that no file defines

    @property
    def output_types(self) -> tuple[str, ...]:
        """Of its tasks, each once."""
        return _each(leaf.get("output_type", "generate_until") for leaf in self.leaves.values())

    @property
    def datasets(self) -> tuple[str, ...]:
        """Where the documents are from, each once: a Hub id, a file's format, ``python``."""
        return _each(leaf.get("dataset_path") or "python" for leaf in self.leaves.values())

    @property
    def num_fewshot(self) -> tuple[int, ...]:
        """Worked examples as its YAML would have them, each number once."""
        return tuple(sorted({int(leaf.get("num_fewshot") or 0) for leaf in self.leaves.values()}))

    @property
    def one_token(self) -> bool:
        """Whether all choices are single letters or digits."""
        return all(
            isinstance(choices := leaf.get("doc_to_choice"), list)
            and all(len(str(one)) == 1 for one in choices)
            for leaf in self.leaves.values()
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Figures that are means over documents, ``metric,filter``; of a group, over its tasks."""
        return tuple(name for name, mean in self._figures() if mean)

    @property
    def other_metrics(self) -> tuple[str, ...]:
        """Figures of another kind, BLEU say: no difference of two runs follows from them."""
        return tuple(name for name, mean in self._figures() if not mean)

    def _figures(self) -> list[tuple[str, bool]]:
        of_leaves = [dict(_of_leaf(leaf)) for leaf in self.leaves.values()]
        if self.kind == "task":
            return [*of_leaves[0].items()] if of_leaves else []
        return [
            (name, own and all(leaf.get(name, True) for leaf in of_leaves))
            for name, own in _of_group(self.entries[self.name].config, of_leaves)
        ]

    @property
    def refused(self) -> str:
        """Why it cannot be run here, as the end of a sentence; empty where it can."""
        return next(chain(self._ill_formed(), self._unanswerable(), self._incomparable()), "")

    def _ill_formed(self) -> Iterator[str]:
        if self.kind == "tag":
            yield (
                f"is a tag, lm-eval's shorthand for {len(self.leaves)} tasks with no figure of its "
                f"own; name them: {_some(self.leaves)}"
            )
        if TASK_NAME.fullmatch(self.name) is None:
            yield "has a name that no folder of records can bear (letters, digits and . _ - fit)"
        if self.missing:
            yield (
                f"is a group whose subtasks {_some(self.missing)} are defined in no file of their "
                "own; name its other subtasks one by one"
            )
        if not self.leaves:
            yield "is a group without subtasks; name tasks"

    def _unanswerable(self) -> Iterator[str]:
        leaves = self.leaves.values()
        if any("class" in leaf for leaf in leaves):
            yield "is a Python class and no YAML, so its prompts and metrics cannot be held still"
        if any(leaf.get("doc_to_image") or leaf.get("doc_to_audio") for leaf in leaves):
            yield "shows images or sound, and the model reads text alone"
        if any(str(leaf.get("dataset_path")).startswith((".", "/", "~")) for leaf in leaves):
            yield (
                "has a folder as dataset_path, whose rows identify no run; use 'json' with "
                "data_files in dataset_kwargs"
            )
        if any(leaf.get("unsafe_code") for leaf in leaves):
            yield (
                "runs programs that the model writes, and only humaneval, mbpp and their variants "
                "are run confined here"
            )
        asked = {str(name) for leaf in leaves for name in leaf.get("generation_kwargs") or {}}
        if unknown := sorted(asked - {*KNOWN_ARGUMENTS}):
            yield (
                f"asks for generation arguments {', '.join(unknown)}, which would be ignored; "
                f"known are {', '.join(KNOWN_ARGUMENTS)}"
            )

    def _incomparable(self) -> Iterator[str]:
        types = self.output_types
        if "loglikelihood_rolling" in types:
            yield (
                "asks for the likelihood of whole texts (loglikelihood_rolling), whose perplexity "
                "is no mean over documents; choose a task that generates or ranks choices"
            )
        if unknown := [one for one in types if one not in _USUAL]:
            yield f"has output_type {unknown[0]}; known are {', '.join(_USUAL)}"
        if len({one == "generate_until" for one in types}) > 1:
            yield "is a group of tasks that write and tasks that rank; name its subtasks apart"
        if not self.metrics:
            found = ", ".join(self.other_metrics) or "none at all"
            yield (
                f"has no figure that is a mean over documents ({found}), so two runs of it cannot "
                "be compared document by document"
                + ("; name its subtasks one by one" if self.kind == "group" else "")
            )


def define(name: str, index: Index, *, fresh: bool = True) -> Definition:
    """Resolve a name as the harness does.

    Args:
        name: of the index.
        index: all names.
        fresh: read its files; False goes by the index, for a list of thousands.

    Raises:
        UsageError: a file cannot be read.
    """
    found = _Found(index, fresh=fresh)
    found.add(name, {})
    return Definition(name, index[name].kind, found.entries, found.leaves, (*found.missing,))


@dataclass
class _Found:
    index: Index
    fresh: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    leaves: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    open: set[str] = field(default_factory=set)  # groups that are being read: one may hold itself

    def add(self, name: str, overrides: Mapping[str, Any]) -> None:
        """What stands behind a name, with the keys that a group gives to all of its tasks."""
        if name in self.open:
            return
        if name not in self.entries:
            one = self.index[name]
            self.entries[name] = read_entry(one)[0] if self.fresh else one
        entry = self.entries[name]
        if entry.kind == "task":
            self.leaves[name] = {**entry.config, **overrides, "task": name}
            return
        self.open.add(name)
        self._add_members(entry.config, overrides)
        self.open.discard(name)

    def _add_members(self, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        own = {key: value for key, value in config.items() if key not in _OF_A_GROUP}
        members = config.get("task")
        for one in members if isinstance(members, list) else ():
            self._add_member(one, {**own, **overrides})

    def _add_member(self, one: Any, overrides: Mapping[str, Any]) -> None:  # noqa: ANN401 - of a YAML
        more = one if isinstance(one, Mapping) else {}
        name = one if isinstance(one, str) else more.get("group", more.get("task"))
        rest = {key: value for key, value in more.items() if key not in ("group", "task")}
        if isinstance(name, str) and name in self.index:
            self.add(name, {**overrides, **rest})
        elif "group" in more:
            self._add_members(more, overrides)
        else:
            self.missing.append(str(name))


def files_of(definition: Definition) -> dict[str, Path]:
    """All files that define it, by a name that holds wherever they lie.

    YAML, the Python that it names with what that imports from beside it, and the rows of a
    ``data_files`` on this machine.

    Raises:
        UsageError: one cannot be read, or rows are not there.
    """
    found: dict[str, Path] = {}
    for entry in definition.entries.values():
        if entry.path is None:
            continue
        for path in (*read_entry(entry)[1], *rows_of(entry)):
            found[_label(path, entry.path.parent)] = path
    return dict(sorted(found.items()))


def _label(path: Path, folder: Path) -> str:
    """A file's path from its YAML's folder; of what lies elsewhere the last two names."""
    if path.is_relative_to(folder.resolve()):
        return path.relative_to(folder.resolve()).as_posix()
    return "/".join(path.parts[-2:])


def rows_of(entry: Entry) -> list[Path]:
    """Files of rows that a definition names, on this machine."""
    given = None if entry.path is None else placed_rows(entry.config, entry.path.parent)
    return [Path(one) for one in _flat(given or ()) if "://" not in one]


def placed_rows(config: Mapping[str, Any], folder: Path) -> Any:  # noqa: ANN401 - as it is given
    """A definition's ``data_files``, each path from the folder that its YAML lies in.

    None where it has none, or where they are a Hub repository's.

    Raises:
        UsageError: a file is not there.
    """
    arguments = config.get("dataset_kwargs")
    given = arguments.get("data_files") if isinstance(arguments, Mapping) else None
    return _placed(given, folder) if given and config.get("dataset_path") in _FILES else None


def _placed(given: Any, folder: Path) -> Any:  # noqa: ANN401 - a path, several, or by split
    if isinstance(given, Mapping):
        return {key: _placed(value, folder) for key, value in given.items()}
    if isinstance(given, list):
        return [_placed(value, folder) for value in given]
    if "://" in str(given):
        return given
    path = (folder / str(given)).resolve()
    if not path.is_file():
        raise UsageError(
            f"data_files names {given}, and there is no {path}; a path is from the folder that its "
            "YAML lies in, and names one file"
        )
    return str(path)


def _flat(given: Any) -> Iterator[str]:  # noqa: ANN401 - as above
    if isinstance(given, str):
        yield given
    else:
        for one in given.values() if isinstance(given, Mapping) else given:
            yield from _flat(one)


def _of_leaf(config: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """A task's figures, and whether each is a mean over documents."""
    given = config.get("metric_list")
    usual = _USUAL.get(config.get("output_type", "generate_until"), ())
    for one in [{"metric": name} for name in usual] if given is None else given:
        metric = str(one.get("metric")).rpartition(".")[2]  # of a function its name
        mean = one["aggregation"] == "mean" if "aggregation" in one else metric in _MEANS
        for name in filters_of(config):
            yield f"{metric},{name}", mean


def _of_group(
    config: Mapping[str, Any], leaves: list[dict[str, bool]]
) -> Iterator[tuple[str, bool]]:
    """A group's figures over all of its tasks."""
    given = config.get("aggregate_metric_list") or ()
    for one in [given] if isinstance(given, Mapping) else given:
        metric, mean = one.get("metric"), one.get("aggregation", "mean") == "mean"
        filters = one.get("filter_list")
        known = _each(name for leaf in leaves for name in leaf)
        of_tasks = [name.split(",")[1] for name in known if name.split(",")[0] == metric]
        for name in [filters] if isinstance(filters, str) else filters or of_tasks:
            if f"{metric},{name}" in known:
                yield f"{metric},{name}", mean


def _each(values: Any) -> tuple[str, ...]:  # noqa: ANN401 - any texts
    return tuple(dict.fromkeys(map(str, values)))


def _some(names: Any) -> str:  # noqa: ANN401 - any texts
    every = [*names]
    return ", ".join(every[:_SHOWN]) + (
        f" and {len(every) - _SHOWN} more" if every[_SHOWN:] else ""
    )

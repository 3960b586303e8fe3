"""Definitions of tasks in lm-eval's YAML, its own and a user's, read without the harness. No torch.

Names, groups and tags mean what ``lm_eval.tasks`` makes of them; nothing of a definition is run.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml

from fdllm import strictjson
from fdllm.errors import FdllmError, UsageError
from fdllm.outside import OutsideError, read_bytes
from fdllm.record.atomic import read_cache, write_cache
from fdllm.record.identity import code_files, installed

_CACHE = "tasks.json"
_FORM = 1  # of what is remembered
_MOST = 16 << 20  # bytes of a definition: a few of the harness hold their examples
_FUNCTION = "!function "
# What tells a task's needs, and what a group consists of.
_FACTS = (
    "class", "output_type", "dataset_path", "dataset_name", "num_fewshot", "unsafe_code",
    "doc_to_image", "doc_to_audio", "doc_to_choice", "generation_kwargs", "metric_list",
    "filter_list", "task", "group", "aggregate_metric_list",
)  # fmt: skip
_LISTS, _PARTS = {"metric_list", "filter_list"}, {"metric", "aggregation", "name"}


@dataclass(frozen=True)
class Entry:
    """What a name stands for."""

    name: str
    kind: Literal["task", "group", "tag"]  # a tag is a shorthand for several tasks
    config: Mapping[str, Any]  # its YAML, what it includes merged in; of a tag its ``task`` alone
    path: Path | None = None  # its YAML; None for a tag


Index = Mapping[str, Entry]


class _Loader(yaml.CSafeLoader):  # type: ignore[misc] # PyYAML is untyped
    """Reads ``!function utils.name`` as text, and imports nothing."""


_Loader.add_constructor("!function", lambda _, node: f"{_FUNCTION}{node.value}")


def harness_tasks() -> Path:
    """The folder of the harness's own definitions.

    Raises:
        FdllmError: the harness is not installed.
    """
    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise FdllmError(
            "tasks are defined by lm-eval, which is not installed; install fdllm with its "
            "dependencies (pip install fdllm)"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


@cache
def harness_index() -> Index:
    """What the installed harness defines. Seconds the first time, then remembered.

    Of a definition only what tells its needs; :func:`read_entry` has all of it.
    """
    root = harness_tasks()
    key = f"{_FORM} {root} {root.stat().st_mtime_ns} {installed('lm-eval', 'absent')}"
    known = read_cache(_CACHE)
    if known.get("key") == key:
        with suppress(TypeError, ValueError, AttributeError):  # a damaged cache is made anew
            return {
                name: Entry(name, kind, config, None if path is None else root / path)
                for name, (kind, path, config) in json.loads(known["entries"]).items()
            }
    found = {name: _slim(entry) for name, entry in _entries(root, strict=False).items()}
    kept = {
        name: (one.kind, one.path and one.path.relative_to(root).as_posix(), one.config)
        for name, one in found.items()
    }
    with suppress(Exception):  # a cache that cannot be written costs time, nothing else
        write_cache(_CACHE, {"key": key, "entries": strictjson.dumps(kept)})
    return found


def _slim(entry: Entry) -> Entry:
    config = {key: value for key, value in entry.config.items() if key in _FACTS}
    if not isinstance(config.get("doc_to_choice"), list):
        config.pop("doc_to_choice", None)
    for key in _LISTS & {*config}:
        config[key] = [
            {name: one[name] for name in _PARTS & {*one}} if isinstance(one, dict) else one
            for one in config[key] or ()
        ]
    return Entry(entry.name, entry.kind, config, entry.path)


def filters_of(config: Mapping[str, Any]) -> list[str]:
    """Names of a task's filters; what has none is filtered by ``none``."""
    return [str(one["name"]) for one in config.get("filter_list") or ()] or ["none"]


@cache
def own_index(folder: Path) -> Index:
    """What a user's folder defines, at any depth.

    Raises:
        UsageError: there is no such folder, or no definition in it, or one cannot be read.
    """
    if not folder.is_dir():
        raise UsageError(
            f"--include-path names {folder}, which is no folder; name one that holds the YAML of "
            "your tasks"
        )
    found = _entries(folder, strict=True)
    if not found:
        raise UsageError(
            f"{folder} defines no task; a definition is a file NAME.yaml with 'task: NAME' in it "
            "(docs/extending.md, a task of your own)"
        )
    return found


def _entries(root: Path, *, strict: bool) -> dict[str, Entry]:
    """All definitions below a folder; where two have one name, the first, as the harness has it.

    Raises:
        UsageError: a file cannot be read, or two have one name, where that is ``strict``.
    """
    found: dict[str, Entry] = {}
    tags: dict[str, set[str]] = {}
    parsed: dict[Path, dict[str, Any]] = {}
    for path in code_files(root, "*.yaml"):
        try:
            config = _merged(path, parsed)
        except UsageError:
            if strict:
                raise
            continue
        entry = _entry(path, config)
        if entry is None:
            continue
        if entry.name in found:
            if strict:
                raise UsageError(
                    f"{path} and {found[entry.name].path} both define '{entry.name}'; give one of "
                    "them another name"
                )
            continue
        found[entry.name] = entry
        labels = config.get("tag") if entry.kind == "task" else None
        for label in [labels] if isinstance(labels, str) else labels or ():
            tags.setdefault(str(label), set()).add(entry.name)
    for label, names in tags.items():
        found.setdefault(label, Entry(label, "tag", {"task": sorted(names)}))
    return found


def _entry(path: Path, config: dict[str, Any]) -> Entry | None:
    """A definition; None for what others include."""
    kind: Literal["task", "group"] = (
        "task" if "class" in config or "group" not in config else "group"
    )
    name = config.get(kind)
    return Entry(name, kind, config, path) if isinstance(name, str) else None


def read_entry(entry: Entry) -> tuple[Entry, list[Path]]:
    """A definition as its files have it now, and those files: YAML, and Python that it names.

    Raises:
        UsageError: one cannot be read.
    """
    if entry.path is None:
        return entry, []
    parsed: dict[Path, dict[str, Any]] = {}
    config = _merged(entry.path, parsed)
    named = {one for path, own in parsed.items() for one in _named(path, own)}
    return Entry(entry.name, entry.kind, config, entry.path), [*parsed, *_with_imports(named)]


def _merged(
    path: Path, parsed: dict[Path, dict[str, Any]], ahead: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """A file's keys over those of what it includes; every file is read once."""
    if path in ahead:
        raise UsageError(f"{path} includes itself; take that 'include' out")
    if path not in parsed:
        parsed[path] = _parse(path)
    own = dict(parsed[path])
    included = own.pop("include", None) or ()
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _merged((path.parent / str(name)).resolve(), parsed, (*ahead, path))
    return merged | own


def _parse(path: Path) -> dict[str, Any]:
    try:
        loader = _Loader(read_bytes(path, most=_MOST))
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except OutsideError as error:
        raise UsageError(str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read as a task's YAML: {said}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no keys; a task's YAML begins with 'task: NAME'")
    return found


def _named(path: Path, value: Any) -> Iterator[Path]:  # noqa: ANN401 - any YAML
    """The Python files beside a YAML that it names a function of."""
    if isinstance(value, str) and value.startswith(_FUNCTION):
        module = value.removeprefix(_FUNCTION).rpartition(".")[0]
        file = path.parent / f"{module.replace('.', '/')}.py"
        if file.is_file():
            yield file.resolve()
        elif not module.startswith("lm_eval."):
            raise UsageError(
                f"{path} names '{value}', and there is no {file}; a task's code lies beside its "
                "YAML, so that it is part of what identifies a run"
            )
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _named(path, one)
    elif isinstance(value, list):
        for one in value:
            yield from _named(path, one)


def _with_imports(files: Iterable[Path]) -> list[Path]:
    """Python files and those beside them, or of the harness's tasks, that they import."""
    todo, found = sorted(files), dict[Path, None]()
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found[path] = None
        with suppress(SyntaxError):  # the harness will say so
            for node in ast.walk(ast.parse(path.read_bytes())):
                todo += [one for one in _imported(path.parent, node) if one.is_file()]
    return [*found]


def _imported(folder: Path, node: ast.AST) -> list[Path]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        modules = [start, *(f"{start}.{alias.name}".lstrip(".") for alias in node.names)]
        folder = folder.joinpath(*[".."] * (node.level - 1)) if node.level else folder
    else:
        return []
    roots = [(folder, module) for module in modules if module]
    prefix = "lm_eval.tasks."
    roots += [(harness_tasks(), m.removeprefix(prefix)) for m in modules if m.startswith(prefix)]
    return [
        (root / f"{module.replace('.', '/')}{end}").resolve()
        for root, module in roots
        for end in (".py", "/__init__.py")
    ]

"""The harness's task manager, told of one task: scanning all its definitions takes seconds."""

from __future__ import annotations

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from fdllm.errors import FdllmError
from fdllm.evaluate.task_definition import Definition
from fdllm.evaluate.tasks import definition_paths


def manager_of(name: str, definition: Definition | None) -> TaskManager:
    """What the harness loads a task with: it knows what defines that task, and nothing else.

    Raises:
        FdllmError: the installed harness does not define it.
    """
    return _known(name) if definition is None else _resolved(definition)


def _known(name: str) -> TaskManager:
    """Of a task that is known by name: what its folders hold."""
    folders = {path if path.is_dir() else path.parent for path in definition_paths(name)}
    manager = TaskManager(include_path=sorted(map(str, folders)), include_defaults=False)
    if name not in manager.all_tasks:
        raise FdllmError(
            f"task '{name}' is not defined in {', '.join(sorted(map(str, folders)))}; the "
            "installation is incomplete or of another version"
        )
    return manager


def _resolved(definition: Definition) -> TaskManager:
    manager = TaskManager(include_defaults=False)
    for name, one in definition.entries.items():
        tags = {str(task) for task in one.config["task"]} if one.kind == "tag" else set[str]()
        manager.task_index[name] = Entry(name, Kind[one.kind.upper()], one.path, tags=tags)
    return manager

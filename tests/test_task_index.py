"""What the harness's and a user's YAML define, read without the harness."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex

from fdllm.evaluate import task_index
from fdllm.evaluate.task_definition import define
from fdllm.evaluate.task_index import Index, harness_tasks, own_index

FOLDERS = ("arc", "mmlu", "hellaswag", "bbh/cot_fewshot", "winogrande", "lambada", "ifeval")


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_are_those_that_the_harness_finds(folder: str) -> None:
    root = harness_tasks() / folder
    theirs = TaskIndex.build([root])
    ours = own_index(root)
    assert {name: entry.kind for name, entry in ours.items()} == {
        name: entry.kind.name.lower() for name, entry in theirs.items()
    }
    for name, entry in theirs.items():
        if entry.kind.name == "TAG":
            assert {*ours[name].config["task"]} == entry.tags
        else:
            assert ours[name].path == entry.yaml_path


def harness_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed harness of two tasks, and a cache of nobody's."""
    tasks = root / "lm_eval/tasks"
    tasks.mkdir(parents=True)
    (tasks / "base_yaml").write_text("output_type: multiple_choice\ndataset_path: some/rows\n")
    (tasks / "one.yaml").write_text("include: base_yaml\ntask: one\ntag: both\n")
    (tasks / "two.yaml").write_text("include: one.yaml\ntask: two\nnum_fewshot: 3\n")
    (tasks / "broken.yaml").write_text("task: [\n")
    spec = SimpleNamespace(submodule_search_locations=[str(root / "lm_eval")])
    monkeypatch.setattr(task_index, "find_spec", lambda _: spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    return tasks


def index() -> Index:
    """As a new process would have it."""
    found: Index = task_index.harness_index.__wrapped__()
    return found


def test_the_harness_s_definitions_are_read_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = harness_of(tmp_path, monkeypatch)
    first = index()
    assert {name: one.kind for name, one in first.items()} == {
        "one": "task",
        "two": "task",
        "both": "tag",
    }

    def read_again(*_: Any, **__: Any) -> None:
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(task_index, "_entries", read_again)
        again = index()
    for found in (first, again):
        two = define("two", found, fresh=False)
        assert (two.datasets, two.num_fewshot) == (("some/rows",), (3,))
    (tasks / "two.yaml").write_text("include: one.yaml\ntask: two\nnum_fewshot: 4\n")
    assert define("two", again).num_fewshot == (4,)  # a run reads the files themselves


@pytest.mark.parametrize("damage", ["{", "[]", '{"key": 1}', None])
def test_a_damaged_memory_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str | None
) -> None:
    harness_of(tmp_path, monkeypatch)
    first, kept = index(), tmp_path / "cache/fdllm/tasks.json"
    key = json.loads(kept.read_text())["key"]
    kept.write_text(json.dumps({"key": key, "entries": "[1, 2"}) if damage is None else damage)
    assert index() == first


def test_where_nothing_can_be_remembered_it_is_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness_of(tmp_path, monkeypatch)
    (tmp_path / "cache").write_text("a file is in the way")
    assert index() == index()


def test_a_group_that_holds_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("group: a\ntask: [b]\n")
    (tmp_path / "b.yaml").write_text("group: b\ntask: [a, c]\nnum_fewshot: 2\n")
    (tmp_path / "c.yaml").write_text("task: c\nnum_fewshot: 1\n")
    found = define("a", own_index(tmp_path))
    assert found.num_fewshot == (2,)  # a group's keys are over its tasks'
    assert [*found.leaves] == ["c"]

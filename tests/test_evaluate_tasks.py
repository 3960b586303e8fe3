"""The table of tasks: names, headline metrics, prompts and definition hashes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fdllm import tiny
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate import task_index
from fdllm.evaluate.tasks import (
    PROMPT_RULES,
    STEP_BY_STEP,
    TASKS,
    PromptRule,
    definition_hash,
    definition_paths,
    task_info,
)
from helpers import ROOT


def test_an_unknown_task_names_the_nearest_and_lists_all() -> None:
    with pytest.raises(UsageError, match="did you mean 'gsm8k'") as raised:
        task_info("gsm8")
    assert all(name in str(raised.value) for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_the_headline_metric_stands_in_the_harness_definition(name: str) -> None:
    metric, filter_name = TASKS[name].headline.split(",")
    text = "".join(
        path.read_text(encoding="utf-8")
        for root in definition_paths(name)
        for path in ([root] if root.is_file() else root.iterdir())
        if path.is_file() and path.suffix != ".jsonl"
    )
    named = "pass_at_k" if metric == "pass@1" else metric
    assert re.search(rf"metric:.*\b{named}\b", text)
    assert filter_name == "none" or re.search(rf"name: \W?{filter_name}\W", text)


@pytest.mark.parametrize(
    ("task", "harness", "sent"),
    [
        ("gsm8k", "Question: 1+1?\nAnswer:", "Question: 1+1?\n" + STEP_BY_STEP),
        ("minerva_math", "Problem:\nx\n\nSolution:", "Problem:\nx\n\n" + STEP_BY_STEP),
        # Only the ending is the prompt's; the same word inside a question is the document's.
        ("gsm8k", "Question: Answer: what?\nAnswer:", f"Question: Answer: what?\n{STEP_BY_STEP}"),
    ],
)
def test_the_published_instruction_takes_the_place_of_the_last_word(
    task: str, harness: str, sent: str
) -> None:
    assert PROMPT_RULES[task].apply(harness) == sent


def test_the_braces_of_the_published_instruction_are_single() -> None:
    assert STEP_BY_STEP.endswith(r"\boxed{}.")
    assert "{{" not in STEP_BY_STEP


def test_a_rule_refuses_a_prompt_it_was_not_written_for() -> None:
    with pytest.raises(FdllmError, match="pinned"):
        PROMPT_RULES["gsm8k"].apply("Question: 1+1?\nA:")


def _hash_in(folder: Path, task: str = "gsm8k") -> str:
    """The task's hash in a process that finds a harness of its own in ``folder``."""
    script = (
        "import sys; from fdllm.evaluate.tasks import definition_hash;"
        f"print(definition_hash('{task}'));"
        "assert not {'lm_eval', 'torch', 'datasets'} & set(sys.modules)"
    )
    path = os.pathsep.join([str(folder), str(ROOT / "src")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_hash_follows_the_definition_and_imports_no_harness(tmp_path: Path) -> None:
    (source,) = definition_paths("gsm8k")
    package = tmp_path / "lm_eval"
    folder = package / "tasks" / "gsm8k"
    shutil.copytree(source, folder)
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    as_installed = _hash_in(tmp_path)
    assert as_installed == definition_hash("gsm8k")

    (folder / "notes.md").write_text("prose")
    assert _hash_in(tmp_path) == as_installed

    (folder / "utils.py").write_text("x = 1")
    with_utils = _hash_in(tmp_path)
    yaml = folder / "gsm8k.yaml"
    yaml.write_text(yaml.read_text().replace("num_fewshot: 5", "num_fewshot: 4"))
    assert len({as_installed, with_utils, _hash_in(tmp_path)}) == 3


def test_the_hash_follows_our_prompt_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    before = definition_hash("gsm8k")
    doubled = PromptRule("Answer:", STEP_BY_STEP.replace("{}", "{{}}"))
    monkeypatch.setitem(PROMPT_RULES, "gsm8k", doubled)
    assert definition_hash("gsm8k") != before


def test_tasks_have_hashes_of_their_own() -> None:
    assert len({definition_hash(name) for name in TASKS}) == len(TASKS)


def test_the_rows_of_an_embedded_task_are_part_of_its_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tasks"
    shutil.copytree(tiny.TASKS, folder)
    before = {name: definition_hash(name) for name in tiny.TASK_NAMES}
    monkeypatch.setattr(tiny, "TASKS", folder)
    assert {name: definition_hash(name) for name in tiny.TASK_NAMES} == before
    with (folder / "choice.jsonl").open("a") as rows:
        rows.write("{}\n")
    assert definition_hash("tiny_choice") != before["tiny_choice"]
    assert definition_hash("tiny_arithmetic") == before["tiny_arithmetic"]


def test_a_harness_without_the_task_is_named(tmp_path: Path) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        _hash_in(tmp_path)
    assert "the installed lm-eval has no" in raised.value.stderr


def test_without_the_harness_its_tasks_have_no_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (None, SimpleNamespace(submodule_search_locations=[])):
        monkeypatch.setattr(task_index, "find_spec", lambda _, found=spec: found)
        with pytest.raises(FdllmError, match="defined by lm-eval, which is not"):
            definition_paths("gsm8k")
    assert definition_paths("tiny_choice")

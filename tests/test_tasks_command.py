"""``fdllm tasks``: names by part or pattern, what each needs, and why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from command import Command
from fdllm.evaluate.tasks import TASKS
from own_tasks import make_tasks


def listed(fdllm: Command, *arguments: str) -> dict[str, dict[str, Any]]:
    assert fdllm.raw("tasks", "--json", *arguments) == 0, fdllm.err
    return {one["name"]: one for one in json.loads(fdllm.out)["tasks"]}


def test_without_a_pattern_it_lists_what_is_known_and_one_s_own(
    fdllm: Command, tmp_path: Path
) -> None:
    own = str(make_tasks(tmp_path / "own"))
    found = listed(fdllm, "--include-path", own)
    assert {*found} == {*TASKS, "doubles", "more_doubles", "which_double", "all_doubles"}
    assert found["mmlu"]["tasks"] == 57
    assert found["gpqa_main_n_shot"]["gated"]
    assert found["humaneval"]["runs_code"]
    assert found["all_doubles"]["datasets"] == ["json"]
    assert found["which_double"]["headline"] is None
    assert not any(one["refused"] for one in found.values())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("arc_challenge", "acc_norm,none"),
        ("mmlu_generative", "exact_match,get_response"),
        ("arc_ca", "--headline, one of acc,none acc_norm,none"),
        ("wikitext", "not here: it asks for the likelihood of whole texts"),
    ],
)
def test_a_line_says_what_a_task_needs(fdllm: Command, name: str, said: str) -> None:
    first = next(iter(listed(fdllm, name).values()))
    assert first["name"] == name  # the whole name comes ahead of longer ones
    assert fdllm.raw("tasks", f"{name}*") == 0
    assert said in " ".join(fdllm.out.split())


def test_a_pattern_is_a_part_or_a_whole_name(fdllm: Command) -> None:
    assert {*listed(fdllm, "mmlu_gen*")} == {"mmlu_generative"}
    assert {"arc_challenge", "arc_challenge_chat"} <= {*listed(fdllm, "rc_chall")}
    assert fdllm.raw("tasks", "no_such_task") == 2
    assert "no task is named like 'no_such_task'" in fdllm.err


def test_it_answers_without_torch_or_the_harness() -> None:
    code = (
        "import sys; from fdllm.cli import main; main(['tasks', 'hellaswag']);"
        "sys.exit(str(sorted({'torch', 'lm_eval', 'datasets'} & {*sys.modules}) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
    assert "Rowan/hellaswag" in done.stdout

"""humaneval from the harness's own definition, on its real rows, scored in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from command import Command
from fdllm.errors import FdllmError
from fdllm.evaluate.humaneval import Programs
from fdllm.runs import Run
from fdllm.sandbox.confinement import Sandbox
from hub.rows import read_rows
from hub.run import run_cases
from hub.server import GRANTED, Hub
from stubs import make_planner, make_root, make_run

TASK = ("--task", "humaneval")
NUM_ROWS = 164


@pytest.mark.slow
def test_all_canonical_solutions_pass(hub: Hub, shared: Path, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"task": "humaneval", "limit": None, "code_execution": "confined"}
    ]
    done = run_cases(cases, tmp_path, endpoint=hub.url, token=GRANTED)
    (known,) = done.found
    assert known["value"] == 1.0
    assert known["headline"] == "pass@1,create_test"
    assert known["num_documents"] == NUM_ROWS
    assert known["results"]["programs"] == {
        "form": "instruct",
        "confined_by": "seccomp and landlock",
        "outcomes": {"passed": NUM_ROWS},
    }
    first, row = known["samples"][0], read_rows(shared, "humaneval_test.jsonl")[0]
    assert first["output"] == row["canonical_solution"]
    assert first["target"] == f"{row['test']}\ncheck({row['entry_point']})"
    assert first["programs"] == ["passed"]
    # Nothing but the rows was fetched: no metric's code, which would have been executed.
    assert all("openai_humaneval" in path for _, path, _ in hub.seen)
    assert done.stdout == done.stderr == ""
    # A second process, without a network.
    (offline,) = run_cases([cases[0] | {"limit": 5}], tmp_path, endpoint=None).found
    assert offline["value"] == 1.0
    assert offline["samples"] == known["samples"][:5]


@pytest.mark.slow
def test_hostile_answers_score_nothing(hub: Hub, tmp_path: Path) -> None:
    texts = [
        "    while True: pass\n",
        "    import os; os.fork()\n",
        "    return [0] * (1 << 33)\n",
        "    open('/tmp/escaped', 'w')\n",
        "    import socket; socket.socket()\n",
        "    import sys; sys.exit(0)\n",
        "    import os; os._exit(0)\n",
        "    print('passed')\n",
        "    return open(f'/proc/{__import__(\"os\").getppid()}/environ').read()\n",
        "    this is no Python\n",
    ]
    agreed = {"task": "humaneval", "code_execution": "confined"}
    cases: list[dict[str, Any]] = [
        agreed | {"by": "texts", "texts": texts},
        {"task": "humaneval", "by": "texts", "texts": texts},
        agreed | {"by": "model", "limit": 2, "repeat": True},
    ]
    scored, refused, computed = run_cases(cases, tmp_path, endpoint=hub.url, token=GRANTED).found
    assert scored["value"] == 0.0
    assert [sample["programs"] for sample in scored["samples"]] == [
        ["out of time SIGXCPU"],
        ["forbidden call SIGSYS"],
        ["failed MemoryError"],
        ["failed PermissionError"],
        ["forbidden call SIGSYS"],
        ["failed SystemExit"],
        ["exited exit code 0"],
        ["failed AssertionError"],
        ["failed PermissionError"],
        ["failed SyntaxError"],
    ]
    assert not Path("/tmp/escaped").exists()  # noqa: S108 - where a program tried to write
    assert "--allow-code-execution" in refused["error"]
    assert refused["exit_code"] == 2
    assert computed["same"]
    assert computed["num_documents"] == 2


# --- consent ------------------------------------------------------------------------------------


def test_a_run_without_consent_is_refused_before_a_model_is_loaded(fdllm: Command) -> None:
    assert fdllm("eval", *TASK, "--config", "k1_first") == 2
    assert "--allow-code-execution" in fdllm.err
    assert fdllm("sweep", *TASK) == 2
    assert fdllm.loads == 0
    assert fdllm("sweep", *TASK, "--dry-run") == 0


def test_with_consent_it_is_computed(fdllm: Command) -> None:
    fdllm("eval", *TASK, "--config", "k1_first", "--allow-code-execution")
    assert fdllm.loads == 1
    assert "--allow-code-execution" not in fdllm.err


def test_the_second_consent_adds_to_the_first(fdllm: Command) -> None:
    assert fdllm("sweep", *TASK, "--allow-readable-files") == 2
    assert "give both" in fdllm.err


def test_a_sweep_of_all_tasks_leaves_it_out_and_says_so(fdllm: Command) -> None:
    assert fdllm("sweep", "--dry-run", "--json") == 0
    assert "humaneval left out" in fdllm.err
    assert "humaneval" not in fdllm.out
    assert fdllm("sweep", "--dry-run", "--json", "--allow-code-execution") == 0
    assert "humaneval" in fdllm.out
    assert fdllm("status", "--json") == 0
    assert "humaneval" in fdllm.out


def test_consent_is_part_of_a_request_and_not_of_its_identity(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    run = make_run(root)
    agreed = run.model_copy(update={"code_execution": "confined"})
    planner = make_planner(root)
    assert planner.fingerprint(run) == planner.fingerprint(agreed)
    assert planner.layout.run(run) == planner.layout.run(agreed)
    assert Run.model_validate_json(agreed.model_dump_json()).code_execution == "confined"


# --- the definition -----------------------------------------------------------------------------


def test_a_function_we_have_no_form_of_is_refused() -> None:
    programs = Programs(Sandbox("confined"))
    definition = {"metric_list": [{"metric": "/x/humaneval/utils.pass_at_k"}]}
    found = programs.take_over(definition, chat=False)
    assert callable(found["metric_list"][0]["metric"])
    with pytest.raises(FdllmError, match=r"utils\.build_anything.*no safe form"):
        programs.take_over({"filter_fn": "/x/humaneval/utils.build_anything"}, chat=False)

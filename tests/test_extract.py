"""The program in a reply: a right answer scores in whatever form a chat model gives it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdllm.evaluate.humaneval import answered, begun, completed, program_of
from fdllm.sandbox.confinement import Sandbox
from hub.rows import read_rows
from hub.run import run_cases
from hub.server import Hub

HEAD = 'import math\n\n\ndef area(r):\n    """The area of a circle."""\n'
BODY = "    return math.pi * r * r\n"
DOC = {"prompt": HEAD, "entry_point": "area"}
PROSE = {"prompt": "Add one.", "test_list": ["assert set(add(1)) == 2", "assert add(2) == 3"]}
ADD = "def add(x):\n  return x + 1"


def fence(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}```"


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        (BODY, HEAD + BODY),
        (HEAD + BODY, HEAD + HEAD + BODY),
        (fence(HEAD + BODY), HEAD + HEAD + BODY),
        (fence(HEAD + BODY, ""), HEAD + HEAD + BODY),
        (f"Sure.\n\n{fence(HEAD + BODY)}\nIt multiplies.", HEAD + HEAD + BODY),
        # The function alone: the prompt's imports stand ahead of it.
        (fence("def area(r):\n" + BODY), HEAD + "def area(r):\n" + BODY),
        (fence("area = lambda r: 3 * r"), HEAD + "area = lambda r: 3 * r"),
        # The last definition counts, and an example behind it does not.
        (
            f"{fence('def area(r): return 0')}\nNo:\n{fence('def area(r): return 1')}",
            HEAD + "def area(r): return 1",
        ),
        (f"{fence(HEAD + BODY)}\nTry it:\n{fence('print(area(2))')}", HEAD + HEAD + BODY),
        # A body in a fence, with or without its indentation, ahead of an example or of prose.
        (fence(BODY), HEAD + BODY),
        (fence("return 3 * r\n"), HEAD + "    return 3 * r\n"),
        (f"{fence('area(2)')}\n{fence(BODY)}", HEAD + BODY),
        (f"{BODY}\n{fence('print(area(2))')}", f"{HEAD}{BODY}\n"),
        # Cut off, or inside a list.
        ("```python\ndef area(r):\n    return", HEAD + "def area(r):\n    return"),
        ("1. So:\n   ```python\n   def area(r):\n       return 1\n   ```", None),
        ("I cannot do that.", HEAD + "I cannot do that."),
        ("", HEAD),
        ("``````", HEAD + "``````"),
    ],
)
def test_the_program_of_a_reply(reply: str, program: str | None) -> None:
    expected = HEAD + "def area(r):\n    return 1\n" if program is None else program
    assert program_of(reply, DOC) == expected


@pytest.mark.parametrize(
    ("reply", "program"),
    [
        (ADD, ADD),
        (f"Here:\n{fence(ADD)}\nDone.", ADD),
        (f"{fence('import os')}\n{fence(ADD)}\n{fence('add(1)')}", ADD),
        (fence("x = 1"), "x = 1"),
        ("No.", "No."),
    ],
)
def test_a_prompt_in_prose_is_no_part_of_the_program(reply: str, program: str) -> None:
    assert program_of(reply, PROSE) == program


def test_without_a_template_a_text_continues_its_prompt() -> None:
    assert completed([[BODY, fence(BODY)]], [DOC]) == [[HEAD + BODY, HEAD + fence(BODY)]]
    assert completed([[ADD]], [PROSE]) == [[ADD]]


def test_a_prompt_that_ends_in_an_open_fence() -> None:
    """What the harness's ``*_instruct`` take: all up to the closing fence."""
    assert begun([[f"{BODY}```\nIt multiplies."]], [DOC]) == [[HEAD + BODY]]
    assert begun([[f"\n{ADD}\n```"]], [PROSE]) == [[f"\n{ADD}\n"]]
    assert begun([[ADD]], [PROSE]) == [[ADD]]  # cut off
    # And what they do not: a model that opens a fence of its own.
    assert begun([[fence(HEAD + BODY)]], [DOC]) == [[HEAD + HEAD + BODY]]


# --- real rows ----------------------------------------------------------------------------------


def forms(shared: Path) -> list[dict[str, Any]]:
    cases = json.loads((shared / "cases" / "cases.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = cases["answers_humaneval"]
    return found


def replies(shared: Path, form: str, rows: int) -> list[tuple[str, dict[str, Any]]]:
    docs = read_rows(shared, "humaneval_test.jsonl")[:rows]
    return [
        (
            form.replace("{prompt}", doc["prompt"]).replace(
                "{canonical_solution}", doc["canonical_solution"]
            ),
            doc,
        )
        for doc in docs
    ]


@pytest.mark.parametrize("rows", [3, pytest.param(164, marks=pytest.mark.slow)])
def test_every_right_form_of_a_real_row_passes(shared: Path, rows: int) -> None:
    sandbox = Sandbox("confined")
    assert len(forms(shared)) == 4
    for case in forms(shared):
        for reply, doc in replies(shared, case["form"], rows):
            [[program]] = answered([[reply]], [doc])
            verdict = sandbox.run(program, f"{doc['test']}\ncheck({doc['entry_point']})")
            assert verdict.passed == bool(case["right"]), (doc["task_id"], case["form"], verdict)


# --- the harness's definitions ------------------------------------------------------------------


@pytest.mark.slow
def test_as_a_chat_every_right_form_scores(hub: Hub, shared: Path, tmp_path: Path) -> None:
    """Through the harness: prompts wrapped, nothing cut off, graded in the sandbox."""
    cases = [
        {
            "task": task,
            "by": "texts",
            "texts": [reply for reply, _ in replies(shared, case["form"], 2)],
            "limit": 2,
            "code_execution": "confined",
        }
        for case in forms(shared)
        for task in ("humaneval", "humaneval_plus")
    ]
    found = run_cases(cases, tmp_path, endpoint=hub.url).found
    rights = [case["right"] for case in forms(shared) for _ in range(2)]
    assert [one["value"] for one in found] == rights
    assert {one["results"]["programs"]["form"] for one in found} == {"instruct"}


@pytest.mark.slow
def test_the_tasks_of_programs_run_as_the_harness_names_them(hub: Hub, tmp_path: Path) -> None:
    agreed = {"code_execution": "confined", "limit": 3}
    names = ("humaneval_instruct", "humaneval_plus", "mbpp", "mbpp_plus", "mbpp_instruct")
    cases = [
        agreed | {"task": task, "chat_template": chat}
        for task in (*names, "mbpp_plus_instruct")
        for chat in (True, False)
    ]
    shots = agreed | {"task": "mbpp", "num_fewshot": 3}
    done = run_cases([*cases, shots, shots | {"by": "model"}], tmp_path, endpoint=hub.url)
    for case, found in zip([*cases, shots], done.found[:-1], strict=True):
        assert found["value"] == 1.0, case
        begun_ = str(case["task"]).endswith("instruct")
        form = "instruct" if case.get("chat_template", True) or begun_ else "completion"
        assert found["results"]["programs"]["form"] == form
        assert [sample["programs"] for sample in found["samples"]] == [["passed"]] * 3
    prompt = done.found[-1]["samples"][0]["prompt"]
    assert prompt.count("[BEGIN]") == 4
    assert "def similar_elements(test_tup1, test_tup2):" in prompt
    assert all("evaluate-metric" not in path for _, path, _ in hub.seen)  # no metric was fetched


@pytest.mark.slow
def test_stop_strings_cut_a_completion_and_no_reply(hub: Hub, tmp_path: Path) -> None:
    cases = [
        {"task": "humaneval", "limit": 1, "chat_template": chat, "code_execution": "confined"}
        for chat in (True, False)
    ]
    chat, plain = run_cases(cases, tmp_path, endpoint=hub.url).found
    until = [
        one["results"]["configs"]["humaneval"]["generation_kwargs"]["until"]
        for one in (chat, plain)
    ]
    assert until == [[], ["\nclass", "\ndef", "\n#", "\nif", "\nprint"]]

"""``fdllm grade``: anyone's answers, by the filters and metrics of a run; no model anywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from checkups import fdllm
from fdllm import tiny
from fdllm.cli import main
from hub.rows import read_rows
from hub.server import Hub

Grade = Callable[..., int]
TASK = ("--task", "tiny_arithmetic")


def lines(*answers: dict[str, Any]) -> str:
    return "".join(json.dumps(answer) + "\n" for answer in answers)


def right(doc_id: int) -> str:
    rows = (tiny.TASKS / "arithmetic.jsonl").read_text(encoding="utf-8").splitlines()
    return str(json.loads(rows[doc_id])["answer"])


@pytest.fixture
def grade(tmp_path: Path) -> Grade:
    """Grade a text as a file of answers."""

    def run(text: str | bytes, *flags: str) -> int:
        path = tmp_path / "answers.jsonl"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return main(["grade", "--answers", str(path), *(flags or TASK)])

    return run


def test_documents_without_an_answer_are_left_out(
    grade: Grade, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [{"doc_id": 7, "text": right(7)}, {"doc_id": 2, "text": "no", "by": "someone"}]
    answers.append({"doc_id": 3, "text": right(3), "task": "tiny_arithmetic"})
    assert grade(lines(*answers) + "\n", *TASK, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "metric": "exact_match,strict-match",
        "value": pytest.approx(2 / 3),
        "metrics": {"exact_match,strict-match": pytest.approx(2 / 3)},
        "num_samples": 3,
    }
    assert grade(lines(*answers), *TASK, "--limit", "4") == 0
    assert "0.5000 over 2 documents" in capsys.readouterr().out


def test_a_run_and_its_texts_have_one_grade(
    grade: Grade, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--model", "tiny", *TASK, "--limit", "12", "--config", "k3_first")
    assert main(["eval", *flags, "--results", str(tmp_path)]) == 0
    capsys.readouterr()
    summary = next(tmp_path.rglob("samples.jsonl")).with_name("summary.json")
    samples = summary.with_name("samples.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line) for line in samples]
    assert grade(lines(*({"doc_id": t["doc_id"], "text": t["output"]} for t in texts))) == 0
    headline = json.loads(summary.read_text(encoding="utf-8"))["headline"]
    assert f"{headline['value']:.4f} over 12 documents" in capsys.readouterr().out


GOOD = '{"doc_id": 0, "text": "x"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no answer"),
        (GOOD + "{\n", "line 2: not a JSON object"),
        (GOOD + "[1]\n", "line 2: not a JSON object"),
        ('{"doc_id": 0, "text": "x", "text": "y"}', "line 1: not a JSON object"),
        ("[" * 100_000, "line 1: not a JSON object"),
        (GOOD.encode() + b"\xff\n", "line 2: not UTF-8"),
        ('\n{"text": "x"}\n', "line 2: doc_id is None; documents of task 'tiny_arithmetic' are 0"),
        ('{"doc_id": 4000, "text": "x"}', "line 1: doc_id is 4000"),
        ('{"doc_id": -1, "text": "x"}', "line 1: doc_id is -1"),
        ('{"doc_id": true, "text": "x"}', "line 1: doc_id is True"),
        ('{"doc_id": "0", "text": "x"}', "line 1: doc_id is '0'"),
        (GOOD * 2, "line 2: document 0 of task 'tiny_arithmetic' has an answer already"),
        ('{"doc_id": 0}', "line 1: text is missing"),
        ('{"doc_id": 0, "text": 5}', "line 1: text is 5, not a string"),
        ('{"doc_id": 0, "text": null}', "line 1: text is None, not a string"),
        ('{"doc_id": 0, "text": "x", "task": "sums"}', "line 1: unknown task 'sums'"),
        ('{"doc_id": 0, "text": "x", "task": ["a"]}', "line 1: unknown task ['a']"),
    ],
)
def test_a_bad_line_is_named(
    grade: Grade, capsys: pytest.CaptureFixture[str], text: str | bytes, says: str
) -> None:
    assert grade(text) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--task", "tiny_choice"), "multiple choice"),
        (("--task", "mmlu"), "multiple choice"),
        (("--task", "humaneval"), "--allow-code-execution"),
        (("--task", "tiny_choice", "tiny_arithmetic"), "belong to one task"),
        (("--limit", "2"), "belong to one task"),
        (("--task", "gsm8"), "did you mean 'gsm8k'"),
    ],
)
def test_what_cannot_be_graded_is_refused(
    grade: Grade, capsys: pytest.CaptureFixture[str], flags: Sequence[str], says: str
) -> None:
    assert grade(GOOD, *flags) == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    wrong = {"none": "is absent", ".": "is a folder, not a file", "pipe": "is a pipe, not a file"}
    for name, says in wrong.items():
        assert main(["grade", *TASK, "--answers", str(tmp_path / name)]) == 2
        assert f"--answers {tmp_path / name} {says}; a line is" in capsys.readouterr().err


# --- real rows ----------------------------------------------------------------------------------


def graded(
    hub: Hub, folder: Path, task: str, answers: Sequence[dict[str, Any]], *flags: str
) -> Any:
    path = folder / f"{task}.jsonl"
    path.write_text(lines(*answers), encoding="utf-8")
    command = ("grade", "--task", task, "--answers", str(path), "--json", *flags)
    ended = fdllm(*command, home=folder, HF_ENDPOINT=hub.url)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    return json.loads(ended.out)


@pytest.mark.slow
def test_real_rows(hub: Hub, shared: Path, tmp_path: Path) -> None:
    rows = read_rows(shared, "gsm8k_test.jsonl")
    gold = [row["answer"].rpartition("#### ")[2] for row in rows[:4]]
    texts = [f"It is {gold[0]}.", "It is 0", f"It is {gold[2]}. Question: 0", f"#### {gold[3]}"]
    answers: list[dict[str, Any]] = [{"doc_id": i, "text": text} for i, text in enumerate(texts)]
    found = graded(hub, tmp_path, "gsm8k", answers)
    assert found["num_samples"] == 4
    assert found["metric"] == "exact_match,flexible-extract"
    assert found["value"] == found["metrics"]["exact_match,flexible-extract"] == 0.75
    assert found["metrics"]["exact_match,strict-match"] == 0.25

    # A group: leaves without an answer are left out, and the rest is weighed by documents.
    answers = [
        {"task": "minerva_math_algebra", "doc_id": 1, "text": "no"},
        {"task": "minerva_math_geometry", "doc_id": 0, "text": "no"},
        {"task": "minerva_math_geometry", "doc_id": 3, "text": right_math(shared, "Geometry", 3)},
    ]
    found = graded(hub, tmp_path, "minerva_math", answers)
    assert found["num_samples"] == 3
    assert found["value"] == pytest.approx(1 / 3)


def right_math(shared: Path, subject: str, number: int) -> str:
    rows = [row for row in read_rows(shared, "math_test.jsonl") if row["type"] == subject]
    return str(rows[number]["solution"])


@pytest.mark.slow
def test_programs(hub: Hub, shared: Path, tmp_path: Path) -> None:
    row = read_rows(shared, "humaneval_test.jsonl")[5]
    whole = row["prompt"] + row["canonical_solution"]
    answers = [
        {"doc_id": 5, "text": f"Sure.\n\n```python\n{whole}```\nIt loops once."},
        {"doc_id": 6, "text": "I cannot do that."},
    ]
    found = graded(hub, tmp_path, "humaneval", answers, "--allow-code-execution")
    assert (found["value"], found["num_samples"]) == (0.5, 2)

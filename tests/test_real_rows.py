"""The path of a right answer on real rows: Qwen's vocabulary, its chat template, each task.

Prompt text → tokens → sampler → ``until`` strings, end token, length → filters → metric. Every
answer is spoken by the sampler token by token (:mod:`hub.spoken`), and every one must score.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hub.rows import NUM_MMLU_DEV, read_rows
from hub.run import run_cases
from hub.sentences import train_sentences
from hub.server import Hub

pytestmark = pytest.mark.slow

END = 151645
SYSTEM = "You are a helpful assistant."
OPENING = "<|im_end|>\n<|im_start|>assistant\n"
NUM_WRONG = 150

Found = dict[str, dict[str, Any]]


def ifeval_answers(rows: list[dict[str, Any]]) -> list[str]:
    """Replies to the first rows that do as they are told, one kind of instruction each."""
    repeated = rows[3]["kwargs"][0]["prompt_to_repeat"]
    return [
        "*one* and *two* and *three* " + "and so he ruled " * 80,
        "Anon we sail to Edo and there shall we rest.",
        " ".join(f"[place {i}]" for i in range(12)),
        f"{repeated}\n<<farewell>>",
        "do the two young boys carry toy guns and horns with them?",
        "* We are late.\n* We are not.\n* Then let us go.",
        "PARAGRAPH 1\nTHE LAW IS THE LAW FOR ALL OF US.\nPARAGRAPH 2\nTHAT IS WHAT THEY SAY.",
        '"Matthias Algiers is an EXPERT engineer."',
        "dear friend, please go and vote this week. it matters to all of us.",
    ]


def cases(answers: list[str]) -> Found:
    gsm8k = {"task": "gsm8k", "limit": 5}
    math = {"task": "minerva_math", "limit": 1}
    ifeval = {"task": "ifeval", "by": "texts"}
    code = {"task": "humaneval", "limit": 20, "code_execution": "confined"}
    return {
        "gsm8k": gsm8k | {"limit": 60},
        "gsm8k-shots": gsm8k | {"num_fewshot": 5},
        "gsm8k-plain": gsm8k | {"chat_template": False},
        # The last number counts: a text that ran on would be graded by what it says there.
        "gsm8k-until": gsm8k | {"spoken": "\n\nQuestion: What is 1 + 1?\n#### 2"},
        "gsm8k-end": gsm8k | {"spoken": "<|im_end|>\n#### 2"},
        "math": math | {"limit": 6},
        "math-shots": math | {"num_fewshot": 4},
        "math-until": math | {"spoken": "\nProblem:\nNo.\n\nSolution: $\\boxed{0}$"},
        "mmlu": {"task": "mmlu", "limit": 2, "num_fewshot": 2},
        "ifeval": ifeval | {"texts": answers, "limit": len(answers)},
        "ifeval-wrong": ifeval | {"texts": ["No, never, NO."] * NUM_WRONG, "limit": NUM_WRONG},
        "humaneval": code,
        # Without a template a text continues the function, and ends where another begins.
        "humaneval-until": code | {"chat_template": False, "spoken": "\ndef spoilt(:\n"},
    }


@pytest.fixture(scope="module")
def found(hub: Hub, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What came of every case; one process, because its start takes as long as most of them."""
    home = tmp_path_factory.mktemp("rows")
    train_sentences(home)
    asked = cases(ifeval_answers(read_rows(shared, "ifeval.jsonl")))
    told = {"spoken": "", "tokenizer": str(shared / "qwen_tokenizer")}
    done = run_cases([told | case for case in asked.values()], home, endpoint=hub.url)
    return dict(zip(asked, done.found, strict=True))


def assert_right(found: dict[str, Any], num: int, finish: str = "stop") -> None:
    """Every answer scores, none is cut short, and each ends as it should."""
    assert found["value"] == 1.0
    assert found["num_documents"] == len(found["entries"]) == num
    for entry in found["entries"]:
        assert entry["finish"] == finish
        assert (entry["tokens"][-1] == END) == (finish == "stop")


def assert_chat(prompt: str, *, shots: int = 0, system: str = SYSTEM) -> None:
    assert prompt.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    assert prompt.endswith(OPENING)
    assert prompt.count("<|im_start|>user\n") == shots + 1


def test_gsm8k(found: Found, shared: Path) -> None:
    rows = read_rows(shared, "gsm8k_test.jsonl")
    assert_right(found["gsm8k"], 60)
    for row, sample in zip(rows, found["gsm8k"]["samples"], strict=False):
        assert_chat(sample["prompt"])
        assert row["question"] in sample["prompt"]
        assert sample["output"] == row["answer"]
    assert_right(found["gsm8k-shots"], 5)
    assert_right(found["gsm8k-plain"], 5)
    for row, shots, plain in zip(
        rows, found["gsm8k-shots"]["samples"], found["gsm8k-plain"]["samples"], strict=False
    ):
        assert_chat(shots["prompt"], shots=5)
        assert row["question"] in shots["prompt"].rpartition("<|im_start|>user\n")[2]
        assert plain["prompt"].startswith(f"Question: {row['question']}\n")


@pytest.mark.parametrize(("case", "finish"), [("gsm8k-until", "until"), ("gsm8k-end", "stop")])
def test_what_stands_behind_an_answer_is_cut(found: Found, case: str, finish: str) -> None:
    assert_right(found[case], 5, finish)
    for cut, whole in zip(found[case]["samples"], found["gsm8k"]["samples"], strict=False):
        assert cut["output"].rstrip() == whole["output"]


def test_minerva_math(found: Found, shared: Path) -> None:
    rows = {row["solution"]: row for row in read_rows(shared, "math_test.jsonl")}
    assert_right(found["math"], 7 * 6)
    for sample in found["math"]["samples"]:
        assert_chat(sample["prompt"])
        assert rows[sample["output"]]["problem"] in sample["prompt"]
    assert_right(found["math-shots"], 7)
    for sample in found["math-shots"]["samples"]:
        assert_chat(sample["prompt"], shots=4)
    assert_right(found["math-until"], 7, "until")


def test_mmlu(found: Found, shared: Path) -> None:
    subjects: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows(shared, "mmlu_test.jsonl"):
        subjects.setdefault(row["subject"], []).append(row)
    assert found["mmlu"]["value"] == 1.0
    assert found["mmlu"]["num_documents"] == 2 * len(subjects)
    about = "The following are multiple choice questions (with answers) about"
    for sample in found["mmlu"]["samples"]:
        subject = sample["task"].removeprefix("mmlu_")
        row = subjects[subject][NUM_MMLU_DEV + sample["doc_id"]]
        system = f"{about} {subject.replace('_', ' ')}.\n\n"
        assert_chat(sample["prompt"], shots=2, system=system)
        lines = [f"{letter}. {text}" for letter, text in zip("ABCD", row["choices"], strict=True)]
        asked = "\n".join([row["question"].strip(), *lines, "Answer:"])
        assert sample["prompt"].endswith(f"<|im_start|>user\n{asked}{OPENING}")
        assert sample["target"] == row["answer"]


def test_ifeval(found: Found, shared: Path) -> None:
    rows = read_rows(shared, "ifeval.jsonl")
    answers = ifeval_answers(rows)
    assert_right(found["ifeval"], len(answers))
    assert [sample["output"] for sample in found["ifeval"]["samples"]] == answers
    assert found["ifeval-wrong"]["value"] < 0.2
    assert found["ifeval-wrong"]["num_documents"] == NUM_WRONG
    for row, sample in zip(rows, found["ifeval-wrong"]["samples"], strict=False):
        assert_chat(sample["prompt"])
        assert row["prompt"].strip() in sample["prompt"]


def test_humaneval(found: Found, shared: Path) -> None:
    chat, plain = found["humaneval"], found["humaneval-until"]
    assert_right(chat, 20)
    assert_right(plain, 20, "until")
    rows = read_rows(shared, "humaneval_test.jsonl")
    for row, sample, bare in zip(rows, chat["samples"], plain["samples"], strict=False):
        assert_chat(sample["prompt"])
        assert row["prompt"].strip() in sample["prompt"]
        assert bare["prompt"] == row["prompt"]
        assert sample["output"] == row["canonical_solution"]

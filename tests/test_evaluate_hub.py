"""The harness's own task definitions on real rows, through the real dataset client.

Every run happens in a process of its own, against a loopback Hub, with a cold cache unless a test
says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hub.rows import read_rows
from hub.run import run_cases
from hub.server import GRANTED, STRANGER, Hub

pytestmark = pytest.mark.slow

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
GPQA = "gpqa_main_n_shot"


def test_gsm8k(hub: Hub, shared: Path, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"task": "gsm8k", "by": "oracle"},
        {"task": "gsm8k", "by": "oracle", "num_fewshot": 2},
        {"task": "gsm8k", "by": "model", "repeat": True, "chat_template": False},
    ]
    done = run_cases(cases, tmp_path, endpoint=hub.url)
    known, with_examples, computed = done.found
    assert known["value"] == with_examples["value"] == 1.0
    assert known["headline"] == "exact_match,flexible-extract"
    assert known["num_documents"] == computed["num_documents"] == 10

    question = read_rows(shared, "gsm8k_test.jsonl")[0]["question"]
    assert known["samples"][0]["prompt"] == (
        f"<|im_start|>user\nQuestion: {question}\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert computed["samples"][0]["prompt"] == f"Question: {question}\n{INSTRUCTION}"
    turns = with_examples["samples"][0]["prompt"]
    assert turns.count("<|im_start|>user\n") == turns.count(INSTRUCTION) == 3
    assert "{{" not in turns
    assert "Answer:" not in turns

    # Document by document, and joined with what it cost.
    assert [sample["doc_id"] for sample in computed["samples"]] == list(range(10))
    for sample in computed["samples"]:
        assert 1 <= sample["tokens"] <= 16
        assert sample["forwards"] == sum(c["forwards"] for c in sample["counts"].values()) > 0
        assert sample["counts"]["denoise"]["reused"] > 0
        assert sample["seconds"] > 0
        assert "Question:" not in sample["output"]

    # A second evaluation from the same store computes nothing and finds the same.
    assert computed["progress"] == [10, 0, 10]
    assert computed["again"] == [10, 10, 0]
    assert computed["puts"] == 10
    assert computed["same"]
    # The harness talks; we do not pass it on.
    assert done.stdout == done.stderr == ""


def test_minerva_math(hub: Hub, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"task": "minerva_math", "by": "oracle", "limit": 2},
        {"task": "minerva_math", "by": "model", "limit": 2},
        {"task": "minerva_math", "num_fewshot": 5},
    ]
    known, computed, too_many = run_cases(cases, tmp_path, endpoint=hub.url).found
    assert known["value"] == 1.0
    assert known["headline"] == "math_verify,none"
    # The limit holds for each of the seven subjects, and each keeps its own figure.
    assert known["num_documents"] == computed["num_documents"] == 14
    per_subject = known["results"]["results"]
    assert per_subject["minerva_math_geometry"]["math_verify,none"] == 1.0
    assert len({sample["subject"] for sample in known["samples"]}) == 7
    for sample in known["samples"]:
        assert sample["prompt"].endswith(f"\n\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n")
        assert "{{}}" not in sample["prompt"]
    assert "has 4 worked examples" in too_many["error"]
    assert too_many["exit_code"] == 2


def test_mmlu(hub: Hub, tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [
        {"task": "mmlu", "by": "model", "limit": 1, "chat_template": False},
    ]
    (computed,) = run_cases(cases, tmp_path, endpoint=hub.url).found
    results = computed["results"]["results"]
    subjects = [s["subject"] for s in computed["samples"]]
    assert len(set(subjects)) == 57
    own = [results[f"mmlu_{subject}"]["acc,none"] for subject in subjects]
    assert computed["value"] == pytest.approx(sum(own) / 57)
    for sample in computed["samples"]:
        assert len(sample["output"]) == 4
        assert sample["tokens"] == 8  # " A" is two byte tokens
        best = max(range(4), key=sample["output"].__getitem__)
        assert sample["metrics"]["acc,none"] == float(best == sample["target"])


@pytest.mark.parametrize("num_fewshot", [0, 5])
def test_gpqa_from_a_cold_cache(hub: Hub, tmp_path: Path, num_fewshot: int) -> None:
    other = 5 - num_fewshot
    cases: list[dict[str, Any]] = [
        {"task": GPQA, "num_fewshot": num_fewshot},
        {"task": GPQA, "num_fewshot": other},  # now the cache is warm
        {"task": GPQA, "by": "model", "limit": 3, "repeat": True},
        {"task": GPQA, "by": "model", "scoring": "first-token"},
        {"task": GPQA, "limit": 3, "scoring": "first-token", "allow_invalid": True},
    ]
    cold = run_cases(cases, tmp_path, endpoint=hub.url, token=GRANTED)
    first, second, computed, refused, allowed = cold.found
    assert first["value"] == second["value"] == allowed["value"] == 1.0
    assert computed["same"]
    # In this tokenizer of bytes every choice begins with "(".
    assert "task 'gpqa_main_n_shot', document 0: choices ['(A)', '(B)'" in refused["error"]

    # Another process, a warm cache and no network: the same documents, so the same prompts.
    (warm,) = run_cases([cases[0]], tmp_path, endpoint=None).found
    assert warm["value"] == 1.0
    assert warm["dataset"] == first["dataset"] == second["dataset"]
    prompts = [sample["prompt"] for sample in first["samples"]]
    assert [sample["prompt"] for sample in warm["samples"]] == prompts
    assert GRANTED not in cold.stdout + cold.stderr


def test_a_gated_dataset_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    wrong = "hf_never_issued"
    cases: list[dict[str, Any]] = [
        {"task": GPQA},
        {"task": GPQA, "token": STRANGER},
        {"task": GPQA, "token": wrong},
    ]
    done = run_cases(cases, tmp_path, endpoint=hub.url)
    errors = [found["error"] for found in done.found]
    for error, says in zip(
        errors,
        ("no token is set", "has not been granted access", "does not accept the token"),
        strict=True,
    ):
        assert says in error
        assert "\n" not in error
        assert "https://huggingface.co/datasets/Idavidrein/gpqa" in error
    # The token did arrive at the Hub, and nowhere else.
    assert {token for _, path, token in hub.seen if "gpqa" in path} >= {None, STRANGER, wrong}
    assert "hf_" not in " ".join([*errors, done.stdout, done.stderr])


def test_documents_that_cannot_be_had_name_their_dataset(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [{"task": "gsm8k"}, {"task": "mmlu"}]
    with Hub({}) as empty:
        unknown = run_cases(cases, tmp_path / "a", endpoint=empty.url).found
    offline = run_cases(cases, tmp_path / "b", endpoint=None).found
    for found, says in ((unknown, "the Hub does not know"), (offline, "cannot be reached")):
        for error, repo in zip(found, ("openai/gsm8k", "cais/mmlu"), strict=True):
            assert says in error["error"]
            assert repo in error["error"]
            assert "\n" not in error["error"]
            assert error["exit_code"] == 1

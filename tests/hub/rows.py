"""Repositories for the loopback Hub: rows of the real benchmarks, in the Hub's layout.

The rows lie outside the project, in the folder ``shared`` beside the clone, under licences of their
own, and are never copied into it. GPQA's are gated, so rows are made up in its schema.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hub.server import Repository

MATH_CONFIGS = {
    "Algebra": "algebra",
    "Counting & Probability": "counting_and_probability",
    "Geometry": "geometry",
    "Intermediate Algebra": "intermediate_algebra",
    "Number Theory": "number_theory",
    "Prealgebra": "prealgebra",
    "Precalculus": "precalculus",
}
NUM_MMLU_DEV = 5
NUM_GPQA = 24
NUM_MBPP = 5

Row = Mapping[str, Any]
Splits = Mapping[str, Iterable[Row]]


def read_rows(shared: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one shared file."""
    text = (shared / "datasets" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def repository(configs: Mapping[str, Splits], *, gated: bool = False) -> Repository:
    """A repository whose README maps every configuration's splits to JSONL files."""
    files: dict[str, bytes] = {}
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = f"{config}/{split}.jsonl"
            lines += [f"  - split: {split}", f"    path: {path}"]
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            files[path] = content.encode()
    lines += ["---", ""]
    files["README.md"] = "\n".join(lines).encode()
    return Repository(files, gated=gated)


def gpqa_rows(number: int = NUM_GPQA) -> list[dict[str, str]]:
    """Made-up questions in GPQA's schema; every choice names its question and differs."""
    return [
        {
            "Question": f"A beam of kind {i} crosses {i + 3} slits. Which order is brightest?",
            "Correct Answer": f"order {i * 7 % 11} of beam {i}",
            "Incorrect Answer 1": f"order {i * 7 % 11 + 20} of beam {i}",
            "Incorrect Answer 2": f"order {i * 7 % 11 + 40} of beam {i} ",
            "Incorrect Answer 3": f"no order of beam {i} [title]",
        }
        for i in range(number)
    ]


def mbpp_rows(*, plus: bool = False) -> list[dict[str, Any]]:
    """Made-up problems in MBPP's schema, or in MBPP+'s."""
    rows = []
    for i in range(NUM_MBPP):
        name = f"add_{i}"
        words = f"Write a function to add {i} to a number."
        row: dict[str, Any] = {
            "task_id": 11 + i,
            "code": f"def {name}(x):\r\n  return x + {i}",
            "test_list": [f"assert {name}({x}) == {x + i}" for x in (0, 1, 5)],
        }
        if plus:
            row |= {"prompt": words, "source_file": "", "test_imports": [], "test": "pass"}
        else:
            row |= {"text": words, "test_setup_code": "", "challenge_test_list": []}
        rows.append(row)
    return rows


def all_repositories(shared: Path) -> dict[str, Repository]:
    """Every repository the tests know."""
    math: defaultdict[str, list[Row]] = defaultdict(list)
    for row in read_rows(shared, "math_test.jsonl"):
        math[MATH_CONFIGS[row["type"]]].append(row)
    mmlu: defaultdict[str, list[Row]] = defaultdict(list)
    for row in read_rows(shared, "mmlu_test.jsonl"):
        mmlu[row["subject"]].append(row)
    return {
        "openai/gsm8k": repository(
            {
                "main": {
                    "train": read_rows(shared, "gsm8k_train.jsonl"),
                    "test": read_rows(shared, "gsm8k_test.jsonl"),
                }
            }
        ),
        "EleutherAI/hendrycks_math": repository(
            # The harness also reads a training split; there are only test rows here.
            {name: {"train": rows[20:], "test": rows[:20]} for name, rows in math.items()}
        ),
        "cais/mmlu": repository(
            {
                subject: {"test": rows[NUM_MMLU_DEV:], "dev": rows[:NUM_MMLU_DEV]}
                for subject, rows in mmlu.items()
            }
        ),
        "google/IFEval": repository({"default": {"train": read_rows(shared, "ifeval.jsonl")}}),
        "openai/openai_humaneval": repository(
            {"openai_humaneval": {"test": read_rows(shared, "humaneval_test.jsonl")}}
        ),
        # The same columns as humaneval's, with more tests.
        "evalplus/humanevalplus": repository(
            {"default": {"test": read_rows(shared, "humaneval_test.jsonl")}}
        ),
        "google-research-datasets/mbpp": repository({"full": {"test": mbpp_rows()}}),
        "evalplus/mbppplus": repository({"default": {"test": mbpp_rows(plus=True)}}),
        "Idavidrein/gpqa": repository({"gpqa_main": {"train": gpqa_rows()}}, gated=True),
    }

"""Worked examples: a few-shot prompt of ours is the one that everybody else's harness sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fdllm.evaluate.prompts import PROMPT_RULES
from hub.run import run_cases
from hub.server import Hub

pytestmark = pytest.mark.slow

LIMITS = {"gsm8k": 6, "minerva_math": 2, "mmlu": 1}
SHOTS = [("gsm8k", 2), ("gsm8k", 5), ("minerva_math", 4), ("mmlu", 5)]


@pytest.mark.parametrize("chat", [True, False], ids=["as turns of a chat", "plain"])
@pytest.mark.parametrize(("task", "num_fewshot"), SHOTS)
def test_worked_examples_are_those_of_the_harness(
    hub: Hub, tmp_path: Path, task: str, num_fewshot: int, chat: bool
) -> None:
    """Its own evaluator, its own default seeds; only the published instruction is ours."""
    shared: dict[str, Any] = {
        "task": task,
        "num_fewshot": num_fewshot,
        "chat_template": chat,
        "limit": LIMITS[task],
    }
    cases = [shared | {"by": by} for by in ("oracle", "harness")]
    ours, theirs = run_cases(cases, tmp_path, endpoint=hub.url).found
    sent = {(one["task"], one["doc_id"]): one["prompt"] for one in ours["samples"]}
    rule = PROMPT_RULES.get(task)
    for leaf, doc_id, _, prompt in theirs["prompts"]:
        words = prompt if rule is None else prompt.replace(rule.ending, rule.instruction)
        assert sent[leaf, doc_id] == words
    assert len(sent) == len({(leaf, doc_id) for leaf, doc_id, _, _ in theirs["prompts"]})

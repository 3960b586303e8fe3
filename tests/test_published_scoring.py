"""Multiple choice as published: real rows, Qwen's vocabulary, its chat template.

The published formula is computed here from the prompt's text alone, in one dense forward: no cache,
no batch, no code of the estimators.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fdllm.core.network import Network
from hub.checkpoint import random_model
from hub.run import run_cases
from hub.server import GRANTED, Hub

pytestmark = pytest.mark.slow

BLOCK, END, MASK = 32, 151645, 151665
GPQA = "gpqa_main_n_shot"


class Published:
    """The published first-token score (golden README), in one forward of the whole text."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    @cached_property
    def network(self) -> Network:
        return random_model(self.tokenizer).network

    def split(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        prefix = self.tokenizer.encode(prompt)
        return prefix, self.tokenizer.encode(prompt + target)[len(prefix) :]

    @torch.inference_mode()
    def score(self, prompt: str, target: str, end: int = END) -> float:
        prefix, answer = self.split(prompt, target)
        text = [*prefix, MASK, *answer[1:], end]
        text += [MASK] * (BLOCK - len(text) % BLOCK)  # a whole further block where it is full
        if tuple(text) not in self._known:
            block = torch.arange(len(text)) // BLOCK
            seen = block[None, :] <= block[:, None]
            logits = self.network.dense(torch.tensor([text]), torch.arange(len(text)), seen)
            self._known[tuple(text)] = logits[0, len(prefix) - 1].log_softmax(-1)
        return float(self._known[tuple(text)][answer[0]])


@pytest.fixture(scope="module")
def published(shared: Path) -> Published:
    return Published(shared / "qwen_tokenizer")


def by_model(shared: Path, task: str, **asked: Any) -> dict[str, Any]:
    case = {"task": task, "by": "model", "tokenizer": str(shared / "qwen_tokenizer")}
    return case | {"scoring": "first-token"} | asked


def test_first_token_is_the_published_formula(
    hub: Hub, shared: Path, tmp_path: Path, published: Published
) -> None:
    cases = [
        by_model(shared, "mmlu", limit=2),
        by_model(shared, "mmlu", limit=1, num_fewshot=2),
        by_model(shared, "mmlu", limit=1, chat_template=False),
        by_model(shared, GPQA, limit=None),
        by_model(shared, GPQA, limit=3, chat_template=False),
    ]
    done = run_cases(cases, tmp_path, endpoint=hub.url, token=GRANTED)
    zero, few, bare, gpqa, refused = done.found
    for found, choices, number in (
        (zero, "ABCD", 114),
        (few, "ABCD", 57),
        (bare, [" A", " B", " C", " D"], 57),
        (gpqa, ["(A)", "(B)", "(C)", "(D)"], 24),
    ):
        assert found["num_documents"] == number
        for sample in found["samples"][:: 1 if number != 57 else 4]:
            want = [published.score(sample["prompt"], choice) for choice in choices]
            assert sample["output"] == pytest.approx(want, abs=1e-5)
            assert sample["metrics"]["acc,none"] == (want.index(max(want)) == gold(sample))
    # Behind "Answer:", " (A)" and " (B)" do begin alike.
    assert (
        "document 0: choices [' (A)', ' (B)', ' (C)', ' (D)'] share their first" in refused["error"]
    )
    # The formula reads what it should: another end token is another score.
    prompt = zero["samples"][0]["prompt"]
    assert abs(published.score(prompt, "A") - published.score(prompt, "A", end=151643)) > 1e-4


def gold(sample: dict[str, Any]) -> int:
    target = sample["target"]
    return target if isinstance(target, int) else "ABCD".index(target.strip("()"))


def test_an_answer_is_what_the_tokens_of_the_text_have_behind_the_prompts(
    published: Published,
) -> None:
    """Each way our tasks put a choice behind a prompt, in ids that can be looked up."""
    chat = "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n"
    assert published.split(chat, "A")[1] == [32]
    assert published.split(chat, "(A)")[1] == [4346, 8]
    assert published.split("Which?\nAnswer:", " A")[1] == [362]
    assert published.split("Which?\nAnswer:", " (A)")[1] == [320, 32, 8]


def test_letters_are_scored_on_a_reuse_step_where_five_columns_stand_behind_them(
    hub: Hub, shared: Path, tmp_path: Path, published: Published
) -> None:
    case = by_model(shared, "mmlu", scoring="denoise", limit=3)
    [found] = run_cases([case], tmp_path, endpoint=hub.url).found
    prompts = {(s["task"], s["doc_id"]): s["prompt"] for s in found["samples"]}
    columns: Counter[int] = Counter()
    for entry in found["entries"]:
        assert entry["scored_tokens"] == 1
        at = len(published.split(prompts[entry["task"], entry["doc_id"]], "A")[0]) % BLOCK
        behind = BLOCK - 1 - at
        step = None if at == 0 else min(5, behind)
        assert entry["scored_step"] == step
        assert entry["reused_tokens"] == bool(step and step % 2)  # the case's strategy has k = 2
        columns[at] += 1
    assert sum(columns.values()) == 4 * 57 * 3
    assert len(columns) == BLOCK  # every alignment is among these rows

"""The lm-eval model under test, with whoever answers in the model's place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval.api.instance import Instance, OutputType
from transformers import PreTrainedTokenizerBase

from fdllm.core.counts import Counts
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.evaluate.adapter import EngineLM
from fdllm.evaluate.answer import Answerer, Query
from fdllm.evaluate.queries import Limits
from fdllm.runs import Evaluating
from hub.checkpoint import MemoryStore, Tally, byte_tokenizer


@dataclass
class Recorder:
    """An answerer that keeps what it was asked, and may break down on the way."""

    asked: list[Query] = field(default_factory=list)
    breaks_after: int | None = None

    def generate(
        self, queries: Sequence[Query], on_done: Callable[[int, Generation], None]
    ) -> None:
        # Rows end in any order; here the last one first.
        for i in reversed(range(len(queries))):
            self._ask(queries[i])
            text = f"answer {queries[i].doc_id}"
            on_done(i, Generation([1, 2], Counts(), 0.5, "stop", text, (1, 1)))

    def score(self, queries: Sequence[Query], on_done: Callable[[int, Score], None]) -> None:
        for i, query in enumerate(queries):
            self._ask(query)
            on_done(i, Score(-float(query.index), query.index == 0, Counts(), 0.5, 1))

    def _ask(self, query: Query) -> None:
        if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
            raise KeyboardInterrupt
        self.asked.append(query)


def instance(
    prompt: str,
    second: str | dict[str, Any],
    *,
    kind: OutputType = "generate_until",
    doc_id: int = 0,
    index: int = 0,
    task: str = "sums",
) -> Instance:
    return Instance(kind, {"n": doc_id}, (prompt, second), index, metadata=(task, doc_id, 1))


def engine_lm(
    answerer: Answerer,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    store: MemoryStore | None = None,
    progress: Tally | None = None,
    max_positions: int = 512,
    **asked: Any,
) -> EngineLM:
    return EngineLM(
        tokenizer or byte_tokenizer(),
        answerer,
        Evaluating(**asked),
        limits=Limits(max_positions, block_size=32, max_new_tokens=40),
        store=store or MemoryStore(),
        progress=progress or Tally(),
    )

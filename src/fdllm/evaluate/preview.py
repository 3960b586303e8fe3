"""What a run would send, without a model's weights: the run's own path, up to whoever answers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fdllm.core.pretrained import load_tokenizer, locate, read_spec
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.evaluate.adapter import EngineLM
from fdllm.evaluate.answer import Query
from fdllm.evaluate.documents import load_task
from fdllm.evaluate.harness import ask, check_template, quiet
from fdllm.evaluate.queries import Limits
from fdllm.evaluate.tokenizing import ending_at
from fdllm.runs import Run


class _AskedError(Exception):
    """Every query is there; nothing beyond them is wanted."""

    def __init__(self, queries: Sequence[Query]) -> None:
        super().__init__()
        self.queries = list(queries)


class _Listener:
    """Stands where an answerer, a store and a progress do; ends the run with what it is asked."""

    def get(self, key: str) -> None:
        """Nothing is known."""

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Nothing is kept."""

    def begin(self, total: int, done: int) -> None:
        """Nothing is shown."""

    def advance(self, entry: dict[str, Any]) -> None:
        """Nothing is shown."""

    def generate(
        self,
        queries: Sequence[Query],
        on_done: Callable[[int, Generation], None],  # noqa: ARG002 - none is
    ) -> NoReturn:
        """Texts are asked for."""
        raise _AskedError(queries)

    def score(
        self,
        queries: Sequence[Query],
        on_done: Callable[[int, Score], None],  # noqa: ARG002 - none is
    ) -> NoReturn:
        """Scores are asked for."""
        raise _AskedError(queries)


def queries_of(run: Run) -> list[Query]:
    """Every query that a run would put to its model, in order.

    The model's tokenizer is read, its shape where the folder has one, and no weight.

    Raises:
        UsageError: the task or model is unknown, or the tokenizer has no chat template.
        FdllmError: documents or tokenizer cannot be had, or the run itself would be refused.
    """
    asked, name = run.evaluating, run.model.name
    folder = locate(name, run.model.revision, weights=False)
    tokenizer = load_tokenizer(folder, name)
    if asked.chat_template:
        check_template(tokenizer, name)
    ending_at(run.decoding, asked.stop_token, tokenizer, name)
    # A folder with a tokenizer alone sets no limit to a prompt.
    shaped = (folder / "config.json").exists()
    positions = read_spec(folder).max_positions if shaped else sys.maxsize
    limits = Limits(positions, run.decoding.block_size, run.decoding.max_new_tokens)
    listener = _Listener()
    with quiet():
        lm = EngineLM(
            tokenizer, listener, asked, limits=limits, store=listener, progress=listener, name=name
        )
        try:
            ask(lm, load_task(run.task, asked), asked, limit=run.limit)
        except _AskedError as heard:
            return heard.queries
    return []


def described(query: Query, run: Run) -> dict[str, Any]:
    """A query as ``fdllm prompts --json`` prints it; what does not apply is null or empty."""
    scored = query.target is not None
    return {
        "task": query.task,
        "doc_id": query.doc_id,
        "choice": query.index if scored else None,
        "prompt": query.prompt,
        "tokens": list(query.tokens),
        "target": query.target,
        "target_tokens": list(query.target_tokens),
        "until": list(query.until),
        "max_new_tokens": query.max_new_tokens,
        "scoring": run.evaluating.scoring if scored else None,
    }

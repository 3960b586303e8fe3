"""Answers one request after the other, and keeps every forward of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.sampler import Generation, GenerationRequest, generate_requests
from fdllm.core.scorer import Score, score_requests
from fdllm.core.unmask import Unmask
from fdllm.evaluate.answer import Query
from fdllm.evaluate.tokenizing import ending_at
from fdllm.runs import Run
from fdllm.trace.steps import ForwardTrace, RowTrace
from fdllm.trace.watcher import Watcher, assemble


@dataclass
class TracingAnswerer:
    """Answers as :class:`~fdllm.evaluate.answer.ModelAnswerer` does, one row after the other.

    A row's tokens and scores never depend on the rows beside it, so this is what the run computes.
    Choices of one question are scored apart, each with all of its forwards: a run shares those
    that are the same, and books them once.

    Attributes:
        model: from :func:`fdllm.load_model`.
        run: settings.
        strategy: layer reuse.
        unmask: which masked columns to unmask.
        staleness: whether to compute it.
        rows: the rows so far.
    """

    model: Model
    run: Run
    strategy: ReuseStrategy[Any]
    unmask: Unmask
    staleness: bool
    rows: list[RowTrace] = field(default_factory=list)

    @property
    def _decoding(self) -> Decoding:
        return ending_at(
            self.run.decoding,
            self.run.evaluating.stop_token,
            self.model.tokenizer,
            self.model.name,
        )

    def generate(
        self, queries: Sequence[Query], on_done: Callable[[int, Generation], None]
    ) -> None:
        """Decode every prompt."""
        for i, query in enumerate(queries):
            watcher = Watcher(self.staleness)
            [found] = generate_requests(
                self.model,
                [GenerationRequest(query.tokens, query.max_new_tokens, query.until, query.seed)],
                self._decoding,
                self.strategy,
                unmask=watcher.rule(self.unmask),
                detokenize=True,
                hook=watcher,
            )
            title = "answer" if len(queries) == 1 else f"answer {i + 1} of {len(queries)}"
            self.rows.append(
                RowTrace(
                    title=title,
                    prompt=query.tokens,
                    forwards=self._forwards(watcher),
                    tokens=tuple(found.tokens),
                    text=str(found.text),
                    finish=found.finish,
                    counts=found.counts.as_dict(),
                )
            )
            on_done(i, found)

    def score(self, queries: Sequence[Query], on_done: Callable[[int, Score], None]) -> None:
        """Score every target."""
        for i, query in enumerate(queries):
            watcher = Watcher(self.staleness)
            [found] = score_requests(
                self.model,
                [(query.tokens, query.target_tokens)],
                self._decoding,
                self.strategy,
                scoring=self.run.evaluating.scoring,
                prefix_cache_gib=0.0,
                hook=watcher,
            )
            self.rows.append(
                RowTrace(
                    title=f"choice {query.index}: {str(query.target).strip()}",
                    prompt=query.tokens,
                    forwards=self._forwards(watcher),
                    tokens=query.target_tokens,
                    text=str(query.target),
                    loglikelihood=found.loglikelihood,
                    is_greedy=found.is_greedy,
                    counts=found.counts.as_dict(),
                )
            )
            on_done(i, found)

    def _forwards(self, watcher: Watcher) -> tuple[ForwardTrace, ...]:
        return assemble(
            watcher.seen,
            block_size=self.run.decoding.block_size,
            refresh_reuse=self.strategy.refresh_reuse,
        )

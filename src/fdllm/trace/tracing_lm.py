"""Answers one request after the other, and keeps every forward of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fdllm.core.checkpoint import Model
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.core.unmask import Unmask
from fdllm.evaluate.adapter import EngineLM, OnDone
from fdllm.evaluate.requests import EvalRequest
from fdllm.runs import Run
from fdllm.trace.steps import RowTrace
from fdllm.trace.watcher import Watcher, assemble


class TracingLM(EngineLM):
    """Answers as the run's own model does, one row after the other.

    A row's tokens and scores never depend on the rows beside it, so this is what the run computes.
    Choices of one question are scored apart, each with all of its forwards: a run shares those
    that are the same, and books them once.

    Attributes:
        rows: the rows so far.
    """

    def __init__(
        self,
        run: Run,
        model: Model,
        strategy: ReuseStrategy[Any],
        unmask: Unmask,
        *,
        staleness: bool,
    ) -> None:
        alone = run.evaluating.model_copy(update={"prefix_cache_gib": 0.0})
        super().__init__(run.model_copy(update={"evaluating": alone}), model, strategy)
        self.rows: list[RowTrace] = []
        self._rule, self._staleness = unmask, staleness
        self._refresh_reuse = strategy.refresh_reuse

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> None:
        """Decode or score each by itself, watched."""
        for i, request in enumerate(requests):
            title = "answer" if len(requests) == 1 else f"answer {i + 1} of {len(requests)}"
            self.hook = watcher = Watcher(self._staleness)
            self.unmask = watcher.rule(self._rule)
            found: dict[int, Any] = {}
            super().answer([request], found.__setitem__)
            self.rows.append(self._row(request, found[0], watcher, title))
            on_done(i, found[0])

    def _row(
        self, request: EvalRequest, found: Generation | Score, watcher: Watcher, title: str
    ) -> RowTrace:
        forwards = assemble(
            watcher.seen,
            block_size=self.decoding.block_size,
            refresh_reuse=self._refresh_reuse,
        )
        if isinstance(found, Generation):
            return RowTrace(
                title=title,
                prompt=request.tokens,
                forwards=forwards,
                tokens=tuple(found.tokens),
                text=str(found.text),
                finish=found.finish,
                counts=found.counts.as_dict(),
            )
        return RowTrace(
            title=f"choice {request.index}: {str(request.target).strip()}",
            prompt=request.tokens,
            forwards=forwards,
            tokens=request.target_tokens,
            text=str(request.target),
            loglikelihood=found.loglikelihood,
            is_greedy=found.is_greedy,
            counts=found.counts.as_dict(),
        )

"""Who answers: the model, or an oracle that knows. Both stand behind the same request path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.counts import Counts
from fdllm.core.engine import NotFiniteError
from fdllm.core.memory import max_batch_size
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.sampler import Generation, GenerationRequest, generate_requests
from fdllm.core.scorer import Score, score_requests
from fdllm.core.unmask import Unmask, by_threshold
from fdllm.errors import FdllmError
from fdllm.evaluate.tasks import TaskInfo
from fdllm.evaluate.tokenizing import ending_at
from fdllm.runs import Evaluating


@dataclass(frozen=True)
class Query:
    """One request of the harness, tokenised.

    Attributes:
        key: its identity, see :class:`fdllm.evaluate.protocols.Request`.
        task: the leaf task.
        doc_id: the document's number.
        index: the request's number within the document.
        doc: the document the prompt was made of.
        prompt: the prompt's text.
        tokens: the prompt's tokens; for a log-likelihood, the tokens ahead of the target.
        target: text to score; None where text is generated.
        target_tokens: its tokens.
        until: strings that end the text.
        max_new_tokens: new tokens at most; 0 where nothing is generated.
        seed: seed of a repeated request where sampling is on.
    """

    key: str
    task: str
    doc_id: int
    index: int
    doc: Mapping[str, Any]
    prompt: str
    tokens: tuple[int, ...]
    target: str | None = None
    target_tokens: tuple[int, ...] = ()
    until: tuple[str, ...] = ()
    max_new_tokens: int = 0
    seed: int | None = None


class Answerer(Protocol):
    """Answers queries, reporting each as soon as it is done, in any order."""

    def generate(
        self, queries: Sequence[Query], on_done: Callable[[int, Generation], None]
    ) -> None:
        """Continue every query's prompt."""

    def score(self, queries: Sequence[Query], on_done: Callable[[int, Score], None]) -> None:
        """Score every query's target after its prompt."""


class HarnessTask(Protocol):
    """The part of a harness task that an oracle reads."""

    def doc_to_target(self, doc: Mapping[str, Any]) -> Any:  # noqa: ANN401 - str, int or list
        """The right answer, or its number among the choices."""

    def doc_to_choice(self, doc: Mapping[str, Any]) -> list[str]:
        """The choices."""


@dataclass(frozen=True)
class ModelAnswerer:
    """The model answers.

    Attributes:
        model: from :func:`fdllm.load_model`.
        decoding: settings.
        strategy: layer reuse, active in generation and scoring alike.
        asked: the estimator, the token that ends a text, and what bounds memory.
        unmask: which masked columns to unmask.
        go_on: asked before a row starts; a no leaves the rest unanswered.
    """

    model: Model
    decoding: Decoding
    strategy: ReuseStrategy[Any]
    asked: Evaluating
    unmask: Unmask = by_threshold
    go_on: Callable[[], bool] = lambda: True

    @property
    def _decoding(self) -> Decoding:
        return ending_at(
            self.decoding, self.asked.stop_token, self.model.tokenizer, self.model.name
        )

    def generate(
        self, queries: Sequence[Query], on_done: Callable[[int, Generation], None]
    ) -> None:
        """Decode every prompt."""
        requests = [
            GenerationRequest(query.tokens, query.max_new_tokens, query.until, query.seed)
            for query in queries
        ]
        with _naming(queries):
            generate_requests(
                self.model,
                requests,
                self._decoding,
                self.strategy,
                batch_size=max_batch_size(self.model, self.asked.batch_size),
                on_done=on_done,
                unmask=self.unmask,
                detokenize=True,
                go_on=self.go_on,
            )

    def score(self, queries: Sequence[Query], on_done: Callable[[int, Score], None]) -> None:
        """Score every target."""
        with _naming(queries):
            score_requests(
                self.model,
                [(query.tokens, query.target_tokens) for query in queries],
                self._decoding,
                self.strategy,
                scoring=self.asked.scoring,
                batch_size=max_batch_size(self.model, self.asked.score_batch_size),
                on_done=on_done,
                prefix_cache_gib=self.asked.prefix_cache_gib,
                go_on=self.go_on,
            )


@contextmanager
def _naming(queries: Sequence[Query]) -> Iterator[None]:
    """Say whose logit it was.

    Raises:
        FdllmError: a logit is not finite.
    """
    try:
        yield
    except NotFiniteError as error:
        query = queries[error.request]
        raise FdllmError(f"task '{query.task}', document {query.doc_id}: {error.reason}") from error


@dataclass(frozen=True)
class OracleAnswerer:
    """Answers from the document each prompt was made of.

    A task is wired rightly if and only if this scores 1.0: prompt, document, target, filters and
    headline metric then belong together. It computes nothing and counts nothing.

    Attributes:
        info: the task.
        tasks: its leaf tasks, by name.
    """

    info: TaskInfo
    tasks: Mapping[str, HarnessTask]

    def generate(
        self, queries: Sequence[Query], on_done: Callable[[int, Generation], None]
    ) -> None:
        """Answer with the document's own solution."""
        for i, query in enumerate(queries):
            field = self.info.solution
            target = self.tasks[query.task].doc_to_target(query.doc)
            text = str(query.doc[field]) if field is not None else str(target)
            on_done(i, Generation([], Counts(), 0.0, "stop", text))

    def score(self, queries: Sequence[Query], on_done: Callable[[int, Score], None]) -> None:
        """Give the right choice all of the probability."""
        for i, query in enumerate(queries):
            right = query.index == self._gold(query)
            on_done(i, Score(0.0 if right else -100.0, right, Counts(), 0.0, 0))

    def _gold(self, query: Query) -> int:
        task = self.tasks[query.task]
        target, choices = task.doc_to_target(query.doc), task.doc_to_choice(query.doc)
        if isinstance(target, int):
            return target
        if target in choices:
            return choices.index(target)
        raise FdllmError(
            f"task '{query.task}', document {query.doc_id}: target {target!r} is none of the "
            f"choices {choices}"
        )


AnswererFactory = Callable[[Mapping[str, HarnessTask]], Answerer]
"""Makes an answerer for the leaf tasks of one evaluation."""

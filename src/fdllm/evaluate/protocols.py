"""What an evaluation needs from around it, and what it hands back. No torch, no harness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fdllm.shard import Shard

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """What identifies one request inside a run; stable across restarts.

    Attributes:
        key: SHA-256 over everything that asks for the answer, see :meth:`of`.
    """

    key: str

    @classmethod
    def of(
        cls,
        *,
        kind: str,
        task: str,
        doc_id: int,
        index: int,
        prompt: str,
        target: str | None,
        arguments: Mapping[str, Any],
        repeat: int = 0,
    ) -> Request:
        """The identity of a request.

        Args:
            kind: ``generate`` or ``loglikelihood``.
            task: the leaf task, say ``mmlu_anatomy``.
            doc_id: the document's number in it.
            index: the request's number within the document (its choice).
            prompt: the whole prompt, as text.
            target: the continuation to score; None where text is generated.
            arguments: generation arguments.
            repeat: which of several equal requests.
        """
        parts = [task, doc_id, index, repeat, kind, prompt, target, dict(arguments)]
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
        return cls(text_hash(text))


class Store(Protocol):
    """Answers of a run that are already known. :class:`fdllm.record.journal.Journal` is one."""

    def get(self, key: str) -> dict[str, Any] | None:
        """The entry put under ``key``, or None."""

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Keep an entry; it is durable when this returns."""


class Progress(Protocol):
    """Told how far a run is."""

    def begin(self, total: int, done: int) -> None:
        """Requests of the run, and how many of them the store already answers."""

    def advance(self, entry: dict[str, Any]) -> None:
        """One more request is answered."""


@dataclass(frozen=True)
class Part:
    """Which of a run's documents an evaluation answers, and until when.

    Attributes:
        shard: the documents; None is all of them.
        go_on: asked before a request is begun. Where it says no, those in flight are finished and
            the evaluation ends with :class:`EndedEarly`.
    """

    shard: Shard | None = None
    go_on: Callable[[], bool] = lambda: True

    def select(self, requests: Sequence[T], document: Callable[[T], object]) -> list[T]:
        """The requests of this part's documents; documents are split by position, whole.

        Args:
            requests: of the whole run, in order.
            document: which document a request belongs to.
        """
        if self.shard is None:
            return list(requests)
        mine = set(self.shard.part(list(dict.fromkeys(map(document, requests)))))
        return [request for request in requests if document(request) in mine]


WHOLE = Part()
"""All documents, to the end."""


class EndedEarly(Exception):  # noqa: N818 - nothing is wrong
    """An evaluation was asked to end; what it has answered is in the store.

    Attributes:
        done: requests answered so far, by this attempt and earlier ones.
        total: requests of this part of the run.
    """

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"{done} of {total} requests")
        self.done = done
        self.total = total


class ShardAnswered(Exception):  # noqa: N818 - nothing is wrong
    """A shard's requests are all answered: the store has them, and there is no record to make.

    The harness makes its results of whole tasks only, so this is how a shard leaves it.
    """


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: the harness's results, JSON-able; written as ``results.json``. Groups carry their
            own metrics and those of every subject.
        samples: one mapping a document, sorted by task and document; lines of ``samples.jsonl``.
        headline: the key of the task's headline metric.
        value: its value.
        dataset: SHA-256 over the documents used, in order.
        task_versions: the harness's version of every task and group.
        num_documents: documents evaluated.
        metrics: all of the task's figures, by ``metric,filter``.
    """

    results: dict[str, Any]
    samples: list[dict[str, Any]]
    headline: str
    value: float
    dataset: str
    task_versions: dict[str, Any]
    num_documents: int
    metrics: dict[str, float] = field(default_factory=dict)


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

"""What an evaluation needs from around it, and what it hands back. No torch, no harness."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


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
    """

    results: dict[str, Any]
    samples: list[dict[str, Any]]
    headline: str
    value: float
    dataset: str
    task_versions: dict[str, Any]
    num_documents: int


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

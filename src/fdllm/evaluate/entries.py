"""Journal entries: what is kept of an answer, the same for a computed and a resumed one."""

from __future__ import annotations

from typing import Any

from fdllm.core.sampler import Generation
from fdllm.core.scorer import Score
from fdllm.evaluate.answer import Query
from fdllm.evaluate.protocols import text_hash


def generation_entry(query: Query, result: Generation) -> dict[str, Any]:
    """The entry of a generated text. Seconds are model time; tokens include the stop token."""
    return {
        "kind": "generate",
        **_identity(query),
        "text": result.text,
        "tokens": list(result.tokens),
        "num_tokens": len(result.tokens),
        "finish": result.finish,
        "seconds": result.seconds,
        "counts": result.counts.as_dict(),
        "steps": list(result.steps),
    }


def score_entry(query: Query, result: Score) -> dict[str, Any]:
    """The entry of a scored target."""
    return {
        "kind": "loglikelihood",
        **_identity(query),
        "target": query.target,
        "loglikelihood": result.loglikelihood,
        "is_greedy": result.is_greedy,
        "scored_tokens": result.tokens,
        "scored_step": result.step,
        "reused_tokens": result.reused_tokens,
        "seconds": result.seconds,
        "counts": result.counts.as_dict(),
    }


def _identity(query: Query) -> dict[str, Any]:
    return {
        "task": query.task,
        "doc_id": query.doc_id,
        "index": query.index,
        "prompt_hash": text_hash(query.prompt),
    }

"""What a run would send, without a model's weights: the run's own path, up to whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from fdllm.evaluate.adapter import OnDone, ask
from fdllm.evaluate.again import KeptLM, make_lm
from fdllm.evaluate.documents import load_task, quiet
from fdllm.evaluate.requests import EvalRequest
from fdllm.runs import Run


class _AskedError(Exception):
    """Everything that is wanted was asked."""


class _ListeningLM(KeptLM):
    """Ends the run with what it is asked."""

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> NoReturn:  # noqa: ARG002
        raise _AskedError


def requests_of(run: Run) -> list[EvalRequest]:
    """Every request that a run would put to its model, in order.

    The model's tokenizer is read, its shape where the folder has one, and no weight.

    Raises:
        UsageError: the task or model is unknown, or the tokenizer has no chat template.
        FdllmError: documents or tokenizer cannot be had, or the run itself would be refused.
    """
    lm = make_lm(run, _ListeningLM)
    with quiet(), suppress(_AskedError):
        loaded = load_task(run.task, run.evaluating, include=run.include)
        ask(lm, loaded, run.evaluating, limit=run.limit)
    return lm.heard


def described(request: EvalRequest, run: Run) -> dict[str, Any]:
    """A request as ``fdllm prompts --json`` prints it; what does not apply is null or empty."""
    scored = request.target is not None
    return {
        "task": request.task,
        "doc_id": request.doc_id,
        "choice": request.index if scored else None,
        "prompt": request.prompt,
        "tokens": list(request.tokens),
        "target": request.target,
        "target_tokens": list(request.target_tokens),
        "until": list(request.until),
        "max_new_tokens": request.max_new_tokens,
        "scoring": run.evaluating.scoring if scored else None,
    }

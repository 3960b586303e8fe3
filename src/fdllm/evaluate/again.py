"""A run once more from its answers: prompts, texts and grades by the run's own path, no weights."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from fdllm.checkpoint.folder import locate
from fdllm.checkpoint.special_tokens import load_tokenizer, read_spec
from fdllm.core.sampler import text_of
from fdllm.errors import FdllmError
from fdllm.evaluate.adapter import OnDone, RequestLM, ask
from fdllm.evaluate.attempt import Known
from fdllm.evaluate.documents import LoadedTask, load_run, quiet
from fdllm.evaluate.recording import Evaluation
from fdllm.evaluate.requests import EvalRequest
from fdllm.evaluate.samples import evaluation_of
from fdllm.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fdllm.core.model_spec import ModelSpec

Entries = Mapping[str, dict[str, Any]]
"""Answers by their request's key, as a journal holds them."""


class KeptLM(RequestLM):
    """Says what a journal says.

    Args:
        run: how the task is asked.
        tokenizer: the model's.
        spec: its shape; None where that is not known, which sets no limit to a prompt.

    Attributes:
        heard: what was asked, in order.
        ends: tokens that end a text; empty where they are not known.
    """

    def __init__(
        self, run: Run, tokenizer: PreTrainedTokenizerBase, spec: ModelSpec | None
    ) -> None:
        super().__init__(run, tokenizer, sys.maxsize if spec is None else spec.max_positions)
        self.heard: list[EvalRequest] = []
        own = () if spec is None else spec.stop_tokens
        self.ends = own if self.decoding.stop_token is None else self.decoding.stop_tokens

    def _fulfil(self, requests: Sequence[EvalRequest]) -> list[dict[str, Any]]:
        self.heard += requests
        return super()._fulfil(requests)

    def answer(self, requests: Sequence[EvalRequest], on_done: OnDone) -> NoReturn:  # noqa: ARG002
        """Nobody does.

        Raises:
            FdllmError: always.
        """
        raise FdllmError(f"{requests[0]}: no answer to what is asked is in the journal")


def make_lm(run: Run, made: type[KeptLM]) -> KeptLM:
    """An lm-eval model of a run that has a tokenizer and no weights.

    Raises:
        UsageError: the model is unknown, or its tokenizer has no chat template.
        FdllmError: the tokenizer cannot be had.
    """
    folder = locate(run.model.name, run.model.revision, weights=False)
    spec = read_spec(folder) if (folder / "config.json").exists() else None
    return made(run, load_tokenizer(folder, run.model.name), spec)


def prepare(run: Run) -> tuple[KeptLM, LoadedTask]:
    """What asks a run's questions and what grades its answers.

    Raises:
        UsageError: its programs may not be run.
        FdllmError: documents or the tokenizer cannot be had, or programs not be confined.
    """
    loaded = load_run(run)
    return make_lm(run, KeptLM), loaded


def evaluate_again(
    lm: KeptLM,
    loaded: LoadedTask,
    entries: Entries,
    documents: Mapping[str, Collection[int]] | None = None,
) -> tuple[Evaluation, dict[str, dict[str, Any]]]:
    """Ask and grade a run's documents once more.

    Args:
        lm: asks, as :func:`prepare` makes it.
        loaded: grades, likewise.
        entries: the run's answers.
        documents: numbers of the documents of each leaf task; None is all.

    Returns:
        What the evaluation finds, and the answers as far as they follow from what was asked and
        from their own tokens, by key.

    Raises:
        FdllmError: an answer is missing.
    """
    lm.store, loaded, run = Known(entries), loaded.choose(documents), lm.run
    with quiet():
        found = ask(lm, loaded, run.evaluating, limit=run.limit)
        again = evaluation_of(found, loaded, lm.entries, run)
    return again, {one.key: _follows(one, entries[one.key], lm) for one in lm.heard}


def _follows(request: EvalRequest, entry: Mapping[str, Any], lm: KeptLM) -> dict[str, Any]:
    """An answer's identity, and of a text itself, its length and what ended it."""
    if request.target is not None:
        return request.identity | {"scored_tokens": len(request.target_tokens)}
    tokens, finish = entry["tokens"], entry["finish"]
    text = text_of(tokens, finish, request.until, lm.tokenizer)
    if lm.ends:
        finish = _finish(request, tokens, lm)
    return request.identity | {"text": text, "num_tokens": len(tokens), "finish": finish}


def _finish(request: EvalRequest, tokens: Sequence[int], lm: KeptLM) -> str:
    """What ends a text with these tokens, see :class:`fdllm.core.sampler.Generation`."""
    if tokens[-1] in lm.ends:
        return "stop"
    whole = str(lm.tokenizer.decode([*tokens]))
    if any(end in whole for end in request.until):
        return "until"
    return "length" if len(tokens) >= request.max_new_tokens else "nothing"

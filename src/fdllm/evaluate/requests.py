"""One request of the harness, tokenised: its key, its room, and what is kept of its answer."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from fdllm.core.config import Decoding
from fdllm.core.sampler import Generation
from fdllm.core.schedule import num_blocks
from fdllm.core.scorer import Score
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.recording import text_hash
from fdllm.evaluate.task_definition import KNOWN_ARGUMENTS, LENGTH_NAMES


@dataclass(frozen=True)
class EvalRequest:
    """One request of the harness, tokenised."""

    key: str  # its identity inside a run, stable across restarts, see :func:`request_key`
    task: str  # the leaf task
    doc_id: int  # the document's number
    index: int  # the request's number within the document (its choice)
    doc: Mapping[str, Any]  # the document the prompt was made of
    prompt: str  # the prompt's text
    # the prompt's tokens; for a log-likelihood, the tokens ahead of the target
    tokens: tuple[int, ...]
    target: str | None = None  # text to score; None where text is generated
    target_tokens: tuple[int, ...] = ()  # its tokens
    until: tuple[str, ...] = ()  # strings that end the text
    max_new_tokens: int = 0  # new tokens at most; 0 where nothing is generated
    seed: int | None = None  # seed of a repeated request where sampling is on

    @property
    def document(self) -> tuple[str, int]:
        """Which document it belongs to."""
        return self.task, self.doc_id

    def __str__(self) -> str:
        return f"task '{self.task}', document {self.doc_id}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the journal keeps of it beside its answer."""
        scored = self.target is not None
        return {
            "kind": "loglikelihood" if scored else "generate",
            "task": self.task,
            "doc_id": self.doc_id,
            "index": self.index,
            "prompt_hash": text_hash(self.prompt),
            **({"target": self.target} if scored else {}),
        }

    def entry(self, answer: Generation | Score) -> dict[str, Any]:
        """What the journal keeps of its answer, the same for a computed and a resumed one.

        Seconds are model time; the tokens of a text include its stop token.
        """
        cost = {"seconds": answer.seconds, "counts": answer.counts.as_dict()}
        if isinstance(answer, Generation):
            return {
                **self.identity,
                "text": answer.text,
                "tokens": list(answer.tokens),
                "num_tokens": len(answer.tokens),
                "finish": answer.finish,
                **cost,
                "steps": list(answer.steps),
            }
        return {
            **self.identity,
            "loglikelihood": answer.loglikelihood,
            "is_greedy": answer.is_greedy,
            "scored_tokens": answer.tokens,
            "scored_step": answer.step,
            "reused_tokens": answer.reused_tokens,
            **cost,
        }


def request_key(
    instance: Instance,
    kind: str,
    target: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    repeat: int = 0,
) -> str:
    """SHA-256 over everything that asks for an answer; ``repeat`` tells equal requests apart."""
    where = [str(instance.task_name), int(instance.doc_id), int(instance.idx)]
    parts = [*where, repeat, kind, str(instance.args[0]), target, dict(arguments or {})]
    return text_hash(json.dumps(parts, sort_keys=True, ensure_ascii=False))


# --- what a task's definition asks for ------------------------------------------------------------


def until_strings(arguments: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """The strings that end a text, by the harness's generation arguments.

    ``do_sample`` and ``temperature`` are accepted and set aside: the run's own decoding settings
    decide, because they are what a record names.

    Raises:
        FdllmError: an argument is unknown.
    """
    unknown = sorted(set(arguments) - set(KNOWN_ARGUMENTS))
    if unknown:
        raise FdllmError(
            f"task '{task}' asks for generation arguments {', '.join(unknown)}, which would "
            f"be ignored; known are {', '.join(KNOWN_ARGUMENTS)}"
        )
    until = arguments.get("until") or []
    return tuple(text for text in ([until] if isinstance(until, str) else until) if text)


def length_limit(arguments: Mapping[str, Any], task: str) -> int | None:
    """New tokens at most, by the harness's generation arguments; None where they name no number.

    Raises:
        FdllmError: two of its names disagree.
    """
    lengths = {int(arguments[n]) for n in LENGTH_NAMES if arguments.get(n) is not None}
    if len(lengths) > 1:
        raise FdllmError(
            f"task '{task}' gives several lengths {sorted(lengths)} under "
            f"{', '.join(LENGTH_NAMES)}; leave one"
        )
    return lengths.pop() if lengths else None


def whole_blocks(decoding: Decoding, num_prompt_tokens: int) -> int:
    """New tokens at most, so that a text ends with a block.

    The published evaluation decodes ``max_new_tokens // block_size`` blocks behind the prompt's
    full ones; what its last, partial block holds is taken off.

    Raises:
        UsageError: ``max_new_tokens`` is less than a block.
    """
    size = decoding.block_size
    if decoding.max_new_tokens < size:
        raise UsageError(
            f"whole_blocks needs max_new_tokens of a block of {size} tokens at least; got "
            f"{decoding.max_new_tokens}"
        )
    return decoding.max_new_tokens // size * size - num_prompt_tokens % size


# --- checks ahead of hours of answers: nothing is ever truncated ----------------------------------


def check_room(request: EvalRequest, block_size: int, max_positions: int) -> None:
    """Prompt and answer, in whole blocks, must fit the model.

    Raises:
        FdllmError: they need more positions than the model has; the document is named.
    """
    answer = request.max_new_tokens or len(request.target_tokens) + 1
    needed = num_blocks(len(request.tokens) + answer, block_size) * block_size
    if needed > max_positions:
        raise FdllmError(
            f"{request}: a prompt of {len(request.tokens)} "
            f"tokens and an answer of up to {answer} need {needed} positions (whole blocks of "
            f"{block_size}), and the model has {max_positions}; lower "
            "max_new_tokens or num_fewshot, or choose a model with more positions"
        )


def check_scored(request: EvalRequest, max_prompt_tokens: int | None) -> None:
    """The published evaluation's own limit on what is scored.

    Raises:
        FdllmError: prompt and target are longer.
    """
    length = len(request.tokens) + len(request.target_tokens)
    if max_prompt_tokens is not None and length > max_prompt_tokens:
        raise FdllmError(
            f"{request}: prompt and answer are {length} "
            f"tokens, and max_prompt_tokens allows {max_prompt_tokens}; lower num_fewshot, or "
            "raise the limit in a preset of your own"
        )


def check_first_tokens(requests: Sequence[EvalRequest]) -> None:
    """Refuse what the ``first-token`` estimator cannot tell apart.

    Raises:
        FdllmError: choices of one document share the first token of their targets.
    """
    groups: defaultdict[tuple[object, ...], list[EvalRequest]] = defaultdict(list)
    for request in requests:
        groups[request.task, request.doc_id, request.tokens].append(request)
    for choices in groups.values():
        tokens = [request.target_tokens[0] for request in choices]
        shared = sorted({token for token in tokens if tokens.count(token) > 1})
        if shared:
            texts = [request.target for request in choices if request.target_tokens[0] in shared]
            raise FdllmError(
                f"{choices[0]}: choices {texts} share their first token "
                f"{shared} in this tokenizer, and the first-token estimator sees nothing else; use "
                "--scoring denoise, or --allow-invalid to score it the published way (the record "
                "will say so)"
            )

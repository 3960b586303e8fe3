"""From the harness's requests to queries: arguments read strictly, room checked ahead of time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.schedule import num_blocks
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.answer import Query
from fdllm.evaluate.protocols import Request

_LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN_ARGUMENTS = ("until", "do_sample", "temperature", *_LENGTH_NAMES)


@dataclass(frozen=True)
class Limits:
    """What bounds a request.

    Attributes:
        max_positions: longest sequence of the model, in tokens.
        block_size: a sequence is rounded up to whole blocks.
        max_new_tokens: new tokens where the task's own definition names no limit.
    """

    max_positions: int
    block_size: int
    max_new_tokens: int

    @classmethod
    def of(cls, model: Model, decoding: Decoding) -> Limits:
        """The limits of a model under decoding settings."""
        return cls(model.spec.max_positions, decoding.block_size, decoding.max_new_tokens)

    @property
    def longest_target(self) -> int:
        """Tokens that can be scored behind a single token."""
        return self.max_positions // self.block_size * self.block_size - 2

    def whole_blocks(self, num_prompt_tokens: int) -> int:
        """New tokens at most, so that a text ends with a block.

        The published evaluation decodes ``max_new_tokens // block_size`` blocks behind the prompt's
        full ones; what its last, partial block holds is taken off.

        Raises:
            UsageError: ``max_new_tokens`` is less than a block.
        """
        size = self.block_size
        if self.max_new_tokens < size:
            raise UsageError(
                f"whole_blocks needs max_new_tokens of a block of {size} tokens at least; got "
                f"{self.max_new_tokens}"
            )
        return self.max_new_tokens // size * size - num_prompt_tokens % size

    @staticmethod
    def check_scored(query: Query, max_prompt_tokens: int | None) -> None:
        """The published evaluation's own limit on what is scored.

        Raises:
            FdllmError: prompt and target are longer.
        """
        length = len(query.tokens) + len(query.target_tokens)
        if max_prompt_tokens is not None and length > max_prompt_tokens:
            raise FdllmError(
                f"task '{query.task}', document {query.doc_id}: prompt and answer are {length} "
                f"tokens, and max_prompt_tokens allows {max_prompt_tokens}; lower num_fewshot, or "
                "raise the limit in a preset of your own"
            )

    def check(self, query: Query) -> None:
        """Nothing is ever truncated: what has no room is an error that names the document.

        Raises:
            FdllmError: prompt and answer need more positions than the model has.
        """
        answer = query.max_new_tokens or len(query.target_tokens) + 1
        needed = num_blocks(len(query.tokens) + answer, self.block_size) * self.block_size
        if needed > self.max_positions:
            raise FdllmError(
                f"task '{query.task}', document {query.doc_id}: a prompt of {len(query.tokens)} "
                f"tokens and an answer of up to {answer} need {needed} positions (whole blocks of "
                f"{self.block_size}), and the model has {self.max_positions}; lower "
                "max_new_tokens or num_fewshot, or choose a model with more positions"
            )


@dataclass(frozen=True)
class GenerationArguments:
    """Generation settings of a task's definition that are honoured.

    Attributes:
        until: strings that end the text.
        max_new_tokens: the definition's own limit, or None.
    """

    until: tuple[str, ...]
    max_new_tokens: int | None

    @classmethod
    def read(cls, arguments: Mapping[str, Any], task: str) -> GenerationArguments:
        """Read the harness's generation arguments.

        ``do_sample`` and ``temperature`` are accepted and set aside: the run's own decoding
        settings decide, because they are what a record names.

        Raises:
            FdllmError: an argument is unknown, or two of the length's names disagree.
        """
        unknown = sorted(set(arguments) - set(_KNOWN_ARGUMENTS))
        if unknown:
            raise FdllmError(
                f"task '{task}' asks for generation arguments {', '.join(unknown)}, which would "
                f"be ignored; known are {', '.join(_KNOWN_ARGUMENTS)}"
            )
        until = arguments.get("until") or []
        strings = [until] if isinstance(until, str) else list(until)
        lengths = {int(arguments[n]) for n in _LENGTH_NAMES if arguments.get(n) is not None}
        if len(lengths) > 1:
            raise FdllmError(
                f"task '{task}' gives several lengths {sorted(lengths)} under "
                f"{', '.join(_LENGTH_NAMES)}; leave one"
            )
        return cls(tuple(text for text in strings if text), lengths.pop() if lengths else None)


class Requests:
    """Gives each request of the harness its identity; equal ones are numbered apart."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._seen: Counter[Request] = Counter()

    def identify(
        self, instance: Instance, target: str | None, arguments: Mapping[str, Any]
    ) -> tuple[Request, int]:
        """The identity, and which of several equal requests this is (0 for the first)."""

        def of(repeat: int) -> Request:
            return Request.of(
                kind=self.kind,
                task=str(instance.task_name),
                doc_id=int(instance.doc_id),
                index=int(instance.idx),
                prompt=str(instance.args[0]),
                target=target,
                arguments=arguments,
                repeat=repeat,
            )

        first = of(0)
        repeat = self._seen[first]
        self._seen[first] += 1
        return (of(repeat) if repeat else first), repeat


def check_first_tokens(queries: Sequence[Query]) -> None:
    """Refuse what the ``first-token`` estimator cannot tell apart.

    Raises:
        FdllmError: choices of one document share the first token of their targets.
    """
    groups: defaultdict[tuple[str, int, tuple[int, ...]], list[Query]] = defaultdict(list)
    for query in queries:
        groups[query.task, query.doc_id, query.tokens].append(query)
    for (task, doc_id, _), choices in groups.items():
        tokens = [query.target_tokens[0] for query in choices]
        shared = sorted({token for token in tokens if tokens.count(token) > 1})
        if shared:
            texts = [query.target for query in choices if query.target_tokens[0] in shared]
            raise FdllmError(
                f"task '{task}', document {doc_id}: choices {texts} share their first token "
                f"{shared} in this tokenizer, and the first-token estimator sees nothing else; use "
                "--scoring denoise, or --allow-invalid to score it the published way (the record "
                "will say so)"
            )

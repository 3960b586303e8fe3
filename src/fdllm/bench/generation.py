"""Whole generations with the unmasking fixed, their floor, and the plain sampler beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from fdllm.bench.asks import decoding_of, extents
from fdllm.bench.floor import Forward
from fdllm.bench.shapes import Subject
from fdllm.core.layers import block_causal_mask
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.row_task import CacheRow, ForwardHook, ForwardRequest, RowTask, Steps
from fdllm.core.sampler import Generation, GenerationRequest, generate_requests
from fdllm.core.unmask import Unmask, choose_greedy, most_confident

T = TypeVar("T")


@dataclass(frozen=True)
class FixedUnmask:
    """Unmasks the same number of columns each step, so that runs make the same forwards.

    Attributes:
        count: columns a step; fewer where fewer are left.
    """

    count: int

    def __call__(self, confidence: Sequence[float], threshold: float) -> list[int]:  # noqa: ARG002
        """The most confident ones."""
        return most_confident(confidence, self.count)


@dataclass(frozen=True)
class Load:
    """What is generated.

    Attributes:
        requests: the texts to continue.
        unmask: how many columns a step.
    """

    requests: tuple[GenerationRequest, ...]
    unmask: FixedUnmask


def generate(
    subject: Subject,
    load: Load,
    strategy: ReuseStrategy[Any] | None = None,
    batch_size: int = 1,
    hook: ForwardHook | None = None,
) -> list[Generation]:
    """Generate a load as any caller would."""
    chosen: Unmask = load.unmask
    return generate_requests(
        subject.model,
        load.requests,
        decoding_of(subject),
        strategy,
        batch_size=batch_size,
        unmask=chosen,
        hook=hook,
    )


@dataclass
class Forwards:
    """Watches generations and keeps the extents of every forward, for the floor to go through.

    Attributes:
        block: tokens of a block.
        seen: extents, in the order they were asked for.
    """

    block: int
    seen: list[Forward] = field(default_factory=list)
    asks: list[ForwardRequest] = field(default_factory=list)

    def wrap(self, job: RowTask[T]) -> RowTask[T]:
        """The same job, with its asks seen."""
        inner = job.steps

        def steps(this: RowTask[T], row: CacheRow) -> Steps[T]:
            answered = inner(this, row)
            ask = next(answered)
            while True:
                self.seen.append(extents(ask, row.length, self.block))
                self.asks.append(ask)
                try:
                    ask = answered.send((yield ask))
                except StopIteration as end:
                    result: T = end.value
                    return result

        return replace(job, steps=steps)


def forwards_of(
    subject: Subject, load: Load, strategy: ReuseStrategy[Any] | None = None
) -> Forwards:
    """The forwards that a load makes at batch 1."""
    hook = Forwards(subject.spec.block_size)
    generate(subject, load, strategy, hook=hook)
    return hook


@torch.inference_mode()
def plain_generate(subject: Subject, request: GenerationRequest, unmask: FixedUnmask) -> list[int]:
    """The plain sampler: no caches, no batches; every step forwards the whole text.

    Its tokens are those of the sampler without a block cache.
    """
    decoding = decoding_of(subject)
    size, mask = decoding.block_size, subject.spec.mask_id
    if mask is None:
        raise ValueError("the model names no mask token")
    text = list(request.prompt)
    limit = len(text) + (request.max_new_tokens or decoding.max_new_tokens)
    while len(text) < limit:
        if len(text) % size == 0:
            tokens, _ = _read(subject, text, [len(text) - 1], mask)
            text += tokens
            continue
        known = len(text)
        base = known // size * size
        text += [mask] * (base + size - known)
        for start in _starts(base, size, decoding.small_block_size):
            todo = [at for at in start if at >= known]
            while todo:
                tokens, sure = _read(subject, text, [at - 1 for at in todo], mask)
                chosen = unmask(sure, decoding.threshold)
                for i in chosen:
                    text[todo[i]] = tokens[i]
                todo = [at for i, at in enumerate(todo) if i not in chosen]
    return text[len(request.prompt) : limit]


def _starts(base: int, size: int, width: int) -> Iterator[range]:
    for at in range(base, base + size, width):
        yield range(at, at + width)


def _read(
    subject: Subject, text: list[int], at: list[int], mask: int
) -> tuple[list[int], list[float]]:
    device = subject.model.device
    seen = block_causal_mask(len(text), len(text), subject.spec.block_size, device)
    ids = torch.tensor([text], device=device)
    logits = subject.model.network.dense(ids, torch.arange(len(text), device=device), seen)
    tokens, sure = choose_greedy(logits[0, at], mask)
    return tokens.tolist(), sure.tolist()

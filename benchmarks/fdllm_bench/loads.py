"""Whole generations with the unmasking fixed, so that runs make the same forwards."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fdllm
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.row_task import CacheRow, ForwardHook, ForwardRequest, Prediction, RowTask, around
from fdllm.core.sampler import Generation, GenerationRequest
from fdllm.core.unmask import most_confident
from fdllm.timing.interleave import Rounds
from fdllm_bench.command import BenchCommand
from fdllm_bench.floor import ForwardShape
from fdllm_bench.models import BenchModel

T = TypeVar("T")


@dataclass(frozen=True)
class Load:
    """What is generated."""

    requests: tuple[GenerationRequest, ...]
    per_step: int  # columns unmasked a step, whatever the confidence; fewer where fewer are left
    block_cache: bool = True  # whether a step feeds its sub-block alone


def rounds_of(options: BenchCommand) -> Rounds:
    """Of steps: a round has several turns, so that a disturbance meets every lane."""
    return Rounds(options.repeats, warm_ups=2, turns=3, stretch_s=options.stretch_ms / 1e3)


def load_of(bench: BenchModel, prompt: int, new: int, per_step: int) -> Load:
    """One text behind a prompt of so many tokens."""
    return Load((GenerationRequest(bench.tokens(prompt), new),), per_step)


def generate(
    bench: BenchModel,
    load: Load,
    strategy: ReuseStrategy[Any] | None = None,
    batch_size: int = 1,
    hook: ForwardHook | None = None,
) -> list[Generation]:
    """Generate a load as any caller would."""

    def unmask(confidence: Sequence[float], threshold: float) -> list[int]:  # noqa: ARG001
        return most_confident(confidence, load.per_step)

    decoding = bench.decoding.model_copy(update={"use_block_cache": load.block_cache})
    return fdllm.generate(
        bench.model,
        load.requests,
        decoding,
        strategy,
        batch_size=batch_size,
        unmask=unmask,
        hook=hook,
    )


@dataclass
class Seen:
    """Sees every forward that rows ask for, in order, and its shape for the floor to go through."""

    bench: BenchModel
    requests: list[ForwardRequest] = field(default_factory=list)
    shapes: list[ForwardShape] = field(default_factory=list)

    def wrap(self, task: RowTask[T]) -> RowTask[T]:
        """The same task, with its forwards seen."""
        return around(task, self._forward)

    def _forward(
        self, _: RowTask[T], row: CacheRow, request: ForwardRequest
    ) -> Generator[ForwardRequest, Prediction, Prediction]:
        self.requests.append(request)
        self.shapes.append(self.bench.shape_of(request, row.length))
        return (yield request)


def forwards_of(bench: BenchModel, load: Load, strategy: ReuseStrategy[Any] | None = None) -> Seen:
    """The forwards that a load makes at batch 1."""
    seen = Seen(bench)
    generate(bench, load, strategy, hook=seen)
    return seen

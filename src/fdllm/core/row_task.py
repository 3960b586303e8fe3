"""What a row asks of the engine, and where it lives while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from fdllm.core.cache import RowCache, Snapshot
from fdllm.core.counts import Counts
from fdllm.core.reuse import AnyPlan, LayerPlan, LayerRun
from fdllm.core.schedule import Phase

T = TypeVar("T")
PREFILL_CHUNK_BLOCKS = 16
"""Blocks of a prompt in one forward: bounds the attention mask to 512 queries."""


@dataclass(frozen=True)
class ForwardRequest:
    """One forward that a row needs."""

    phase: Phase  # what it is for. PREFILL and COMMIT move the row's prefix on by ``len(ids)``.
    ids: tuple[int, ...]  # tokens fed; whole blocks for PREFILL
    plan: AnyPlan  # what each layer does
    start: int = 0  # the block's column that ``ids[0]`` stands at
    # indices into ``ids`` whose logits are read. Logits at i predict column i + 1.
    read: tuple[int, ...] = ()
    # for each read, the tokens whose log-probabilities are wanted
    targets: tuple[tuple[int, ...], ...] = ()
    # of a PREFILL that reads nothing: another request follows whatever comes of this one, so that
    # the row may be told to go on before it is carried out, and one forward serves both
    lazy: bool = False
    # more states of the same block, computed in the same forward under the same plan, which leaves
    # no layer out: each sees the keys and values of those ahead of it where it has none of its own
    drafts: tuple[ForwardRequest, ...] = ()
    drafting: bool = False  # it only drafts a state, see :mod:`fdllm.core.drafting`


@dataclass(frozen=True)
class Prediction:
    """What one row's logits say at the columns that were read."""

    tokens: tuple[int, ...]  # the chosen token of each column, never the mask token
    confidence: tuple[float, ...]  # its softmax probability
    # for each column read, the log-probabilities of the tokens asked for
    logprobs: tuple[tuple[float, ...], ...] = ()
    # what a guided plan came to; None where the plan asked for was none
    plan: LayerPlan | None = None
    change: float | None = None  # what the probe measured
    drafts: tuple[Prediction, ...] = ()  # the same of the drafts that were asked for

    def first(self, count: int) -> Prediction:
        """What it says of the first columns alone."""
        return replace(self, tokens=self.tokens[:count], confidence=self.confidence[:count])


NOTHING = Prediction((), ())


class CacheRow:
    """A running task's row of the cache: what the task may do there between two forwards."""

    def __init__(self, cache: RowCache, index: int) -> None:
        self.cache = cache
        self.index = index
        self.node = 0
        """Where the row's prefix ends in the prefix pool's tree; 0 is its root."""
        cache.reset(index)

    def save(self) -> Snapshot:
        """Keep the current block, to try several continuations of it."""
        return self.cache.save(self.index)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to where :meth:`save` was called."""
        self.cache.restore(self.index, snapshot)

    def keep(self, num_drafts: int, refresh: int | None = None) -> None:
        """Keep what the last forward stored of its first drafts; the others' goes.

        Args:
            num_drafts: drafts that are kept.
            refresh: the first draft behind them that was a REFRESH over a block cache, if any.
        """
        self.cache.outputs.keep(self.index, num_drafts)
        if refresh is not None:
            self.cache.draw_back(self.index, refresh)

    def stored(self, run: LayerRun, columns: Sequence[int]) -> Tensor:
        """What a reuse of ``run`` would put in for these columns of the block, [columns, hidden].

        Raises:
            NeverWrittenError: nothing is stored for one of them.
        """
        self.cache.outputs.check(run, (self.index,), (columns,))
        return self.cache.outputs.read(run, (self.index,), (columns,))[0]

    @property
    def length(self) -> int:
        """Tokens of its prefix."""
        return self.cache.lengths[self.index]


Steps = Generator[ForwardRequest, Prediction, T]


@dataclass
class RowTask(Generic[T]):
    """One row: its algorithm and what it has cost so far."""

    # the algorithm; its return value is the row's result
    steps: Callable[[RowTask[T], CacheRow], Steps[T]]
    capacity: int  # positions it may write
    rng: torch.Generator | None = None  # generator for sampling, the row's own; None where greedy
    number: int = 0  # of the text or pair that it answers, of several the first; named in an error
    counts: Counts = field(default_factory=Counts)  # forwards and layer calls so far
    seconds: float = 0.0  # this row's share of model time so far


class ForwardHook(Protocol):
    """May stand around a task, to see which forwards it asks for and what comes of them."""

    def wrap(self, task: RowTask[T]) -> RowTask[T]:
        """The task to run in its place, with the same result."""


Around = Callable[
    [RowTask[T], CacheRow, ForwardRequest], Generator[ForwardRequest, Prediction, Prediction]
]
"""Carries out, as requests of its own, a forward that a task asks for; what the task is told."""


def around(task: RowTask[T], forward: Around[T]) -> RowTask[T]:
    """The same task, with ``forward`` around each of its forwards: what a hook's ``wrap`` gives."""

    def steps(this: RowTask[T], row: CacheRow) -> Steps[T]:
        inner = task.steps(this, row)
        try:
            ask = next(inner)
            while True:
                ask = inner.send((yield from forward(this, row, ask)))
        except StopIteration as end:
            result: T = end.value
            return result

    return replace(task, steps=steps)


def prefill(
    ids: tuple[int, ...], plan: LayerPlan, block_size: int, *, read: bool, lazy: bool = False
) -> Iterator[ForwardRequest]:
    """The requests of a PREFILL of whole blocks, in chunks.

    Args:
        ids: whole blocks of tokens.
        plan: every layer, always.
        block_size: tokens of a block.
        read: whether the last logits, which predict the token behind, are wanted.
        lazy: whether the last chunk may wait for what is asked for behind it.
    """
    chunk = PREFILL_CHUNK_BLOCKS * block_size
    for at in range(0, len(ids), chunk):
        part, last = ids[at : at + chunk], at + chunk >= len(ids)
        reads = (len(part) - 1,) if read and last else ()
        yield ForwardRequest(Phase.PREFILL, part, plan, read=reads, lazy=lazy and last and not read)

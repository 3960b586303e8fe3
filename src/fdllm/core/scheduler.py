"""Which rows share the next forwards: few full forwards cost less than many small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Generic, TypeVar

from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.reuse import GuidedPlan, LayerPlan
from fdllm.core.row_task import (
    NOTHING,
    PREFILL_CHUNK_BLOCKS,
    CacheRow,
    ForwardRequest,
    Prediction,
    RowTask,
    Steps,
)
from fdllm.core.schedule import Phase

T = TypeVar("T")


@dataclass
class Running(Generic[T]):
    """A row that runs."""

    index: int  # its task's place in the list of tasks
    task: RowTask[T]  # the task
    row: CacheRow  # its row of the cache
    steps: Steps[T]  # the algorithm, which waits for the answer to ``request``
    request: ForwardRequest  # the forward it waits for
    # what it asks for behind a lazy ``request``, where it has been told to go on
    tail: ForwardRequest | None = None
    waited: int = 0  # forwards since it asked


@dataclass(frozen=True)
class Scheduled(Generic[T]):
    """A request in a forward."""

    running: Running[T]  # who asks
    request: ForwardRequest  # for what
    ahead: int = 0  # columns of the same row ahead of it in the forward
    draft: int = 0  # which draft of the row's it is, from 1 on; 0 where it is none

    @property
    def shape(self) -> tuple[int, int]:
        """Columns, and the length ahead of them: those that share both share a mask."""
        return len(self.request.ids), self.running.row.length + self.ahead


Batch = list[Scheduled[T]]


def next_batches(rows: Sequence[Running[T]], block: int, *, pooled: bool) -> list[Batch[T]]:
    """The forwards to run now: every PREFILL, and the one that most rows wait for.

    The others wait, so that more rows join them. Waiting counts like rows do, so that nobody waits
    for long. Requests of one width and one layer plan share a forward, whatever their phase.
    PREFILLs do whatever their widths, together with what a row asks for behind one. Of rows about
    to compute the same block one goes ahead and the others wait: the pool serves them in the next
    round.

    Args:
        rows: the rows that run.
        block: tokens of a block.
        pooled: whether a block that one row has computed is at hand for the others.
    """
    prefills: Batch[T] = []
    others: dict[tuple[object, ...], Batch[T]] = {}
    begun: set[tuple[int, tuple[int, ...]]] = set()
    for running in sorted(rows, key=lambda running: running.row.index):
        request = running.request
        if request.phase is not Phase.PREFILL:
            # A guided plan is decided for its forward, so each row has its own.
            own = running.row.index if isinstance(request.plan, GuidedPlan) else None
            key = (len(request.ids), request.plan, own)
            others.setdefault(key, []).append(Scheduled(running, request))
            continue
        first = (running.row.node, request.ids[:block])
        may_wait = pooled and len(request.ids) > (block if request.read else 0)
        if not (may_wait and first in begun):
            begun.add(first)
            prefills.append(Scheduled(running, request))
    batches: list[Batch[T]] = []
    if any(one.request.lazy or len(one.request.ids) > block for one in prefills):
        batches += _chunks(prefills, block)
    elif prefills:
        alike = others.pop((block, prefills[0].request.plan, None), [])
        batches.append(sorted([*alike, *prefills], key=lambda one: one.running.row.index))
    if others:
        next_up = max(others.values(), key=lambda b: len(b) + max(x.running.waited for x in b))
        batches.append(next_up)
    return [_with_drafts(batch) for batch in batches]


def _with_drafts(batch: Batch[T]) -> Batch[T]:
    """Every row's state at hand, then every first draft, and so on."""
    drafts = [
        Scheduled(one.running, request, draft=i)
        for one in batch
        for i, request in enumerate(one.request.drafts, 1)
    ]
    return batch + sorted(drafts, key=lambda one: (one.draft, len(one.request.ids)))


def _chunks(prefills: Batch[T], block: int) -> Iterator[Batch[T]]:
    """PREFILLs and their tails in forwards of about as many columns as a row's longest chunk.

    Requests of one shape stand side by side, and every tail behind all PREFILLs.
    """
    most = (PREFILL_CHUNK_BLOCKS + 1) * block
    chunk: Batch[T] = []
    tails: Batch[T] = []
    columns = 0
    for one in sorted(prefills, key=lambda one: one.shape):
        tail = _tail(one, tails[0].request.plan if tails else None, block)
        width = len(one.request.ids) + (0 if tail is None else block)
        if chunk and columns + width > most:
            yield chunk + sorted(tails, key=lambda one: one.shape)
            chunk, tails, columns = [], [], 0
        chunk.append(one)
        tails += [] if tail is None else [tail]
        columns += width
    yield chunk + sorted(tails, key=lambda one: one.shape)


def _tail(ahead: Scheduled[T], plan: object, block: int) -> Scheduled[T] | None:
    """What the row asks for behind its lazy PREFILL, if that may go into the same forward.

    It may where it is a whole block under a plan that computes every layer; ``plan`` is the one
    that the forward's other tails have, if there are some.
    """
    running = ahead.running
    if ahead.request.lazy and running.tail is None:
        running.tail = running.steps.send(NOTHING)
    tail = running.tail
    if tail is None or tail.phase is not Phase.REFRESH or len(tail.ids) != block:
        return None
    if not isinstance(tail.plan, LayerPlan) or tail.plan.reuse or tail.plan.partial:
        return None
    if plan is not None and tail.plan != plan:
        return None
    return Scheduled(running, tail, len(ahead.request.ids))


def answers_of(batch: Batch[T], predictions: Sequence[Prediction]) -> dict[int, Prediction]:
    """What each row is to be told, by its index; a row whose tail is left over asks for that."""
    answers: dict[int, Prediction] = {}
    for one, told in zip(batch, predictions, strict=True):
        index = one.running.index
        first = answers[index] if one.draft else None
        answers[index] = told if first is None else replace(first, drafts=(*first.drafts, told))
    done = {id(one.request) for one in batch}
    for running in {one.running.index: one.running for one in batch}.values():
        if running.tail is None:
            continue
        if id(running.tail) not in done:
            del answers[running.index]
        running.request, running.tail = running.tail, None
    return answers


def forward_batch(batch: Batch[T], block: int) -> ForwardBatch:
    """Where the requests of a batch read and write.

    One window, or one for each shape; of drafts one for each place in the order of their row's.
    """
    # Rows of one block and less share a window whatever their lengths.
    ragged = all(len(one.request.ids) <= block and not one.ahead for one in batch)

    def window(one: Scheduled[T]) -> tuple[int, int, int]:
        width, length = one.shape
        return (one.draft, width, 0) if ragged else (one.ahead > 0, width, length)

    return ForwardBatch(tuple(_window(list(rows), block) for _, rows in groupby(batch, window)))


def _window(batch: Batch[T], block: int) -> Window:
    width = len(batch[0].request.ids)
    lengths = [one.running.row.length + one.ahead for one in batch]
    return Window(
        tuple(one.running.row.index for one in batch),
        tuple(n + one.request.start for n, one in zip(lengths, batch, strict=True)),
        width,
        tuple(n + max(width, block) for n in lengths),
        causal_block=block if width > block else None,
        stores=batch[0].request.phase is not Phase.PREFILL,
        first_columns=tuple(one.request.start for one in batch),
        draft=batch[0].draft,
    )

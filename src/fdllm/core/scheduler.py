"""Which rows share the next forwards: few full forwards cost less than many small ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, TypeVar

from fdllm.core.cache import Window
from fdllm.core.layerplan import LayerPlan, ProbePlan
from fdllm.core.row_task import (
    NOTHING,
    PREFILL_CHUNK_BLOCKS,
    CacheRow,
    ForwardRequest,
    RowTask,
    Steps,
)
from fdllm.core.schedule import Phase
from fdllm.core.unmask import Prediction

T = TypeVar("T")


@dataclass
class Running(Generic[T]):
    """A row that runs.

    Attributes:
        index: its job's place in the list of jobs.
        job: the job.
        row: its slot of the cache.
        steps: the algorithm, which waits for the answer to ``ask``.
        ask: the forward it waits for.
        tail: what it asks for behind a lazy ``ask``, where it has been told to go on.
        waited: forwards since it asked.
    """

    index: int
    job: RowTask[T]
    row: CacheRow
    steps: Steps[T]
    ask: ForwardRequest
    tail: ForwardRequest | None = None
    waited: int = 0


@dataclass(frozen=True)
class Scheduled(Generic[T]):
    """An ask in a forward.

    Attributes:
        row: who asks.
        ask: for what.
        ahead: columns of the same row ahead of it in the forward.
    """

    row: Running[T]
    ask: ForwardRequest
    ahead: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """Columns, and the length ahead of them: parts that share both share a mask."""
        return len(self.ask.ids), self.row.row.length + self.ahead


Batch = list[Scheduled[T]]


def next_groups(active: Sequence[Running[T]], block: int, *, pooled: bool) -> list[Batch[T]]:
    """The groups to run now: every PREFILL, and the one that most rows wait for.

    The others wait, so that more rows join them. Waiting counts like rows do, so that nobody waits
    for long.

    Args:
        active: the rows that run.
        block: tokens of a block.
        pooled: whether a block that one row has computed is at hand for the others.
    """
    prefills, others = _groups(active, block, pooled=pooled)
    if others:
        prefills.append(max(others, key=lambda g: len(g) + max(part.row.waited for part in g)))
    return prefills


def _groups(
    active: Sequence[Running[T]], block: int, *, pooled: bool
) -> tuple[list[Batch[T]], list[Batch[T]]]:
    """Asks that can share a forward: with a PREFILL among them, and others.

    Asks of one width and one layer plan do, whatever their phase. PREFILLs do whatever their
    widths, together with what a row asks for behind one. Of rows about to compute the same block
    one goes ahead and the others wait: the pool serves them in the next round.
    """
    prefills: Batch[T] = []
    groups: dict[tuple[object, ...], Batch[T]] = {}
    begun: set[tuple[int, tuple[int, ...]]] = set()
    for row in sorted(active, key=lambda row: row.row.slot):
        ask = row.ask
        if ask.phase is not Phase.PREFILL:
            # A probe decides for its forward, so each row has its own.
            own = row.row.slot if isinstance(ask.plan, ProbePlan) else None
            groups.setdefault((len(ask.ids), ask.plan, own), []).append(Scheduled(row, ask))
            continue
        first = (row.row.node, ask.ids[:block])
        may_wait = pooled and len(ask.ids) > (block if ask.read else 0)
        if not (may_wait and first in begun):
            begun.add(first)
            prefills.append(Scheduled(row, ask))
    others = list(groups.values())
    if any(part.ask.lazy or len(part.ask.ids) > block for part in prefills):
        return list(_chunks(prefills, block)), others
    if not prefills:
        return [], others
    alike = groups.pop((block, prefills[0].ask.plan, None), [])
    return [sorted([*alike, *prefills], key=lambda p: p.row.row.slot)], list(groups.values())


def _chunks(prefills: Batch[T], block: int) -> Iterator[Batch[T]]:
    """PREFILLs and their tails in forwards of about as many columns as a row's longest chunk.

    Parts of one shape stand side by side, and every tail behind all PREFILLs.
    """
    most = (PREFILL_CHUNK_BLOCKS + 1) * block
    chunk: Batch[T] = []
    tails: Batch[T] = []
    columns = 0
    for part in sorted(prefills, key=lambda part: part.shape):
        tail = _tail(part, tails[0].ask.plan if tails else None, block)
        width = len(part.ask.ids) + (0 if tail is None else block)
        if chunk and columns + width > most:
            yield chunk + sorted(tails, key=lambda part: part.shape)
            chunk, tails, columns = [], [], 0
        chunk.append(part)
        tails += [] if tail is None else [tail]
        columns += width
    if chunk:
        yield chunk + sorted(tails, key=lambda part: part.shape)


def _tail(part: Scheduled[T], plan: object, block: int) -> Scheduled[T] | None:
    """What the row asks for behind its lazy PREFILL, if that may go into the same forward.

    It may where it is a whole block under a plan that computes every layer; ``plan`` is the one
    that the forward's other tails have, if there are some.
    """
    row = part.row
    if part.ask.lazy and row.tail is None:
        row.tail = row.steps.send(NOTHING)
    ask = row.tail
    if ask is None or ask.phase is not Phase.REFRESH or len(ask.ids) != block:
        return None
    if not isinstance(ask.plan, LayerPlan) or ask.plan.reuse or ask.plan.partial:
        return None
    if plan is not None and ask.plan != plan:
        return None
    return Scheduled(row, ask, len(part.ask.ids))


def answers_of(group: Batch[T], predictions: Sequence[Prediction]) -> dict[int, Prediction]:
    """What each row is to be told, by its index; a row whose tail is left over asks for that."""
    answers = {p.row.index: told for p, told in zip(group, predictions, strict=True)}
    done = {id(part.ask) for part in group}
    for row in {part.row.index: part.row for part in group}.values():
        if row.tail is None:
            continue
        if id(row.tail) not in done:
            del answers[row.index]
        row.ask, row.tail = row.tail, None
    return answers


def windows_of(group: Batch[T], block: int) -> list[Window]:
    """Where the parts of a group read and write: one window, or one for each shape."""
    width = len(group[0].ask.ids)
    if width <= block and all(len(p.ask.ids) == width and not p.ahead for p in group):
        return [_window(group, block)]
    return [
        _window(list(parts), block)
        for _, parts in groupby(group, lambda part: (part.ahead > 0, *part.shape))
    ]


def _window(parts: Batch[T], block: int) -> Window:
    width = len(parts[0].ask.ids)
    lengths = [part.row.row.length + part.ahead for part in parts]
    return Window(
        tuple(part.row.row.slot for part in parts),
        tuple(n + part.ask.start for n, part in zip(lengths, parts, strict=True)),
        width,
        tuple(n + max(width, block) for n in lengths),
        causal_block=block if width > block else None,
        stores=parts[0].ask.phase is not Phase.PREFILL,
    )

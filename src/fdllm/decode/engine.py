"""Runs many rows through the network: groups what they ask for into forwards, and keeps the caches.

Each row is a *job*: a generator that reads like the algorithm of one sequence. It yields an
:class:`Ask`, one forward it needs, and is sent the :class:`Prediction` that came of it. The engine
owns the slots: jobs wait for a free one, asks of equal shape and equal layer plan share a forward,
and a job that ends frees its slot for the next at once. A row therefore never depends on its
neighbours, and batch size is a matter of speed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fdllm.config import Decoding
from fdllm.decode.counts import Counts
from fdllm.decode.unmask import Prediction, choose_greedy, choose_sampled
from fdllm.errors import FdllmError, UsageError
from fdllm.model.cache import RowCache, Window
from fdllm.model.weights import Model
from fdllm.reuse import LayerPlan
from fdllm.schedule import Phase, num_blocks

T = TypeVar("T")
PREFILL_CHUNK_BLOCKS = 16
"""Blocks of a prompt in one forward: bounds the attention mask to 512 queries."""


@dataclass(frozen=True)
class Ask:
    """One forward that a row needs.

    Attributes:
        phase: what it is for. PREFILL and COMMIT move the row's prefix on by ``len(ids)``.
        ids: tokens fed; whole blocks for PREFILL.
        plan: what each layer does.
        start: the block's column that ``ids[0]`` stands at.
        read: indices into ``ids`` whose logits are read. Logits at i predict column i + 1.
        targets: for each read, the token whose log-probability is wanted; none where empty.
    """

    phase: Phase
    ids: tuple[int, ...]
    plan: LayerPlan
    start: int = 0
    read: tuple[int, ...] = ()
    targets: tuple[int, ...] = ()


@dataclass
class Job(Generic[T]):
    """One row: its algorithm and what it has cost so far.

    Attributes:
        steps: the algorithm; its return value is the row's result.
        capacity: positions it may write.
        rng: generator for sampling, the row's own; None where greedy.
        counts: forwards and layer calls so far.
        seconds: this row's share of model time so far.
        slot: its row of the cache while it runs.
    """

    steps: Callable[[Job[T]], Generator[Ask, Prediction, T]]
    capacity: int
    rng: torch.Generator | None = None
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    slot: int = -1


@dataclass
class _Active(Generic[T]):
    index: int
    job: Job[T]
    steps: Generator[Ask, Prediction, T]
    ask: Ask


def resolve(decoding: Decoding, model: Model) -> Decoding:
    """Fill what ``decoding`` leaves to the checkpoint: mask token and stop tokens.

    Raises:
        UsageError: a token is not in the vocabulary.
        FdllmError: the checkpoint names no mask token.
    """
    mask = decoding.mask_id if decoding.mask_id is not None else model.spec.mask_id
    stop = decoding.stop_token if decoding.stop_token is not None else model.spec.stop_tokens
    if mask is None:
        raise FdllmError(f"model '{model.name}' names no mask token; set mask_id")
    filled = decoding.model_copy(update={"mask_id": mask, "stop_token": stop})
    for token in (mask, *filled.stop_tokens):
        if not 0 <= token < model.spec.vocab_size:
            raise UsageError(
                f"token {token} is not in the vocabulary of model '{model.name}' "
                f"(0..{model.spec.vocab_size - 1}); check mask_id and stop_token"
            )
    return filled


class Engine:
    """The network, the caches of a batch, and the clock.

    Args:
        model: the checkpoint.
        decoding: resolved settings, see :func:`resolve`.
        batch_size: rows that run at once, at most.
    """

    def __init__(self, model: Model, decoding: Decoding, batch_size: int) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size must be 1 or more; got {batch_size}")
        self.model = model
        self.decoding = decoding
        self.batch_size = batch_size

    @torch.inference_mode()
    def run(self, jobs: list[Job[T]]) -> Iterator[tuple[int, T]]:
        """Run all jobs; yield ``(index, result)`` as each one ends.

        Raises:
            FdllmError: a job needs more positions than the model has.
        """
        if not jobs:
            return
        cache = self._cache(jobs)
        waiting = iter(enumerate(jobs))
        free = list(range(cache.num_rows))[::-1]
        active: list[_Active[T]] = []
        while True:
            yield from self._admit(cache, waiting, free, active)
            if not active:
                return
            for group in _groups(active, cache):
                for row, prediction in zip(group, self._forward(group, cache), strict=True):
                    try:
                        row.ask = row.steps.send(prediction)
                    except StopIteration as end:
                        active.remove(row)
                        free.append(row.job.slot)
                        yield row.index, end.value

    def _admit(
        self,
        cache: RowCache,
        waiting: Iterator[tuple[int, Job[T]]],
        free: list[int],
        active: list[_Active[T]],
    ) -> Iterator[tuple[int, T]]:
        """Give free slots to waiting jobs; a job that needs no forward ends here."""
        while free:
            index, job = next(waiting, (-1, None))
            if job is None:
                return
            job.slot = free.pop()
            cache.reset(job.slot)
            steps = job.steps(job)
            try:
                active.append(_Active(index, job, steps, next(steps)))
            except StopIteration as end:
                free.append(job.slot)
                yield index, end.value

    def _cache(self, jobs: Iterable[Job[T]]) -> RowCache:
        jobs = list(jobs)
        block = self.decoding.block_size
        spec = self.model.spec
        capacity = num_blocks(max(job.capacity for job in jobs), block) * block
        if capacity > spec.max_positions:
            raise FdllmError(
                f"a sequence needs {capacity} positions and model '{self.model.name}' has "
                f"{spec.max_positions}; shorten the prompt or lower max_new_tokens"
            )
        return RowCache(
            spec,
            num_rows=min(self.batch_size, len(jobs)),
            capacity=capacity,
            block_size=block,
            like=self.model.network.embedding.weight,
        )

    def _forward(self, group: list[_Active[T]], cache: RowCache) -> list[Prediction]:
        """One forward for asks of one shape, timed to the moment the host has the numbers."""
        began = self._now()
        asks = [row.ask for row in group]
        first = asks[0]
        block = self.decoding.block_size
        rows = tuple(row.job.slot for row in group)
        lengths = [cache.lengths[slot] for slot in rows]
        width = len(first.ids)
        starts = tuple(n + ask.start for n, ask in zip(lengths, asks, strict=True))
        whole = first.phase is Phase.PREFILL
        window = Window(
            rows,
            starts,
            width,
            tuple(n + (width if whole else block) for n in lengths),
            causal_block=block if whole and width > block else None,
        )
        ids = torch.tensor([ask.ids for ask in asks], device=self.model.device)
        columns = [ask.start for ask in asks]
        hidden = self.model.network(ids, cache, window, first.plan, columns)
        predictions = self._read(group, hidden)
        seconds = (self._now() - began) / len(group)
        for row, ask in zip(group, asks, strict=True):
            if ask.phase in (Phase.PREFILL, Phase.COMMIT):
                cache.commit(row.job.slot, width)
            row.job.counts.add(ask.phase, ask.plan, width)
            row.job.seconds += seconds
        return predictions

    def _read(self, group: list[_Active[T]], hidden: Tensor) -> list[Prediction]:
        """Head, choice and log-probabilities of the columns that are read, and no others."""
        flat = [i * hidden.shape[1] + c for i, row in enumerate(group) for c in row.ask.read]
        if not flat:
            return [Prediction((), ()) for _ in group]
        picked = hidden.reshape(-1, hidden.shape[-1])[flat]
        logits = self.model.network.head(picked)
        tokens, confidence = self._choose(group, logits)
        logprobs: list[float] = []
        best: list[int] = []
        if any(row.ask.targets for row in group):
            wanted = [t for row in group for t in (row.ask.targets or [0] * len(row.ask.read))]
            index = torch.tensor(wanted, device=logits.device)[:, None]
            logprobs = logits.float().log_softmax(dim=-1).gather(1, index)[:, 0].tolist()
            best = choose_greedy(logits, self._mask)[0].tolist()
        out, at = [], 0
        chosen, sure = tokens.tolist(), confidence.tolist()
        for row in group:
            span = slice(at, at + len(row.ask.read))
            at = span.stop
            targets = row.ask.targets
            out.append(
                Prediction(
                    tuple(chosen[span]),
                    tuple(sure[span]),
                    tuple(logprobs[span]) if targets else (),
                    tuple(b == t for b, t in zip(best[span], targets, strict=False)),
                )
            )
        return out

    def _choose(self, group: list[_Active[T]], logits: Tensor) -> tuple[Tensor, Tensor]:
        if self.decoding.temperature == 0.0:
            return choose_greedy(logits, self._mask)
        draws = [
            torch.rand(len(row.ask.read), generator=row.job.rng, dtype=torch.float64)
            for row in group
        ]
        return choose_sampled(
            logits,
            self._mask,
            self.decoding.temperature,
            self.decoding.top_p,
            torch.cat(draws).to(logits.device),
        )

    @property
    def _mask(self) -> int:
        if self.decoding.mask_id is None:
            raise ValueError("decoding is not resolved: mask_id is None")
        return self.decoding.mask_id

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def _groups(active: list[_Active[T]], cache: RowCache) -> list[list[_Active[T]]]:
    """Asks that can share a forward: one phase, one width, one layer plan.

    PREFILLs of several blocks share one only from equal lengths, because they share a mask.
    """
    groups: dict[tuple[object, ...], list[_Active[T]]] = {}
    for row in sorted(active, key=lambda row: row.job.slot):
        ask = row.ask
        at = cache.lengths[row.job.slot] if ask.phase is Phase.PREFILL else None
        groups.setdefault((ask.phase, len(ask.ids), ask.plan, at), []).append(row)
    return list(groups.values())


def prefill(ids: tuple[int, ...], plan: LayerPlan, block_size: int) -> Generator[Ask, Prediction, Prediction]:
    """Ask for the PREFILL of whole blocks, in chunks; the last chunk's last logits are read."""
    chunk = PREFILL_CHUNK_BLOCKS * block_size
    seen = Prediction((), ())
    for at in range(0, len(ids), chunk):
        part = ids[at : at + chunk]
        last = at + chunk >= len(ids)
        seen = yield Ask(Phase.PREFILL, part, plan, read=(len(part) - 1,) if last else ())
    return seen

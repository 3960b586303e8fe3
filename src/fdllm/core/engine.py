"""Runs many rows through the network: groups what they ask for into forwards, and keeps the caches.

Each row is a :class:`RowTask`: a generator that reads like the algorithm of one sequence. It yields
:class:`ForwardRequest`, one forward it needs, and is sent the :class:`Prediction` that came of it.
The engine owns the cache rows: tasks wait for a free one, requests of equal shape and equal layer
plan share a forward, and a task that ends frees its row for the next at once. A row therefore never
depends on its neighbours, and batch size is a matter of speed alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from fdllm.checkpoint.special_tokens import no_end_token
from fdllm.core.attention import AttentionBackend
from fdllm.core.cache import RowCache
from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.cost import Cost, Fed, forward_costs
from fdllm.core.forward_batch import ForwardBatch
from fdllm.core.model_runner import ModelRunner
from fdllm.core.prefix_cache import PrefixPool
from fdllm.core.reuse import LayerPlan
from fdllm.core.row_task import NOTHING, CacheRow, Prediction, RowTask
from fdllm.core.schedule import Phase, num_blocks
from fdllm.core.scheduler import Batch, Running, answers_of, forward_batch, next_batches
from fdllm.core.unmask import sample_tokens
from fdllm.errors import FdllmError, UsageError

T = TypeVar("T")


class NotFiniteError(FdllmError):
    """A logit that was read is NaN or infinite: whatever is chosen from it means nothing.

    Attributes:
        request: number of the text or pair, counted from 0.
        reason: the rest of the message, for whoever knows a better name than a number.
    """

    def __init__(self, request: int, phase: Phase, dtype: torch.dtype) -> None:
        self.request = request
        kind = str(dtype).removeprefix("torch.")
        remedy = (
            "float16 ends at 65,504: use --dtype float32, or bfloat16 where the device has it"
            if dtype == torch.float16
            else "its weights or its config.json are damaged: fetch the checkpoint again"
        )
        self.reason = f"a {phase.name} in {kind} gave a NaN or infinite logit; {remedy}"
        super().__init__(f"request {request}: {self.reason}")


def resolve(decoding: Decoding, model: Model) -> Decoding:
    """Fill what ``decoding`` leaves to the checkpoint: mask token and stop tokens.

    Raises:
        UsageError: a token is not in the vocabulary, or the block is not the checkpoint's.
        FdllmError: the checkpoint names no mask token, or no end of a text.
    """
    spec = model.spec
    if spec.block_is_fixed and decoding.block_size != spec.block_size:
        raise UsageError(
            f"block_size is {decoding.block_size}, and model '{model.name}' was trained with "
            f"blocks of {spec.block_size} (bd_size in its config.json); decode with that"
        )
    mask = decoding.mask_id if decoding.mask_id is not None else model.spec.mask_id
    stop = decoding.stop_token if decoding.stop_token is not None else model.spec.stop_tokens
    if mask is None:
        raise FdllmError(f"model '{model.name}' names no mask token; set mask_id")
    if decoding.stop_token is None and not spec.stop_tokens:
        raise no_end_token(model.name)
    filled = decoding.model_copy(update={"mask_id": mask, "stop_token": stop})
    for token in (mask, *filled.stop_tokens):
        if not 0 <= token < model.spec.vocab_size:
            raise UsageError(
                f"token {token} is not in the vocabulary of model '{model.name}' "
                f"(0..{model.spec.vocab_size - 1}); check mask_id and stop_token"
            )
    return filled


def check_tokens(tokens: Sequence[int], model: Model) -> None:
    """Refuse what is not in the vocabulary, before the device does so in its own words.

    Raises:
        UsageError: a token is outside ``0 .. vocab_size - 1``.
    """
    for token in tokens:
        if not 0 <= token < model.spec.vocab_size:
            raise UsageError(
                f"token {token} is not in the vocabulary of model '{model.name}' "
                f"(0..{model.spec.vocab_size - 1}); was it tokenised for another model?"
            )


class Engine:
    """The network, the caches of a batch, and the clock.

    Args:
        model: the checkpoint.
        decoding: resolved settings, see :func:`resolve`.
        batch_size: rows that run at once, at most.
        prefix_cache_gib: memory for prompt blocks shared between rows; 0 shares nothing.
    """

    def __init__(
        self, model: Model, decoding: Decoding, batch_size: int, prefix_cache_gib: float = 0.0
    ) -> None:
        if batch_size < 1:
            raise UsageError(f"batch size must be 1 or more; got {batch_size}")
        if prefix_cache_gib < 0:
            raise UsageError(f"prefix cache must be 0 GiB or more; got {prefix_cache_gib}")
        self.model = model
        self.decoding = decoding
        self.batch_size = batch_size
        self.pool: PrefixPool | None = None
        if prefix_cache_gib:
            like = model.network.embedding.weight
            num_bytes = prefix_cache_gib * 2**30
            self.pool = PrefixPool(model.spec, decoding.block_size, num_bytes, like)

    @torch.inference_mode()
    def run(
        self, tasks: list[RowTask[T]], go_on: Callable[[], bool] = lambda: True
    ) -> Iterator[tuple[int, T]]:
        """Run all tasks; yield ``(index, result)`` as each one ends, in any order.

        Args:
            tasks: what to run.
            go_on: asked before a task starts; where it says no, those that run are finished and
                the others never start.

        Raises:
            FdllmError: a task needs more positions than the model has.
            NotFiniteError: a logit that a task reads is NaN or infinite.
        """
        if not tasks:
            return
        backend, runner = self._backend(tasks), self.model.runner()
        cache = backend.cache
        waiting = iter(enumerate(tasks))
        free = list(range(cache.num_rows))[::-1]
        running: list[Running[T]] = []
        while True:
            yield from self._admit(cache, waiting, free, running, go_on)
            if not running:
                self.model.take_back(backend)
                return
            answers = self._answer_from_pool(running)
            asking = [one for one in running if one.index not in answers]
            pooled = self.pool is not None
            for batch in next_batches(asking, self.decoding.block_size, pooled=pooled):
                answers |= self._forward(batch, runner, backend)
            for one in running:
                one.waited += 1
            for one in [one for one in running if one.index in answers]:
                try:
                    one.request, one.waited = one.steps.send(answers[one.index]), 0
                except StopIteration as end:
                    running.remove(one)
                    free.append(one.row.index)
                    yield one.index, end.value

    def _admit(
        self,
        cache: RowCache,
        waiting: Iterator[tuple[int, RowTask[T]]],
        free: list[int],
        running: list[Running[T]],
        go_on: Callable[[], bool],
    ) -> Iterator[tuple[int, T]]:
        """Give free cache rows to waiting tasks; a task that needs no forward ends here."""
        while free and go_on():
            index, task = next(waiting, (-1, None))
            if task is None:
                return
            row = CacheRow(cache, free.pop())
            steps = task.steps(task, row)
            try:
                running.append(Running(index, task, row, steps, next(steps)))
            except StopIteration as end:
                free.append(row.index)
                yield index, end.value

    def _backend(self, tasks: list[RowTask[T]]) -> AttentionBackend[Any]:
        block, spec = self.decoding.block_size, self.model.spec
        capacity = num_blocks(max(task.capacity for task in tasks), block) * block
        if capacity > spec.max_positions:
            raise FdllmError(
                f"a sequence needs {capacity} positions and model '{self.model.name}' has "
                f"{spec.max_positions}; shorten the prompt or lower max_new_tokens"
            )
        rows = min(self.batch_size, len(tasks))
        return self.model.backend(num_rows=rows, capacity=capacity, block_size=block)

    def _answer_from_pool(self, running: list[Running[T]]) -> dict[int, Prediction]:
        """Load known blocks of the PREFILLs at hand; answer those that need no forward."""
        answers: dict[int, Prediction] = {}
        if self.pool is None:
            return answers
        block = self.decoding.block_size
        for one in running:
            row, request = one.row, one.request
            if request.phase is not Phase.PREFILL:
                continue
            # Where logits are read, the last block must be forwarded, known or not.
            usable = request.ids[:-block] if request.read else request.ids
            began = self._now()
            known = self.pool.load(row, usable)
            if known:
                one.task.counts.share(Phase.PREFILL, known)
                one.task.seconds += self._now() - began
                read = tuple(c - known for c in request.read)
                one.request = replace(request, ids=request.ids[known:], read=read)
            if not one.request.ids:
                answers[one.index] = NOTHING
        return answers

    def _forward(
        self, batch: Batch[T], runner: ModelRunner, backend: AttentionBackend[Any]
    ) -> dict[int, Prediction]:
        """One forward, timed to the moment the host has the numbers; answers by row."""
        began, cache = self._now(), backend.cache
        requests = [one.request for one in batch]
        at = forward_batch(batch, self.decoding.block_size)
        flat = [token for request in requests for token in request.ids]
        ids = torch.tensor(flat, device=self.model.device)
        read, first = list[int](), 0
        for one in batch:
            read += [first + column for column in one.request.read]
            first += len(one.request.ids)
            if one.request.phase in (Phase.PREFILL, Phase.COMMIT):
                # Now, as it ends the block: what a tail stores in this forward is the next one's.
                cache.commit(one.running.row.index, len(one.request.ids))
        done = runner.forward(ids, backend, at, requests[-1].plan, read)
        reading = [(one.request, one.running.task.rng) for one in batch]
        predictions = sample_tokens(
            runner.head, done.hidden, reading, self.decoding, backend.choose
        )
        for one, told in zip(batch, predictions, strict=True):
            if math.isnan(sum(told.confidence)):
                number = one.running.task.number
                raise NotFiniteError(number, one.request.phase, self.model.dtype)
        if done.plan is not requests[-1].plan:
            predictions = [replace(p, plan=done.plan, change=done.change) for p in predictions]
        if self.pool is not None:
            for one in batch:
                if one.request.phase is Phase.PREFILL:
                    self.pool.keep(one.running.row, one.request.ids)
        seconds = (self._now() - began) / len(flat)
        for one, cost in zip(batch, self._costs(batch, at, done.plan), strict=True):
            task, request = one.running.task, one.request
            plan = request.plan if isinstance(request.plan, LayerPlan) else done.plan
            task.counts.add(
                request.phase,
                plan,
                len(request.ids),
                cost,
                feed_forward=self.model.spec.feed_forward_share,
                drafting=request.drafting,
                drafted=one.draft > 0,
            )
            task.seconds += seconds * len(request.ids)
        return answers_of(batch, predictions)

    def _costs(self, batch: Batch[T], at: ForwardBatch, carried: LayerPlan) -> list[Cost]:
        """What each request costs, alone or with what the same row asks for in this forward."""
        extents = [extent for window in at.windows for extent in window.extents]
        rows: dict[int, list[int]] = {}
        for i, one in enumerate(batch):
            rows.setdefault(one.running.index, []).append(i)
        costs: dict[int, Cost] = {}
        for places in rows.values():
            asked = batch[places[-1]].request.plan
            plan = asked if isinstance(asked, LayerPlan) else carried
            parts = [
                Fed(len(r.ids), extents[i], len(r.read), r.phase is not Phase.PREFILL)
                for i in places
                for r in [batch[i].request]
            ]
            found = forward_costs(self.model.spec, self.model.dtype.itemsize, asked, plan, parts)
            costs |= zip(places, found, strict=True)
        return [costs[i] for i in range(len(batch))]

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

"""Stands around a row's algorithm, keeps each forward as a step, and may ask what reuse cost.

A row is a generator that yields the forwards it needs (:mod:`fdllm.core.row_task`), so everything
is seen from around it: nothing in the engine or the model knows of a trace, and without one nothing
is paid. Staleness takes a second forward with every layer computed, after the row's block has been
put back to where it was; then the block is put back once more. Neither the row's caches nor its
random numbers, counters and clock notice.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fdllm.core.cache import Snapshot
from fdllm.core.config import Unmask
from fdllm.core.counts import Counts
from fdllm.core.reuse import LayerPlan, LayerRun
from fdllm.core.row_task import CacheRow, ForwardRequest, Prediction, RowTask, around
from fdllm.core.schedule import Phase, next_step_index
from fdllm.trace.steps import ForwardTrace, Guess, Staleness, layer_letters

T = TypeVar("T")
DENOISING = (Phase.REFRESH, Phase.DENOISE)
_TINY = 1e-30  # a fresh value of nothing but zeros is as far from itself as 0


@dataclass
class Seen:
    """One forward, as it was asked for and answered."""

    ask: ForwardRequest  # what the row asked for
    told: Prediction  # what it was told
    plan: LayerPlan  # what the layers did
    length: int  # tokens of the row's prefix ahead of the forward
    computed: int  # layer calls that the row's counters booked for it as made
    reused: int  # layer calls that they booked as saved
    # indices into the prediction that were unmasked; None until the rule has spoken, and for ever
    # where no rule is asked
    chosen: tuple[int, ...] | None = None
    # staleness of the reused runs; empty where it was not asked for
    stale: tuple[Staleness, ...] = ()


@dataclass
class Watcher:
    """A :class:`~fdllm.core.row_task.ForwardHook` that keeps what it sees; of one row at a time."""

    staleness: bool = False  # compute how far each reused value is from a fresh one
    seen: list[Seen] = field(default_factory=list)  # the row's forwards so far, in order

    def wrap(self, job: RowTask[T]) -> RowTask[T]:
        """The same job, watched."""
        return around(job, self._forward)

    def rule(self, unmask: Unmask) -> Unmask:
        """The same rule of unmasking, with its choices kept."""

        def watched(confidence: Sequence[float], threshold: float) -> list[int]:
            chosen = unmask(confidence, threshold)
            self.seen[-1].chosen = tuple(chosen)
            return chosen

        return watched

    def _forward(
        self, job: RowTask[T], row: CacheRow, ask: ForwardRequest
    ) -> Generator[ForwardRequest, Prediction, Prediction]:
        """The forward that was asked for, kept; then perhaps the fresh one."""
        asked = self.staleness and ask.phase in DENOISING
        before = row.save() if asked else None
        length, booked = row.length, replace(job.counts[ask.phase])
        told = yield replace(ask, lazy=False)  # each forward by itself, to be seen
        plan = told.plan or ask.plan
        if not isinstance(plan, LayerPlan):
            raise TypeError(f"a guided plan came to none: {plan}")
        now = job.counts[ask.phase]
        seen = Seen(
            ask,
            told,
            plan,
            length,
            now.computed - booked.computed,
            now.reused - booked.reused,
        )
        if before is not None:
            seen.stale = yield from self._stale(job, row, ask, plan, before)
        self.seen.append(seen)
        return told

    @staticmethod
    def _stale(
        job: RowTask[T], row: CacheRow, ask: ForwardRequest, plan: LayerPlan, before: Snapshot
    ) -> Generator[ForwardRequest, Prediction, tuple[Staleness, ...]]:
        """Do the forward again from where it began, computing every layer; compare; undo it."""
        whole = range(ask.start, ask.start + len(ask.ids))
        used: list[tuple[LayerRun, Sequence[int]]] = [
            (run, whole) for run in plan.reuse if run.target != "identity"
        ]
        for run in plan.partial:
            rest = [column for column in whole if column not in run.columns]
            used += [(run, rest)] if rest else []
        if not used:
            return ()
        after, counts, seconds = row.save(), job.counts, job.seconds
        row.restore(before)
        stored = [row.stored(run, columns).clone() for run, columns in used]
        kept = tuple(replace(run, columns=(), extrapolate=0.0) for run, _ in used)
        job.counts = Counts()
        yield ForwardRequest(ask.phase, ask.ids, LayerPlan(plan.n_layers, store=kept), ask.start)
        found = []
        for (run, columns), old, keep in zip(used, stored, kept, strict=True):
            fresh = row.stored(keep, whole)[[column - ask.start for column in columns]].float()
            gap = (old.float() - fresh).norm(dim=-1)
            distances = tuple((gap / fresh.norm(dim=-1).clamp_min(_TINY)).tolist())
            found.append(Staleness(run.start, run.stop, run.target, tuple(columns), distances))
        row.restore(after)
        job.counts, job.seconds = counts, seconds
        return tuple(found)


def assemble(
    seen: Sequence[Seen], *, block_size: int, refresh_reuse: bool
) -> tuple[ForwardTrace, ...]:
    """The forwards of one row, in order.

    ``refresh_reuse``: the strategy's step counter runs on through a REFRESH.
    """
    forwards: list[ForwardTrace] = []
    index: int | None = None
    block: tuple[int, ...] = ()
    for one in seen:
        ask, denoising = one.ask, one.ask.phase in DENOISING
        index = (
            next_step_index(index, ask.phase, refresh_reuse=refresh_reuse) if denoising else None
        )
        # The block's tokens as the row has them when it asks.
        if ask.phase is Phase.PREFILL:
            block = ()
        else:
            block = (*block[: ask.start], *ask.ids, *block[ask.start + len(ask.ids) :])
        stop = ask.start + (block_size if ask.phase is Phase.PREFILL else len(ask.ids))
        guesses = _guesses(one, block_size)
        forwards.append(
            ForwardTrace(
                phase=ask.phase.value,
                index=index,
                block=one.length // block_size,
                columns=(ask.start, stop),
                layers=layer_letters(one.plan),
                partial=tuple(sorted({c for run in one.plan.partial for c in run.columns})),
                computed=one.computed,
                reused=one.reused,
                before=block,
                guesses=guesses,
                after=_filled(block, guesses),
                stale=one.stale,
                change=one.told.change,
            )
        )
        block = forwards[-1].after
    return _settled(forwards, [one.chosen is None for one in seen])


def _guesses(one: Seen, block_size: int) -> tuple[Guess, ...]:
    ask, told = one.ask, one.told
    columns = [ask.start + i + 1 for i in ask.read]
    if ask.phase is Phase.PREFILL:
        columns = [block_size for _ in ask.read]  # of several blocks only the last is read
    if ask.targets:  # scoring: the answer's own token is put there, whatever the model prefers
        return tuple(
            Guess(column, tokens[0], math.exp(values[0]), taken=True)
            for column, tokens, values in zip(columns, ask.targets, told.logprobs, strict=True)
        )
    chosen = set(one.chosen or ())
    ahead = ask.phase not in DENOISING
    return tuple(
        Guess(column, token, confidence, taken=ahead or i in chosen)
        for i, (column, token, confidence) in enumerate(
            zip(columns, told.tokens, told.confidence, strict=True)
        )
    )


def _filled(block: tuple[int, ...], guesses: Sequence[Guess]) -> tuple[int, ...]:
    new = {guess.column: guess.token for guess in guesses if guess.taken}
    return tuple(new.get(column, token) for column, token in enumerate(block))


def _settled(forwards: list[ForwardTrace], unknown: Sequence[bool]) -> tuple[ForwardTrace, ...]:
    """Find what was unmasked where no rule was asked: in the rounds of a scored answer.

    The next forward of the block shows it: a column that was read and is filled by then.
    """
    for i, forward in enumerate(forwards):
        quiet = unknown[i] and forward.index is not None
        if not quiet or any(guess.taken for guess in forward.guesses) or i + 1 == len(forwards):
            continue
        ahead = forwards[i + 1].before
        guesses = tuple(
            replace(guess, taken=ahead[guess.column] != forward.before[guess.column])
            for guess in forward.guesses
        )
        forwards[i] = replace(forward, guesses=guesses, after=_filled(forward.before, guesses))
    return tuple(forwards)

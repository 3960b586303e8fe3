"""The estimators of docs/algorithm.md 5, for one prefix and the targets that share its inputs.

Targets whose model inputs are identical are scored by the same forwards: ``first-token`` shares
one input among all targets that differ in their first token alone; ``denoise`` shares everything
up to the first token in which targets differ, and goes on for each from there. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding
from fdllm.core.counts import Counts
from fdllm.core.reuse import LayerPlan, ReuseStrategy
from fdllm.core.row_task import CacheRow, ForwardRequest, Prediction, RowTask, Steps, prefill
from fdllm.core.schedule import Phase, Step, next_step_index, num_full_blocks
from fdllm.core.unmask import most_confident, observation


@dataclass
class Member:
    """One target of a group, and what it has come to; see :class:`fdllm.core.scorer.Score`."""

    index: int
    target: tuple[int, ...]
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    greedy: bool = True
    step: int | None = None
    reused_tokens: int = 0


@dataclass(frozen=True)
class _Place:
    """Where the scoring of a block stands.

    Attributes:
        block: its tokens.
        at: the column where the target begins in it.
        column: the column of the next target token.
        done: target tokens scored so far.
        left: target tokens still to score in this block.
        rest: columns behind the target that are still masked.
        index: the step counter of the block's last forward; None before its first.
        state: the strategy's.
    """

    block: tuple[int, ...]
    at: int
    column: int
    done: int
    left: int
    rest: tuple[int, ...]
    index: int | None
    state: Any


class GroupScorer:
    """The algorithm of one prefix and its targets, which have the same model inputs at first."""

    def __init__(
        self,
        model: Model,
        prefix: tuple[int, ...],
        members: list[Member],
        decoding: Decoding,
        strategy: ReuseStrategy[Any],
    ) -> None:
        self.n_layers = model.n_layers
        self.whole = LayerPlan(model.n_layers)
        self.prefix = prefix
        self.members = members
        self.decoding = decoding
        self.strategy = strategy
        self.size = decoding.block_size
        self.mask: int = decoding.mask_id  # type: ignore[assignment] # resolved by the caller
        self.full = num_full_blocks(len(prefix), self.size) * self.size

    def first_token(self, job: RowTask[None], row: CacheRow) -> Steps[None]:  # noqa: ARG002
        """The published estimator: mask the first target token alone, read log p of it.

        The later target tokens stay visible, the end token stands behind them, masks fill the
        block. Attention is block-causal, so only the block that holds the first target token is
        forwarded; where that token opens a block, the block ahead of it tells.
        """
        at = len(self.prefix) - self.full
        yield from self._prefill(job, read=at == 0)
        if at == 0:
            return
        end: int = self.decoding.end_token  # type: ignore[assignment] # resolved by the caller
        known = (*self.members[0].target[1:], end)
        block = [*self.prefix[self.full :], self.mask, *known][: self.size]
        block += [self.mask] * (self.size - len(block))
        step = self._step(None, at, tuple(c for c in range(self.size) if block[c] == self.mask))
        plan = self.strategy.plan(step, self.strategy.init(self.n_layers))
        ask = ForwardRequest(Phase.REFRESH, tuple(block), plan, read=(at - 1,))
        yield from self._score(job, self.members, ask, 0, step.index)

    def denoise(self, job: RowTask[None], row: CacheRow) -> Steps[None]:
        """Score the targets block by block; ``chain`` is the same without rounds.

        Where nothing is unmasked behind the target first, each token's probability is the model's
        own, given the tokens ahead of it alone, and their product that of the chain rule.
        """
        known = list(self.prefix[self.full :])
        yield from self._prefill(job, read=not known)
        if known:
            yield from self._blocks(job, row, known, self.members, 0)
            return
        for branch in self._branches(row, self.members, 0):
            yield from self._blocks(job, row, [branch[0].target[0]], branch, 1)

    def _blocks(
        self, job: RowTask[None], row: CacheRow, known: list[int], members: list[Member], done: int
    ) -> Steps[None]:
        """Score what is left of the targets, from token ``done`` on, behind a block's ``known``."""
        left = len(members[0].target) - done
        if not left:
            return
        here = min(left, self.size - len(known))
        at = len(known)
        block = known + [self.mask] * (self.size - at)
        rest = list(range(at + here, self.size))
        state = self.strategy.init(self.n_layers)
        index: int | None = None
        for rounds in range(self.decoding.scoring_steps, 0, -1):
            if not rest:
                break
            step = self._step(index, at, (*range(at, at + here), *rest))
            plan = self.strategy.plan(step, state)
            first = step.columns[0]
            ask = ForwardRequest(
                step.phase, tuple(block[first:]), plan, first, tuple(c - 1 - first for c in rest)
            )
            seen = yield from self._ask(job, members, ask)
            chosen = most_confident(seen.confidence, -(-len(rest) // rounds))
            for i in chosen:
                block[rest[i]] = seen.tokens[i]
            state = self.strategy.observe(step, observation(plan, seen, chosen), state)
            rest = [c for i, c in enumerate(rest) if i not in set(chosen)]
            index = step.index
        place = _Place(tuple(block), at, at, done, here, tuple(rest), index, state)
        yield from self._teacher(job, row, members, place)

    def _teacher(
        self, job: RowTask[None], row: CacheRow, members: list[Member], here: _Place
    ) -> Steps[None]:
        """Score tokens left to right, one forward each, forking where the targets differ."""
        if not here.left:
            yield from self._commit(job, row, members, here)
            return
        masked = (*range(here.column, here.column + here.left), *here.rest)
        step = self._step(here.index, here.at, masked)
        plan = self.strategy.plan(step, here.state)
        first = step.columns[0]
        ask = ForwardRequest(
            step.phase, here.block[first:], plan, first, (here.column - 1 - first,)
        )
        seen = yield from self._score(job, members, ask, here.done, step.index)
        state = self.strategy.observe(step, observation(plan, seen, [0]), here.state)
        for branch in self._branches(row, members, here.done):
            block = list(here.block)
            block[here.column] = branch[0].target[here.done]
            after = _Place(
                tuple(block),
                here.at,
                here.column + 1,
                here.done + 1,
                here.left - 1,
                here.rest,
                step.index,
                state,
            )
            yield from self._teacher(job, row, branch, after)

    def _commit(
        self, job: RowTask[None], row: CacheRow, members: list[Member], here: _Place
    ) -> Steps[None]:
        """Close the block where the target goes on; its look-ahead logits score the next token."""
        if here.done == len(members[0].target):
            return
        ask = ForwardRequest(Phase.COMMIT, here.block, self.whole, read=(self.size - 1,))
        yield from self._score(job, members, ask, here.done)
        for branch in self._branches(row, members, here.done):
            known = [branch[0].target[here.done]]
            yield from self._blocks(job, row, known, branch, here.done + 1)

    @staticmethod
    def _branches(row: CacheRow, members: list[Member], done: int) -> Iterator[list[Member]]:
        """Members by their token ``done``; each branch starts from the block as it is now."""
        branches = _alike(members, done)
        saved = row.save() if len(branches) > 1 else None
        for i, branch in enumerate(branches):
            if i and saved is not None:
                row.restore(saved)
            yield branch

    def _step(self, index: int | None, at: int, masked: tuple[int, ...]) -> Step:
        """A block's first forward is a REFRESH; the others start one column ahead of the target."""
        phase = Phase.REFRESH if index is None else Phase.DENOISE
        count = next_step_index(index, phase, refresh_reuse=self.strategy.refresh_reuse)
        columns = (0 if index is None else at - 1, self.size)
        return Step(phase, count, columns, first=index is None, masked=masked)

    def _prefill(self, job: RowTask[None], *, read: bool) -> Steps[None]:
        """PREFILL the prefix's full blocks; where ``read``, they score the first token."""
        for ask in prefill(
            self.prefix[: self.full], self.whole, self.size, read=read, lazy=not read
        ):
            if ask.read:
                yield from self._score(job, self.members, ask, 0)
            else:
                yield from self._ask(job, self.members, ask)

    def _score(
        self,
        job: RowTask[None],
        members: list[Member],
        ask: ForwardRequest,
        done: int,
        step: int | None = None,
    ) -> Steps[Prediction]:
        """Carry out an ask that reads one column, and book log p of every target's token there.

        ``step`` is the step counter of the forward, None where look-ahead logits are read.
        """
        tokens = tuple(sorted({m.target[done] for m in members}))
        scoring = ForwardRequest(ask.phase, ask.ids, ask.plan, ask.start, ask.read, (tokens,))
        seen = yield from self._ask(job, members, scoring)
        value = dict(zip(tokens, seen.logprobs[0], strict=True))
        carried = seen.plan or ask.plan
        reused = isinstance(carried, LayerPlan) and bool(carried.reuse or carried.partial)
        for m in members:
            m.logprobs.append(value[m.target[done]])
            m.greedy = m.greedy and seen.tokens[0] == m.target[done]
            m.step = step if done == 0 else m.step
            m.reused_tokens += reused
        return seen

    @staticmethod
    def _ask(
        job: RowTask[None], members: list[Member], ask: ForwardRequest
    ) -> Generator[ForwardRequest, Prediction, Prediction]:
        """One forward for all ``members``: booked on the first, counted as shared on the others."""
        job.counts = members[0].counts
        before = job.seconds
        seen = yield ask
        for m in members:
            m.seconds += (job.seconds - before) / len(members)
        for m in members[1:]:
            m.counts.share(ask.phase, len(ask.ids))
        return seen


def _alike(members: list[Member], at: int) -> list[list[Member]]:
    """Members grouped by their target's token ``at``."""
    groups: dict[int, list[Member]] = {}
    for m in members:
        groups.setdefault(m.target[at], []).append(m)
    return list(groups.values())

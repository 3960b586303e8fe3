"""Log-likelihood of answers: the two estimators of DESIGN section 5.

Targets whose model inputs are identical are scored by the same forwards: ``first-token`` shares
one input among all targets that differ in their first token alone; ``denoise`` shares everything
up to the first token in which targets differ, and goes on for each from there. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fdllm.config import Decoding, Estimator
from fdllm.decode.counts import Counts
from fdllm.decode.engine import Ask, Engine, Job, Row, Steps, prefill, resolve
from fdllm.decode.unmask import Prediction, most_confident
from fdllm.errors import UsageError
from fdllm.model.weights import Model
from fdllm.reuse import LayerPlan, NoReuse, Observation, ReuseStrategy
from fdllm.schedule import Phase, Step, next_step_index, num_full_blocks

ScorePair = tuple[Sequence[int], Sequence[int]]
DEFAULT_PREFIX_CACHE_GIB = 1.0


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one target after one prefix.

    Attributes:
        loglikelihood: natural logarithm; ``first-token`` holds the first token's alone.
        is_greedy: whether every scored token was the most probable one, the mask token aside.
        counts: forwards and layer calls by phase. A forward that served several targets is booked
            once, on the first of them; on the others its columns are counted as shared.
        seconds: this target's share of model time.
        tokens: target tokens whose log-probability was read.
    """

    loglikelihood: float
    is_greedy: bool
    counts: Counts
    seconds: float
    tokens: int


@dataclass
class _Member:
    """One target of a group, and what it has come to so far."""

    index: int
    target: tuple[int, ...]
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    logprobs: list[float] = field(default_factory=list)
    greedy: bool = True


@dataclass(frozen=True)
class _Place:
    """Where the scoring of a block stands.

    Attributes:
        block: its tokens.
        at: the column where the target begins in it.
        column: the column of the next target token.
        done: target tokens scored so far.
        left: target tokens still to score in this block.
        index: the step counter of the block's last forward; None before its first.
        state: the strategy's.
    """

    block: tuple[int, ...]
    at: int
    column: int
    done: int
    left: int
    index: int | None
    state: Any


def score(
    model: Model,
    pairs: Sequence[ScorePair],
    scoring: Estimator = "denoise",
    decoding: Decoding | None = None,
    strategy: ReuseStrategy[Any] | None = None,
    *,
    batch_size: int | None = None,
) -> list[Score]:
    """Score ``(prefix, target)`` pairs of tokens.

    Args:
        model: from :func:`fdllm.load_model`.
        pairs: prefix and target, both at least one token.
        scoring: the estimator, ``first-token`` or ``denoise``.
        decoding: settings; ``scoring_steps`` rounds unmask what stands behind the target.
        strategy: layer reuse; ``first-token`` takes one forward, so reuse cannot act in it.
        batch_size: rows scored at once; None takes up to 32. It never changes a score.

    Returns:
        One :class:`Score` a pair, in order.
    """
    size = batch_size or max(1, min(len(pairs), 32))
    settings = decoding or Decoding()
    return score_requests(model, pairs, settings, strategy, scoring=scoring, batch_size=size)


def score_requests(
    model: Model,
    pairs: Sequence[ScorePair],
    decoding: Decoding,
    strategy: ReuseStrategy[Any] | None = None,
    *,
    scoring: Estimator,
    batch_size: int = 1,
    on_done: Callable[[int, Score], None] | None = None,
    deduplicate: bool = True,
    prefix_cache_gib: float = DEFAULT_PREFIX_CACHE_GIB,
) -> list[Score]:
    """Score pairs; ``on_done(index, score)`` is called as each one ends, in any order.

    Args:
        model: from :func:`fdllm.load_model`.
        pairs: prefix and target tokens.
        decoding: settings.
        strategy: layer reuse.
        scoring: the estimator.
        batch_size: rows scored at once.
        on_done: called with index and result while the other rows still run.
        deduplicate: compute identical model inputs once.
        prefix_cache_gib: memory for prompt blocks shared between rows; 0 shares none.

    Raises:
        UsageError: a prefix or target is empty or of another vocabulary, or the estimator is
            unknown.
        FdllmError: a pair needs more positions than the model has.
    """
    filled = resolve(decoding, model)
    if scoring not in ("first-token", "denoise"):
        raise UsageError(f"unknown estimator '{scoring}'; use first-token or denoise")
    groups: dict[tuple[object, ...], list[_Member]] = {}
    for index, (prefix, target) in enumerate(pairs):
        _check(prefix, target, model)
        own = tuple(target)
        inputs = own[1:] if scoring == "first-token" else len(own)
        key = (tuple(prefix), inputs, None if deduplicate else index)
        groups.setdefault(key, []).append(_Member(index, own))
    jobs, members = [], []
    # Requests that begin alike stand side by side, so that a small prefix cache serves them.
    for key in sorted(groups, key=lambda key: key[0]) if prefix_cache_gib else groups:  # type: ignore[arg-type,return-value]
        rows = groups[key]
        first = tuple(pairs[rows[0].index][0])
        scorer = _GroupScorer(model, first, rows, filled, strategy or NoReuse())
        steps = scorer.first_token if scoring == "first-token" else scorer.denoise
        jobs.append(Job(steps, len(first) + len(rows[0].target) + 1))
        members.append(rows)
    out: dict[int, Score] = {}
    for at, _ in Engine(model, filled, batch_size, prefix_cache_gib).run(jobs):
        for m in members[at]:
            tokens = len(m.logprobs)
            out[m.index] = Score(sum(m.logprobs), m.greedy, m.counts, m.seconds, tokens)
            if on_done is not None:
                on_done(m.index, out[m.index])
    return [out[i] for i in range(len(pairs))]


def _check(prefix: Sequence[int], target: Sequence[int], model: Model) -> None:
    if not prefix or not target:
        raise UsageError("a prefix or target is empty; both need at least one token")
    for token in (*prefix, *target):
        if not 0 <= token < model.spec.vocab_size:
            raise UsageError(
                f"token {token} is not in the vocabulary of model '{model.name}' "
                f"(0..{model.spec.vocab_size - 1}); was it tokenised for another model?"
            )


class _GroupScorer:
    """The algorithm of one prefix and its targets, which have the same model inputs at first."""

    def __init__(
        self,
        model: Model,
        prefix: tuple[int, ...],
        members: list[_Member],
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

    def first_token(self, job: Job[None], row: Row) -> Steps[None]:  # noqa: ARG002
        """The published estimator: mask the first target token alone, read log p of it.

        The later target tokens stay visible, the end token stands behind them, masks fill the
        block. Attention is block-causal, so only the block that holds the first target token is
        forwarded; where that token opens a block, the block ahead of it tells.
        """
        at = len(self.prefix) - self.full
        yield from self._prefill(job, read=at == 0)
        if at == 0:
            return
        behind = (*self.members[0].target[1:], *self.decoding.stop_tokens[:1])
        block = [*self.prefix[self.full :], self.mask, *behind][: self.size]
        block += [self.mask] * (self.size - len(block))
        step = Step(Phase.REFRESH, 0, (0, self.size), first=True)
        plan = self.strategy.plan(step, self.strategy.init(self.n_layers))
        ask = Ask(Phase.REFRESH, tuple(block), plan, read=(at - 1,))
        yield from self._score(job, self.members, ask, 0)

    def denoise(self, job: Job[None], row: Row) -> Steps[None]:
        """Score the targets as the sampler would decode them, block by block."""
        known = list(self.prefix[self.full :])
        yield from self._prefill(job, read=not known)
        if known:
            yield from self._blocks(job, row, known, self.members, 0)
            return
        for branch in self._branches(row, self.members, 0):
            yield from self._blocks(job, row, [branch[0].target[0]], branch, 1)

    def _blocks(
        self, job: Job[None], row: Row, known: list[int], members: list[_Member], done: int
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
            step = self._step(index, at)
            plan = self.strategy.plan(step, state)
            first = step.columns[0]
            ask = Ask(
                step.phase, tuple(block[first:]), plan, first, tuple(c - 1 - first for c in rest)
            )
            seen = yield from self._ask(job, members, ask)
            chosen = most_confident(seen.confidence, -(-len(rest) // rounds))
            for i in chosen:
                block[rest[i]] = seen.tokens[i]
            sure = tuple(seen.confidence[i] for i in chosen)
            observed = Observation(plan, len(rest), len(chosen), sure)
            state = self.strategy.observe(step, observed, state)
            rest = [c for i, c in enumerate(rest) if i not in set(chosen)]
            index = step.index
        place = _Place(tuple(block), at, at, done, here, index, state)
        yield from self._teacher(job, row, members, place)

    def _teacher(self, job: Job[None], row: Row, members: list[_Member], here: _Place) -> Steps[None]:
        """Score tokens left to right, one forward each, forking where the targets differ."""
        if not here.left:
            yield from self._commit(job, row, members, here)
            return
        step = self._step(here.index, here.at)
        plan = self.strategy.plan(step, here.state)
        first = step.columns[0]
        ask = Ask(step.phase, here.block[first:], plan, first, (here.column - 1 - first,))
        seen = yield from self._score(job, members, ask, here.done)
        observed = Observation(plan, 1, 1, seen.confidence)
        state = self.strategy.observe(step, observed, here.state)
        for branch in self._branches(row, members, here.done):
            block = list(here.block)
            block[here.column] = branch[0].target[here.done]
            after = _Place(
                tuple(block),
                here.at,
                here.column + 1,
                here.done + 1,
                here.left - 1,
                step.index,
                state,
            )
            yield from self._teacher(job, row, branch, after)

    def _commit(self, job: Job[None], row: Row, members: list[_Member], here: _Place) -> Steps[None]:
        """Close the block where the target goes on; its look-ahead logits score the next token."""
        if here.done == len(members[0].target):
            return
        ask = Ask(Phase.COMMIT, here.block, self.whole, read=(self.size - 1,))
        yield from self._score(job, members, ask, here.done)
        for branch in self._branches(row, members, here.done):
            known = [branch[0].target[here.done]]
            yield from self._blocks(job, row, known, branch, here.done + 1)

    @staticmethod
    def _branches(row: Row, members: list[_Member], done: int) -> Iterator[list[_Member]]:
        """Members by their token ``done``; each branch starts from the block as it is now."""
        branches = _alike(members, done)
        saved = row.save() if len(branches) > 1 else None
        for i, branch in enumerate(branches):
            if i and saved is not None:
                row.restore(saved)
            yield branch

    def _step(self, index: int | None, at: int) -> Step:
        """A block's first forward is a REFRESH; the others start one column ahead of the target."""
        phase = Phase.REFRESH if index is None else Phase.DENOISE
        count = next_step_index(index, phase, refresh_reuse=self.strategy.refresh_reuse)
        return Step(phase, count, (0 if index is None else at - 1, self.size), first=index is None)

    def _prefill(self, job: Job[None], *, read: bool) -> Steps[None]:
        """PREFILL the prefix's full blocks; where ``read``, they score the first token."""
        for ask in prefill(self.prefix[: self.full], self.whole, self.size, read=read):
            if ask.read:
                yield from self._score(job, self.members, ask, 0)
            else:
                yield from self._ask(job, self.members, ask)

    def _score(
        self, job: Job[None], members: list[_Member], ask: Ask, done: int
    ) -> Steps[Prediction]:
        """Carry out an ask that reads one column, and book log p of every target's token there."""
        tokens = tuple(sorted({m.target[done] for m in members}))
        scoring = Ask(ask.phase, ask.ids, ask.plan, ask.start, ask.read, (tokens,))
        seen = yield from self._ask(job, members, scoring)
        value = dict(zip(tokens, seen.logprobs[0], strict=True))
        for m in members:
            m.logprobs.append(value[m.target[done]])
            m.greedy = m.greedy and seen.tokens[0] == m.target[done]
        return seen

    @staticmethod
    def _ask(
        job: Job[None], members: list[_Member], ask: Ask
    ) -> Generator[Ask, Prediction, Prediction]:
        """One forward for all ``members``: booked on the first, counted as shared on the others."""
        job.counts = members[0].counts
        before = job.seconds
        seen = yield ask
        for m in members:
            m.seconds += (job.seconds - before) / len(members)
        for m in members[1:]:
            m.counts.share(ask.phase, len(ask.ids))
        return seen


def _alike(members: list[_Member], at: int) -> list[list[_Member]]:
    """Members grouped by their target's token ``at``."""
    groups: dict[int, list[_Member]] = {}
    for m in members:
        groups.setdefault(m.target[at], []).append(m)
    return list(groups.values())

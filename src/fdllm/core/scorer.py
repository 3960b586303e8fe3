"""Log-likelihood of answers, by the estimators of docs/algorithm.md 5.

Targets whose model inputs are identical are scored by the same forwards: ``first-token`` shares
one input among all targets that differ in their first token alone; ``denoise`` shares everything
up to the first token in which targets differ, and goes on for each from there. All of it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding, Estimator
from fdllm.core.counts import Counts
from fdllm.core.engine import Engine, check_tokens, resolve
from fdllm.core.reuse import AnyPlan, LayerPlan, NoReuse, ReuseStrategy, plan_step
from fdllm.core.row_task import (
    CacheRow,
    ForwardHook,
    ForwardRequest,
    Prediction,
    RowTask,
    Steps,
    prefill,
)
from fdllm.core.schedule import Phase, Step, next_step_index, num_full_blocks
from fdllm.core.unmask import most_confident, observation
from fdllm.errors import FdllmError, UsageError

ScorePair = tuple[Sequence[int], Sequence[int]]


@dataclass
class Score:
    """The log-likelihood of one target after one prefix.

    Attributes:
        loglikelihood: natural logarithm; ``first-token`` holds the first token's alone.
        is_greedy: whether every scored token was the most probable one, the mask token aside.
        counts: forwards and layer calls by phase. A forward that served several targets is booked
            once, on the first of them; on the others its columns are counted as shared.
        seconds: this target's share of model time.
        tokens: target tokens whose log-probability was read.
        step: step counter of the forward that scored the first of them; None where look-ahead
            logits did.
        reused_tokens: tokens that were scored by a forward in which layers were reused.
    """

    loglikelihood: float = 0.0
    is_greedy: bool = True
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0
    tokens: int = 0
    step: int | None = None
    reused_tokens: int = 0


def score(
    model: Model,
    pairs: Sequence[ScorePair],
    scoring: Estimator = "denoise",
    decoding: Decoding | None = None,
    strategy: ReuseStrategy[Any] | None = None,
    *,
    batch_size: int | None = None,
    on_done: Callable[[int, Score], None] | None = None,
    deduplicate: bool = True,
    prefix_cache_gib: float = 1.0,
    hook: ForwardHook | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> list[Score]:
    """Score ``(prefix, target)`` pairs of tokens.

    Args:
        model: from :func:`fdllm.load_model`.
        pairs: prefix and target, both at least one token.
        scoring: the estimator, ``first-token``, ``denoise`` or ``chain``.
        decoding: settings; ``scoring_steps`` rounds unmask what stands behind the target.
        strategy: layer reuse; ``first-token`` takes one forward, so reuse cannot act in it.
        batch_size: rows scored at once; None takes up to 32. It never changes a score.
        on_done: called with index and result as each pair ends, in any order.
        deduplicate: compute identical model inputs once.
        prefix_cache_gib: memory for prompt blocks shared between rows; 0 shares none.
        hook: sees every group's forwards, see :mod:`fdllm.trace`.
        go_on: asked before a group starts; pairs left out by a no are missing from the result.

    Returns:
        One :class:`Score` a pair, in order.

    Raises:
        UsageError: a prefix or target is empty or of another vocabulary, or the estimator is
            unknown.
        FdllmError: a pair needs more positions than the model has, or ``first-token`` knows no end
            token.
        NotFiniteError: a logit is NaN or infinite.
    """
    if scoring not in get_args(Estimator):
        known = ", ".join(get_args(Estimator))
        raise UsageError(f"unknown estimator '{scoring}'; use one of {known}")
    # Scoring never samples: a score is no draw, whatever text is decoded with.
    filled = resolve(decoding or Decoding(), model).model_copy(update={"temperature": 0.0})
    if scoring == "first-token":
        filled = filled.model_copy(update={"end_token": _end_token(filled, model)})
    elif scoring == "chain":
        filled = filled.model_copy(update={"scoring_steps": 0})
    groups: dict[tuple[object, ...], list[_Member]] = {}
    for index, (prefix, target) in enumerate(pairs):
        if not prefix or not target:
            raise UsageError("a prefix or target is empty; both need at least one token")
        check_tokens((*prefix, *target), model)
        own = tuple(target)
        inputs = own[1:] if scoring == "first-token" else len(own)
        key = (tuple(prefix), inputs, None if deduplicate else index)
        groups.setdefault(key, []).append(_Member(index, own, Score()))
    # Requests that begin alike stand side by side, so that a small prefix cache serves them.
    ordered = [(tuple(pairs[g[0].index][0]), g) for g in groups.values()]
    ordered.sort(key=lambda group: group[0])
    tasks = []
    for prefix, members in ordered:
        scorer = _GroupScorer(model, prefix, members, filled, strategy or NoReuse())
        steps = scorer.first_token if scoring == "first-token" else scorer.denoise
        capacity = len(prefix) + len(members[0].target) + 1
        task = RowTask(steps, capacity, number=members[0].index)
        tasks.append(task if hook is None else hook.wrap(task))
    rows = batch_size if batch_size is not None else max(1, min(len(pairs), 32))
    out: dict[int, Score] = {}
    for at, _ in Engine(model, filled, rows, prefix_cache_gib).run(tasks, go_on):
        for member in ordered[at][1]:
            out[member.index] = member.score
            if on_done is not None:
                on_done(member.index, member.score)
    return [out[i] for i in sorted(out)]


def _end_token(decoding: Decoding, model: Model) -> int:
    """What stands behind a target: as asked for, the tokenizer's end token, or the only stop token.

    Raises:
        UsageError: it is not in the vocabulary.
        FdllmError: there is no tokenizer to ask, and not one stop token but none or several.
    """
    token = decoding.end_token if decoding.end_token is not None else model.end_token
    if token is None:
        if len(decoding.stop_tokens) != 1:
            raise FdllmError(
                f"model '{model.name}' has no tokenizer that names an end token, and stop tokens "
                f"{list(decoding.stop_tokens)} name no single one; set end_token, which the "
                "first-token estimator puts behind the answer"
            )
        token = decoding.stop_tokens[0]
    check_tokens([token], model)
    return token


@dataclass(frozen=True)
class _Member:
    """One target of a group, and what it has come to."""

    index: int
    target: tuple[int, ...]
    score: Score


@dataclass(frozen=True)
class ScorePosition:
    """Where the scoring of a block stands.

    Attributes:
        block: its tokens.
        at: the column where the target begins in it.
        column: the column of the next target token.
        done: target tokens scored so far.
        rest: columns behind the target that are still masked.
        index: the step counter of the block's last forward; None before its first.
        state: the strategy's.
    """

    block: tuple[int, ...]
    at: int
    column: int
    done: int
    rest: tuple[int, ...]
    index: int | None
    state: Any


class _GroupScorer:
    """The algorithm of one prefix and its targets, which have the same model inputs at first."""

    task: RowTask[None]
    row: CacheRow

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
        self.mask = decoding.mask
        self.full = num_full_blocks(len(prefix), self.size) * self.size

    def first_token(self, task: RowTask[None], row: CacheRow) -> Steps[None]:
        """The published estimator: mask the first target token alone, read log p of it.

        The later target tokens stay visible, the end token stands behind them, masks fill the
        block. Attention is block-causal, so only the block that holds the first target token is
        forwarded; where that token opens a block, the block ahead of it tells.
        """
        self.task, self.row = task, row
        at = len(self.prefix) - self.full
        yield from self._prefill(read=at == 0)
        if at == 0:
            return
        end: int = self.decoding.end_token  # type: ignore[assignment] # resolved by the caller
        known = (*self.members[0].target[1:], end)
        block = [*self.prefix[self.full :], self.mask, *known][: self.size]
        block += [self.mask] * (self.size - len(block))
        step = self._step(None, at, tuple(c for c in range(self.size) if block[c] == self.mask))
        plan = plan_step(self.strategy, step, self.strategy.init(self.n_layers))
        yield from self._score(self.members, _request(step, plan, block, [at]), 0, step.index)

    def denoise(self, task: RowTask[None], row: CacheRow) -> Steps[None]:
        """Score the targets block by block; ``chain`` is the same without rounds.

        Where nothing is unmasked behind the target first, each token's probability is the model's
        own, given the tokens ahead of it alone, and their product that of the chain rule.
        """
        self.task, self.row = task, row
        known = list(self.prefix[self.full :])
        yield from self._prefill(read=not known)
        if known:
            yield from self._block(known, self.members, 0)
        else:
            yield from self._next_block(self.members, 0)

    def _next_block(self, members: list[_Member], done: int) -> Steps[None]:
        """Go on in the block that begins with the targets' token ``done``, scored just now."""
        for branch in self._branches(members, done):
            yield from self._block([branch[0].target[done]], branch, done + 1)

    def _block(self, known: list[int], members: list[_Member], done: int) -> Steps[None]:
        """Score what is left of the targets, from token ``done`` on, behind a block's ``known``."""
        left = len(members[0].target) - done
        if not left:
            return
        at = len(known)
        behind = min(at + left, self.size)  # the first column behind the target
        block = known + [self.mask] * (self.size - at)
        rest = list(range(behind, self.size))
        state = self.strategy.init(self.n_layers)
        index: int | None = None
        for rounds in range(self.decoding.scoring_steps, 0, -1):
            if not rest:
                break
            step = self._step(index, at, (*range(at, behind), *rest))
            plan = plan_step(self.strategy, step, state)
            seen = yield from self._ask(members, _request(step, plan, block, rest))
            chosen = most_confident(seen.confidence, -(-len(rest) // rounds))
            for i in chosen:
                block[rest[i]] = seen.tokens[i]
            state = self.strategy.observe(step, observation(plan, seen, rest, chosen), state)
            rest = [c for i, c in enumerate(rest) if i not in set(chosen)]
            index = step.index
        here = ScorePosition(tuple(block), at, at, done, tuple(rest), index, state)
        yield from self._teacher(members, here)

    def _teacher(self, members: list[_Member], here: ScorePosition) -> Steps[None]:
        """Score tokens left to right, one forward each, forking where the targets differ."""
        left = len(members[0].target) - here.done
        if not left:
            return
        stop = min(here.column + left, self.size)
        if here.column == stop:
            # The target goes on behind the block, whose look-ahead logits score its next token.
            request = ForwardRequest(Phase.COMMIT, here.block, self.whole, read=(self.size - 1,))
            yield from self._score(members, request, here.done)
            yield from self._next_block(members, here.done)
            return
        step = self._step(here.index, here.at, (*range(here.column, stop), *here.rest))
        plan = plan_step(self.strategy, step, here.state)
        request = _request(step, plan, here.block, [here.column])
        seen = yield from self._score(members, request, here.done, step.index)
        told = observation(plan, seen, [here.column], [0])
        state = self.strategy.observe(step, told, here.state)
        for branch in self._branches(members, here.done):
            block = list(here.block)
            block[here.column] = branch[0].target[here.done]
            column, done = here.column + 1, here.done + 1
            after = ScorePosition(tuple(block), here.at, column, done, here.rest, step.index, state)
            yield from self._teacher(branch, after)

    def _branches(self, members: list[_Member], done: int) -> Iterator[list[_Member]]:
        """Members by their token ``done``; each branch starts from the block as it is now."""
        branches: dict[int, list[_Member]] = {}
        for member in members:
            branches.setdefault(member.target[done], []).append(member)
        saved = self.row.save() if len(branches) > 1 else None
        for i, branch in enumerate(branches.values()):
            if i and saved is not None:
                self.row.restore(saved)
            yield branch

    def _step(self, index: int | None, at: int, masked: tuple[int, ...]) -> Step:
        """A block's first forward is a REFRESH; the others start one column ahead of the target."""
        phase = Phase.REFRESH if index is None else Phase.DENOISE
        count = next_step_index(index, phase, refresh_reuse=self.strategy.refresh_reuse)
        columns = (0 if index is None else at - 1, self.size)
        return Step(phase, count, columns, first=index is None, masked=masked)

    def _prefill(self, *, read: bool) -> Steps[None]:
        """PREFILL the prefix's full blocks; where ``read``, they score the first token."""
        full = self.prefix[: self.full]
        for request in prefill(full, self.whole, self.size, read=read, lazy=not read):
            if request.read:
                yield from self._score(self.members, request, 0)
            else:
                yield from self._ask(self.members, request)

    def _score(
        self, members: list[_Member], request: ForwardRequest, done: int, step: int | None = None
    ) -> Steps[Prediction]:
        """Ask for a forward that reads one column; book log p of every target's token there.

        ``step`` is the step counter of the forward, None where look-ahead logits are read.
        """
        tokens = tuple(sorted({member.target[done] for member in members}))
        seen = yield from self._ask(members, replace(request, targets=(tokens,)))
        value = dict(zip(tokens, seen.logprobs[0], strict=True))
        carried = seen.plan or request.plan
        reused = isinstance(carried, LayerPlan) and bool(carried.reuse or carried.partial)
        for member in members:
            score, token = member.score, member.target[done]
            score.loglikelihood += value[token]
            score.is_greedy = score.is_greedy and seen.tokens[0] == token
            score.tokens += 1
            score.step = step if done == 0 else score.step
            score.reused_tokens += reused
        return seen

    def _ask(
        self, members: list[_Member], request: ForwardRequest
    ) -> Generator[ForwardRequest, Prediction, Prediction]:
        """One forward for all ``members``: booked on the first, counted as shared on the others."""
        self.task.counts = members[0].score.counts
        before = self.task.seconds
        seen = yield request
        for member in members:
            member.score.seconds += (self.task.seconds - before) / len(members)
        for member in members[1:]:
            member.score.counts.share(request.phase, len(request.ids))
        return seen


def _request(
    step: Step, plan: AnyPlan, block: Sequence[int], columns: Sequence[int]
) -> ForwardRequest:
    """A step's forward to the block's end; logits at i predict column i + 1."""
    first = step.columns[0]
    read = tuple(column - 1 - first for column in columns)
    return ForwardRequest(step.phase, tuple(block[first:]), plan, first, read)

"""Log-likelihood of an answer: the two estimators of DESIGN section 5, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from fdllm.config import Decoding, Estimator
from fdllm.decode.counts import Counts
from fdllm.decode.engine import Ask, Engine, Job, prefill, resolve
from fdllm.decode.unmask import Prediction, most_confident
from fdllm.errors import UsageError
from fdllm.model.weights import Model
from fdllm.reuse import LayerPlan, NoReuse, Observation, ReuseStrategy
from fdllm.schedule import Phase, Step, next_step_index, num_full_blocks

ScorePair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Score:
    """The log-likelihood of one target after one prefix.

    Attributes:
        loglikelihood: natural logarithm; ``first-token`` holds the first token's alone.
        is_greedy: whether every scored token was the most probable one.
        counts: forwards and layer calls by phase.
        seconds: this row's share of model time.
        tokens: target tokens whose log-probability was read.
    """

    loglikelihood: float
    is_greedy: bool
    counts: Counts
    seconds: float
    tokens: int


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
        batch_size: rows scored at once; None takes all. It never changes a score.

    Returns:
        One :class:`Score` a pair, in order.
    """
    size = batch_size or max(1, min(len(pairs), 64))
    settings = decoding or Decoding()
    return score_requests(
        model, pairs, settings, strategy or NoReuse(), scoring=scoring, batch_size=size
    )


def score_requests(
    model: Model,
    pairs: Sequence[ScorePair],
    decoding: Decoding,
    strategy: ReuseStrategy[Any] | None = None,
    *,
    scoring: Estimator,
    batch_size: int = 1,
    on_done: Callable[[int, Score], None] | None = None,
) -> list[Score]:
    """Score pairs; ``on_done(index, score)`` is called as each one ends, in any order.

    Raises:
        UsageError: a prefix or target is empty, or the estimator is unknown.
        FdllmError: a pair needs more positions than the model has.
    """
    filled = resolve(decoding, model)
    if scoring not in ("first-token", "denoise"):
        raise UsageError(f"unknown estimator '{scoring}'; use first-token or denoise")
    jobs = []
    for prefix, target in pairs:
        if not prefix or not target:
            raise UsageError("a prefix or target is empty; both need at least one token")
        row = _RowScorer(
            model, tuple(prefix), tuple(target), filled, strategy or NoReuse()
        )
        steps = row.first_token if scoring == "first-token" else row.denoise
        jobs.append(Job(steps, len(prefix) + len(target) + 1))
    out: dict[int, Score] = {}
    for index, result in Engine(model, filled, batch_size).run(jobs):
        out[index] = result
        if on_done is not None:
            on_done(index, result)
    return [out[i] for i in range(len(jobs))]


class _RowScorer:
    """The algorithm of one pair."""

    def __init__(
        self,
        model: Model,
        prefix: tuple[int, ...],
        target: tuple[int, ...],
        decoding: Decoding,
        strategy: ReuseStrategy[Any],
    ) -> None:
        self.n_layers = model.n_layers
        self.prefix = prefix
        self.target = target
        self.decoding = decoding
        self.strategy = strategy
        self.end = decoding.stop_tokens[0] if decoding.stop_tokens else None
        self.logprobs: list[float] = []
        self.greedy = True

    def first_token(self, job: Job[Score]) -> Generator[Ask, Prediction, Score]:
        """The published estimator: mask the first target token alone, read log p of it.

        The later target tokens stay visible, the end token stands behind them, masks fill the
        block. Attention is block-causal, so only the block that holds the first target token is
        forwarded; where that token opens a block, the block ahead of it tells.
        """
        size = self.decoding.block_size
        full = num_full_blocks(len(self.prefix), size) * size
        whole = LayerPlan(self.n_layers)
        at = len(self.prefix) - full
        if at == 0:
            # The last block's logits score the token: forward it as the prefix's last PREFILL.
            yield from self._prefill(self.prefix, self.target[0])
            return self._result(job)
        if full:
            yield from prefill(self.prefix[:full], whole, size)
        behind = (*self.target[1:], *(() if self.end is None else (self.end,)))
        block = [*self.prefix[full:], self._mask, *behind][:size]
        block += [self._mask] * (size - len(block))
        step = Step(Phase.REFRESH, 0, (0, size), first=True)
        plan = self.strategy.plan(step, self.strategy.init(self.n_layers))
        seen = yield Ask(
            Phase.REFRESH, tuple(block), plan, read=(at - 1,), targets=self.target[:1]
        )
        self._take(seen)
        return self._result(job)

    def denoise(self, job: Job[Score]) -> Generator[Ask, Prediction, Score]:
        """Score the target as the sampler would decode it, block by block."""
        size = self.decoding.block_size
        full = num_full_blocks(len(self.prefix), size) * size
        whole = LayerPlan(self.n_layers)
        known = list(self.prefix[full:])
        left = list(self.target)
        if full and not known:
            yield from self._prefill(self.prefix, left[0])
            known = [left.pop(0)]
        elif full:
            yield from prefill(self.prefix[:full], whole, size)
        while left:
            here = left[: size - len(known)]
            left = left[len(here) :]
            yield from self._denoise_block(known, here)
            if left:
                committed = tuple(known + here)
                seen = yield Ask(
                    Phase.COMMIT, committed, whole, read=(size - 1,), targets=(left[0],)
                )
                self._take(seen)
                known = [left.pop(0)]
        return self._result(job)

    def _denoise_block(
        self, known: list[int], target: list[int]
    ) -> Generator[Ask, Prediction, None]:
        """Unmask what stands behind the target, then score it left to right, teacher-forced."""
        size = self.decoding.block_size
        at = len(known)
        block = known + [self._mask] * (size - at)
        rest = list(range(at + len(target), size))
        state = self.strategy.init(self.n_layers)
        index: int | None = None
        rounds = self.decoding.scoring_steps
        todo = list(target)
        while todo:
            unmasking = bool(rest) and rounds > 0
            column = at + len(target) - len(todo)
            phase = Phase.REFRESH if index is None else Phase.DENOISE
            left = 0 if index is None else at - 1
            index = next_step_index(index, phase, refresh_reuse=self.strategy.refresh_reuse)
            step = Step(phase, index, (left, size), first=phase is Phase.REFRESH)
            plan = self.strategy.plan(step, state)
            columns = rest if unmasking else [column]
            seen = yield Ask(
                phase,
                tuple(block[left:]),
                plan,
                left,
                read=tuple(c - 1 - left for c in columns),
                targets=() if unmasking else (todo[0],),
            )
            if unmasking:
                chosen = most_confident(seen.confidence, -(-len(rest) // rounds))
                rounds -= 1
                for i in chosen:
                    block[rest[i]] = seen.tokens[i]
                rest = [c for i, c in enumerate(rest) if i not in set(chosen)]
            else:
                self._take(seen)
                block[column] = todo.pop(0)
                chosen = [0]
            sure = tuple(seen.confidence[i] for i in chosen)
            state = self.strategy.observe(
                step, Observation(plan, len(columns), len(chosen), sure), state
            )

    def _prefill(
        self, ids: tuple[int, ...], token: int
    ) -> Generator[Ask, Prediction, None]:
        """PREFILL whole blocks and score the look-ahead token behind them."""
        size = self.decoding.block_size
        whole = LayerPlan(self.n_layers)
        if len(ids) > size:
            yield from prefill(ids[:-size], whole, size)
        seen = yield Ask(
            Phase.PREFILL, ids[-size:], whole, read=(size - 1,), targets=(token,)
        )
        self._take(seen)

    def _take(self, seen: Prediction) -> None:
        self.logprobs.append(seen.logprobs[0])
        self.greedy = self.greedy and seen.greedy[0]

    def _result(self, job: Job[Score]) -> Score:
        return Score(
            sum(self.logprobs), self.greedy, job.counts, job.seconds, len(self.logprobs)
        )

    @property
    def _mask(self) -> int:
        if self.decoding.mask_id is None:
            raise ValueError("decoding is not resolved: mask_id is None")
        return self.decoding.mask_id

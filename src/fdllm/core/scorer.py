"""Log-likelihood of answers: requests in, scores out, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from fdllm.core.checkpoint import Model
from fdllm.core.config import Decoding, Estimator
from fdllm.core.counts import Counts
from fdllm.core.engine import Engine, check_tokens, resolve
from fdllm.core.estimators import GroupScorer, Member
from fdllm.core.reuse import NoReuse, ReuseStrategy
from fdllm.core.row_task import ForwardHook, RowTask
from fdllm.errors import FdllmError, UsageError

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
        step: step counter of the forward that scored the first of them; None where look-ahead
            logits did.
        reused_tokens: tokens that were scored by a forward in which layers were reused.
    """

    loglikelihood: float
    is_greedy: bool
    counts: Counts
    seconds: float
    tokens: int
    step: int | None = None
    reused_tokens: int = 0


@dataclass(frozen=True)
class _Group:
    """A prefix and the targets that share its model inputs."""

    prefix: tuple[int, ...]
    members: list[Member]


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
        scoring: the estimator, ``first-token``, ``denoise`` or ``chain``.
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
    hook: ForwardHook | None = None,
    go_on: Callable[[], bool] = lambda: True,
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
        hook: sees every group's forwards, see :mod:`fdllm.trace`.
        go_on: asked before a group starts; pairs left out by a no are missing from the result.

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
    filled = resolve(decoding, model).model_copy(update={"temperature": 0.0})
    if scoring == "first-token":
        filled = filled.model_copy(update={"end_token": _end_token(filled, model)})
    elif scoring == "chain":
        filled = filled.model_copy(update={"scoring_steps": 0})
    groups: dict[tuple[object, ...], _Group] = {}
    for index, (prefix, target) in enumerate(pairs):
        if not prefix or not target:
            raise UsageError("a prefix or target is empty; both need at least one token")
        check_tokens((*prefix, *target), model)
        own = tuple(target)
        inputs = own[1:] if scoring == "first-token" else len(own)
        key = (tuple(prefix), inputs, None if deduplicate else index)
        groups.setdefault(key, _Group(tuple(prefix), [])).members.append(Member(index, own))
    # Requests that begin alike stand side by side, so that a small prefix cache serves them.
    ordered = sorted(groups.values(), key=lambda group: group.prefix)
    jobs = []
    for group in ordered:
        scorer = GroupScorer(model, group.prefix, group.members, filled, strategy or NoReuse())
        steps = scorer.first_token if scoring == "first-token" else scorer.denoise
        first = group.members[0]
        job = RowTask(steps, len(group.prefix) + len(first.target) + 1, number=first.index)
        jobs.append(job if hook is None else hook.wrap(job))
    out: dict[int, Score] = {}
    for at, _ in Engine(model, filled, batch_size, prefix_cache_gib).run(jobs, go_on):
        for m in ordered[at].members:
            out[m.index] = Score(
                loglikelihood=sum(m.logprobs),
                is_greedy=m.greedy,
                counts=m.counts,
                seconds=m.seconds,
                tokens=len(m.logprobs),
                step=m.step,
                reused_tokens=m.reused_tokens,
            )
            if on_done is not None:
                on_done(m.index, out[m.index])
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

"""From hidden states to tokens and columns: pure functions, nothing of caches or batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fdllm.core.config import Decoding
from fdllm.core.reuse import AnyPlan, LayerPlan, Observation
from fdllm.core.row_task import ForwardRequest, Prediction

Choose = Callable[[Tensor, int], tuple[list[int], list[float]]]


def by_threshold(confidence: Sequence[float], threshold: float) -> list[int]:
    """Every column whose confidence exceeds the threshold, and always the most confident one.

    Ties go to the leftmost. (docs/algorithm.md 3, step 2.)
    """
    best = max(range(len(confidence)), key=confidence.__getitem__)
    return [i for i, value in enumerate(confidence) if value > threshold or i == best]


def most_confident(confidence: Sequence[float], count: int) -> list[int]:
    """The ``count`` most confident columns, ascending; ties go to the leftmost."""
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], i))
    return sorted(order[:count])


def observation(
    plan: AnyPlan, seen: Prediction, columns: Sequence[int], chosen: Sequence[int]
) -> Observation:
    """What a strategy is told of a forward that read ``columns``, and of the chosen among them."""
    carried = seen.plan or plan
    if not isinstance(carried, LayerPlan):
        raise TypeError(f"a guided plan came to none: {plan}")
    confidences = dict(zip(columns, seen.confidence, strict=True))
    return Observation(carried, confidences, tuple(columns[i] for i in chosen), seen.change)


def sample_tokens(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    requests: Sequence[tuple[ForwardRequest, torch.Generator | None]],
    decoding: Decoding,
    choose: Choose,
) -> list[Prediction]:
    """Apply the head to the columns that are read, and to no others.

    Args:
        head: the output projection.
        hidden: last hidden states of the columns that are read, row by row, [reads, hidden size].
        requests: what each row reads, and its generator where sampling is on.
        decoding: temperature, top-p and mask token.
        choose: the greedy choice, see :meth:`fdllm.core.attention.AttentionBackend.choose`.

    Returns:
        One prediction a row. The confidence is NaN where a logit is not finite.
    """
    if not hidden.shape[0]:
        return [Prediction((), ()) for _ in requests]
    logits = head(hidden)  # [reads, vocabulary]
    scoring = any(request.targets for request, _ in requests)
    # Ahead of the choice, which bars the mask token.
    logprobs = _logprobs(logits, [request for request, _ in requests]) if scoring else []
    if decoding.temperature == 0.0 or scoring:
        tokens, sure = choose(logits, decoding.mask)
    else:
        draws = [torch.rand(len(r.read), generator=rng, dtype=torch.float64) for r, rng in requests]
        uniform = torch.cat(draws).to(logits.device)
        temperature, top_p = decoding.temperature, decoding.top_p
        drawn = choose_sampled(logits, decoding.mask, temperature, top_p, uniform)
        tokens, sure = (part.tolist() for part in drawn)
    out, at = [], 0
    for request, _ in requests:
        span = slice(at, at + len(request.read))
        at = span.stop
        told = tuple(logprobs[span]) if request.targets else ()
        out.append(Prediction(tuple(tokens[span]), tuple(sure[span]), told))
    return out


def _logprobs(logits: Tensor, requests: Sequence[ForwardRequest]) -> list[tuple[float, ...]]:
    """Log-probabilities of every target, gathered in one go."""
    wanted = [ts for request in requests for ts in (request.targets or ((),) * len(request.read))]
    column = [i for i, targets in enumerate(wanted) for _ in targets]
    token = [t for targets in wanted for t in targets]
    share = logits.float()
    total = share.logsumexp(dim=-1)
    values = iter((share[column, token] - total[column]).tolist())
    return [tuple(next(values) for _ in targets) for targets in wanted]


def choose_greedy(logits: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    """The most probable token of each row of logits, and its probability.

    The softmax runs over the whole vocabulary, as in the published decoder; the mask token is
    only barred from being chosen.

    Args:
        logits: [n, vocabulary], any float type; the mask token's become -inf.
        mask_id: the mask token.

    Returns:
        Tokens [n] and probabilities [n] in float32; NaN where a logit of the row is not finite.
    """
    share = logits.softmax(dim=-1, dtype=torch.float32)
    odd = _odd(logits)
    logits[:, mask_id] = float("-inf")
    tokens = logits.argmax(dim=-1)
    return tokens, share.gather(1, tokens[:, None])[:, 0] + odd


def _odd(logits: Tensor) -> Tensor:
    """0 for each row of logits that are all finite, NaN for each other, [n] in float32.

    The softmax tells of a NaN and of infinity, but gives a logit of -inf the probability 0.
    """
    low, high = (one.float() for one in logits.aminmax(dim=-1))
    return (low - low) + (high - high)


def choose_sampled(
    logits: Tensor, mask_id: int, temperature: float, top_p: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw a token from each row of logits.

    Args:
        logits: [n, vocabulary].
        mask_id: the mask token, never drawn.
        temperature: above 0.
        top_p: the smallest set of tokens that holds this probability mass is drawn from.
        uniform: one number in [0, 1) for each row [n], from that row's own generator.

    Returns:
        Tokens [n], and the probability of each under the tempered softmax before it was cut to
        ``top_p``, [n]; NaN where a logit of the row is not finite.
    """
    odd = _odd(logits)
    scaled = logits.float() / temperature
    scaled[:, mask_id] = float("-inf")
    probabilities, order = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    nucleus = torch.where(before < top_p, probabilities, 0.0)
    ladder = nucleus.cumsum(dim=-1)
    at = torch.searchsorted(ladder, (uniform.to(ladder) * ladder[:, -1])[:, None], right=True)
    # Rounding may place the draw past the last step of the ladder: stay inside the nucleus, which
    # is empty where a logit is NaN.
    at = at.clamp(max=(nucleus > 0).sum(dim=-1, keepdim=True) - 1).clamp_(min=0)
    return order.gather(1, at)[:, 0], probabilities.gather(1, at)[:, 0] + odd

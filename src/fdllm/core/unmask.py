"""Choosing tokens and columns: pure functions, nothing of caches or batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fdllm.core.layerplan import AnyPlan, LayerPlan, ProbePlan
from fdllm.core.reuse import Observation


class Unmask(Protocol):
    """Which masked columns to unmask, given how sure the model is of each.

    An experiment that changes unmasking supplies a function of this form.
    """

    def __call__(self, confidence: Sequence[float], threshold: float) -> list[int]:
        """Indices into ``confidence`` to unmask, ascending, at least one."""


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


@dataclass(frozen=True)
class Prediction:
    """What one row's logits say at the columns that were read.

    Attributes:
        tokens: the chosen token of each column, never the mask token.
        confidence: its softmax probability.
        logprobs: for each column read, the log-probabilities of the tokens asked for.
        plan: the plan that a probe chose; None where the plan asked for had none.
        change: what the probe measured.
    """

    tokens: tuple[int, ...]
    confidence: tuple[float, ...]
    logprobs: tuple[tuple[float, ...], ...] = ()
    plan: LayerPlan | None = None
    change: float | None = None


def observation(plan: AnyPlan, seen: Prediction, chosen: Sequence[int]) -> Observation:
    """What a strategy is told of a forward and of the columns chosen after it."""
    carried = seen.plan or plan
    if isinstance(carried, ProbePlan):
        raise TypeError(f"a probe chose no plan: {plan}")
    sure = tuple(seen.confidence[i] for i in chosen)
    return Observation(carried, len(seen.confidence), len(chosen), sure, seen.change)


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

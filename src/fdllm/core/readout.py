"""From hidden states to numbers on the host: the head, the choice, log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdllm.core.config import Decoding
from fdllm.core.unmask import Prediction, choose_greedy, choose_sampled
from fdllm.fast.kernels import Fused


@dataclass(frozen=True)
class LogitsRequest:
    """What one row reads of a forward.

    Attributes:
        read: indices into the row's columns; logits at i sample_tokens column i + 1.
        targets: for each read, the tokens whose log-probabilities are wanted; empty for none.
        rng: the row's generator, where sampling is on.
    """

    read: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...] = ()
    rng: torch.Generator | None = None


def sample_tokens(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    rows: Sequence[LogitsRequest],
    decoding: Decoding,
    mask_id: int,
    *,
    fused: Fused | None = None,
) -> list[Prediction]:
    """Apply the head to the columns that are read, and to no others.

    Args:
        head: the output projection.
        hidden: last hidden states of the columns that are read, row by row, [reads, hidden size].
        rows: what each row reads.
        decoding: temperature and top-p.
        mask_id: the mask token.
        fused: compiled kernels, where there are some.

    Returns:
        One prediction a row. The confidence is NaN where a logit is not finite.
    """
    if not hidden.shape[0]:
        return [Prediction((), ()) for _ in rows]
    logits = head(hidden)
    scoring = any(row.targets for row in rows)
    logprobs = _logprobs(logits, rows) if scoring else []  # before a choice bars the mask token
    greedy = decoding.temperature == 0.0 or scoring
    if greedy and fused is not None:
        tokens, sure = fused.choose(logits, mask_id)
    elif greedy:
        tokens, sure = (part.tolist() for part in choose_greedy(logits, mask_id))
    else:
        draws = [torch.rand(len(row.read), generator=row.rng, dtype=torch.float64) for row in rows]
        uniform = torch.cat(draws).to(logits.device)
        temperature, top_p = decoding.temperature, decoding.top_p
        drawn = choose_sampled(logits, mask_id, temperature, top_p, uniform)
        tokens, sure = (part.tolist() for part in drawn)
    out, at = [], 0
    for row in rows:
        span = slice(at, at + len(row.read))
        at = span.stop
        out.append(
            Prediction(
                tuple(tokens[span]), tuple(sure[span]), tuple(logprobs[span]) if row.targets else ()
            )
        )
    return out


def _logprobs(logits: Tensor, rows: Sequence[LogitsRequest]) -> list[tuple[float, ...]]:
    """Log-probabilities of every target, gathered in one go."""
    wanted = [targets for row in rows for targets in (row.targets or ((),) * len(row.read))]
    column = [i for i, targets in enumerate(wanted) for _ in targets]
    token = [t for targets in wanted for t in targets]
    share = logits.float()
    total = share.logsumexp(dim=-1)
    values = iter((share[column, token] - total[column]).tolist())
    return [tuple(next(values) for _ in targets) for targets in wanted]

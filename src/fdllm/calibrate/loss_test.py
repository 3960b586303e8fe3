"""Is at most so much lost: a p-value for paired documents that is exact for any number of them.

A document's loss is the baseline's figure less the candidate's. Where figures are yes or no it is
-1, 0 or 1, and the test is the exact unconditional one for non-inferiority of matched pairs, which
orders outcomes by Tango's score as the report's intervals do, and takes the largest probability
over the share of documents that differ, as far as the sample leaves it possible: Berger and Boos,
JASA 89 (1994), 1012; Berger and Sidik, Statistical Methods in Medical Research 12 (2003), 91; Lloyd
and Moldovan, Statistics in Medicine 27 (2008), 3540. It rejects as often as the normal
approximation, and is never wrong more often than it says.

Bounds that know less see too little where few documents differ: at a loss of 0, 2 % that differ and
a margin of one point, with 95 % confidence and 80 % power, this test asks 1,240 documents,
betting on the mean about 2,900 and Hoeffding's bound on the loss scaled to [0, 1] about 66,000.
Figures that are not yes or no are left to the bets of :mod:`fdllm.record.deciding`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.stats import beta, binom, norm

from fdllm.record.deciding import betting_p_value
from fdllm.report.stats import POWER, Floats, Ints, is_binary, tango_score

SMALLEST_P = 1e-4
"""No p-value is below: how often the share that differs may lie outside its interval."""
_SHARES = 200  # of documents that differ, over that interval
_NEVER = 1e-13  # numbers of documents that differ with less probability are left out
_ROUNDING = 1e-9  # of a score


def p_value(lost: Floats, margin: float) -> float:
    """Of the hypothesis that a mean loss of ``margin`` or more would be found on fresh documents.

    Args:
        lost: of each document, in [-1, 1], in random order; shape (n,).
        margin: in [-1, 1].
    """
    if is_binary(np.abs(lost)):
        return exact_p(int(np.sum(lost > 0)), int(np.sum(lost < 0)), len(lost), margin)
    return betting_p_value(-lost, margin)


@lru_cache(maxsize=1 << 14)
def exact_p(losses: int, gains: int, n: int, margin: float) -> float:
    """The same where each of n documents is lost, won or neither.

    Args:
        losses: documents that were right and are wrong.
        gains: documents that were wrong and are right.
        n: all documents, 1 or more.
        margin: as above.
    """
    differing = losses + gains
    # Clopper and Pearson's interval; NaN at the ends of the scale
    tails, same = (SMALLEST_P / 2, 1 - SMALLEST_P / 2), n - differing
    ends = beta.ppf(tails, (differing, differing + 1), (same + 1, same))
    low = max(margin, 0.0 if differing == 0 else float(ends[0]))
    high = max(low, 1.0 if differing == n else float(ends[1]))
    shares = np.linspace(low, high, _SHARES)[:, None]
    first, last = binom.ppf(_NEVER, n, low), binom.ppf(1 - _NEVER, n, high)
    counts = np.arange(max(0, int(first)), int(last) + 1)
    score = float(tango_score(np.array(losses), np.array(gains), n, -margin))
    most = most_losses(score, counts, n, margin)
    # Given how many differ, losses are binomial, and a larger mean loss has more of them: as few as
    # these are likeliest where the mean is the margin itself.
    lost = np.clip((1 + margin / np.maximum(shares, _NEVER)) / 2, 0, 1)
    found = binom.pmf(counts, n, shares) * binom.cdf(most, counts, lost)
    return min(1.0, float(found.sum(axis=1).max()) + SMALLEST_P)


def most_losses(score: float, differing: Ints, n: int, margin: float) -> Ints:
    """With how many losses the score is still as large; -1 where with none.

    Args:
        score: Tango's, which falls from loss to loss.
        differing: numbers of documents that differ; shape (m,).
        n: all documents.
        margin: loss that the score stands against.
    """
    low, high = np.full_like(differing, -1), differing.copy()
    while (low < high).any():
        middle = (low + high + 1) // 2
        tried = np.maximum(middle, 0)
        enough = tango_score(tried, differing - tried, n, -margin) >= score - _ROUNDING
        low, high = np.where(enough, middle, low), np.where(enough, high, middle - 1)
    return low


def documents_needed(lost: Floats, margin: float, level: float) -> int | None:
    """How many documents show with 80 % probability that less than ``margin`` is lost.

    As far as the given ones tell: their mean loss and its spread, to which two documents that
    differ are added, so that a sample without any promises no miracle.

    Args:
        lost: of each document, shape (n,).
        margin: in [0, 1].
        level: of the test.

    Returns:
        None where no number would, as so much is lost.
    """
    distance = margin - float(lost.mean())
    if distance <= 0:
        return None
    spread = (float(np.sum(lost**2)) + 2) / (len(lost) + 4) - float(lost.mean()) ** 2
    effort = float(norm.isf(level) + norm.ppf(POWER)) ** 2
    if not is_binary(np.abs(lost)):
        effort *= 2  # what betting asks more
    fewest = math.log(level) / math.log1p(-margin) if margin else 1  # where none differs
    return math.ceil(max(effort * spread / distance**2, fewest))

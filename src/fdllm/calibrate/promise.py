"""Which of several candidates lose at most a stated share, all with one stated confidence.

Learn then Test (Angelopoulos et al., arXiv 2110.01052): each candidate is a hypothesis, "so much is
lost or more", and one that is rejected is promised. Hypotheses are tested one after the other until
one stands (fixed sequence), so that with the stated confidence no promise at all is wrong, however
many candidates there are, and whichever of the promised is then taken. The order must not come from
the documents that test: a fifth of them, the pilot, is spent on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fdllm.calibrate.loss_test import documents_needed, p_value
from fdllm.report.stats import Floats

Places = npt.NDArray[np.int64]
Standing = Literal["promised", "not shown", "behind"]

PILOT = 0.2
"""Share of the calibrating documents that orders several candidates."""
_STEPS = 4  # the pilot tells so many degrees of safety apart


@dataclass(frozen=True)
class Split:
    """Which documents do what: their places, in random order."""

    pilot: Places  # they order the candidates; empty where there is one
    test: Places  # they test them
    held_out: Places  # they say how the promise did

    @property
    def calibrating(self) -> Places:
        """Those that choose."""
        return np.concatenate([self.pilot, self.test])


def split(num_documents: int, calibrating: int, *, several: bool, seed: int) -> Split:
    """Draw the parts; without ``several`` candidates there is no order to find, and no pilot."""
    drawn = np.random.default_rng(seed).permutation(num_documents)
    pilot = round(PILOT * calibrating) if several else 0
    return Split(drawn[:pilot], drawn[pilot:calibrating], drawn[calibrating:])


@dataclass(frozen=True)
class Tested:
    """What the testing documents say of one candidate."""

    p_value: float  # of the hypothesis that so much is lost, or more
    standing: Standing  # ``behind`` one that was not shown, so that it was not asked
    needs: int | None  # calibrating documents that would show it; None where none would


def choose_safe(
    lost: Sequence[Floats], saved: Sequence[float], parts: Split, loss: float, confidence: float
) -> list[Tested]:
    """Which candidates are promised.

    They are tested in the order of safety, in quarters of the pilot's p-value, and within one from
    the gentlest to the boldest: a threshold's own order where there is one, and past the candidates
    that are plainly bad where a gentle one is.

    Args:
        lost: of each candidate and document, in [-1, 1]; each of shape (documents,).
        saved: by each candidate, on the pilot's documents.
        parts: the documents' parts.
        loss: that is allowed, in [0, 1].
        confidence: in (0, 1).
    """
    level = 1 - confidence
    safety = [int(_STEPS * p_value(one[parts.pilot], loss)) if len(lost) > 1 else 0 for one in lost]
    found: dict[int, Tested] = {}
    stands = False
    for number in sorted(range(len(lost)), key=lambda one: (safety[one], saved[one])):
        tested = lost[number][parts.test]
        p = p_value(tested, loss)
        shown = p <= level
        standing: Standing = "behind" if stands else "promised" if shown else "not shown"
        stands = stands or not shown
        needs = documents_needed(lost[number][parts.calibrating], loss, level)
        share = len(tested) / len(parts.calibrating)
        found[number] = Tested(p, standing, None if needs is None else round(needs / share))
    return [found[number] for number in range(len(lost))]

"""When an accuracy run's criteria are decided, ahead of its last document. No torch.

Documents are asked in one seeded random order (:func:`draw_order`), the same for all cells of a
task. On each a cell's figure less the baseline's is a draw in [-1, 1], and a gambler bets that its
mean is above the margin, another that it is below. Neither gains by luck more often than stated
however often one looks: capital that starts at 1 and is bet at fair odds reaches 1 / alpha with a
probability of at most alpha (Ville). Stakes are mixed, as the true difference is not known:
Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, JRSS B 86 (2023).

It is a statement about the documents' population, as the report's intervals are; that about the
documents at hand alone, which sampling without replacement would reach sooner, is a weaker one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fdllm.criteria import ALPHA, RISES
from fdllm.errors import FdllmError
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import read_matching
from fdllm.record.paths import RunPaths
from fdllm.record.summary import Decided
from fdllm.runs import Run

Draws = npt.NDArray[np.float64]
Decision = Literal["met", "missed", "open"]
DocumentKey = tuple[str, int]
"""A leaf task and the number of a document there."""
Merits = dict[DocumentKey, dict[str, float]]
"""Of each document, by criterion: how good the answer is, in [-1, 1]; more is better."""

SIGNS = dict(zip(RISES, ("truncated", "repetitive"), strict=True))
"""Columns of a row, by the criterion that they decide."""
_ORDER = "fdllm 1"  # seed of the order; another one is another order
_STAKES = np.geomspace(0.01, 0.95, 24)  # of the largest stake that cannot lose everything
_LOOKS, _SMALLEST_LOOK = 20, 10
_FEWEST_TWINS = 100
_CRITICAL = 1.959964  # two-sided 95 %


def draw_order(sizes: Mapping[str, int]) -> list[DocumentKey]:
    """All documents in random order, every prefix with its share of each leaf task.

    The j-th document of a leaf that is drawn stands at (j + u) / size, u in [0, 1) at random.

    Args:
        sizes: documents of each leaf task.
    """
    places = []
    for leaf, size in sizes.items():
        drawn = sorted(range(size), key=lambda number: _random(leaf, number))
        places += [((j + _random(leaf, -1 - j)) / size, leaf, n) for j, n in enumerate(drawn)]
    return [(leaf, number) for _, leaf, number in sorted(places)]


def _random(leaf: str, number: int) -> float:
    """Uniform in [0, 1), the same on every machine."""
    digest = hashlib.sha256(f"{_ORDER} {leaf} {number}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def look_size(num_documents: int) -> int:
    """How many documents are asked from one look to the next."""
    return max(_SMALLEST_LOOK, math.ceil(num_documents / _LOOKS))


def decide(change: Draws, margin: float, alpha: float) -> tuple[Decision, float]:
    """Whether the mean of a population is at least ``-margin``.

    Args:
        change: draws in [-1, 1], in the order drawn; shape (n,).
        margin: a loss that is allowed, in [0, 1].
        alpha: probability of "met" where the mean is lower, and of "missed" where it is not.

    Returns:
        The decision, and after how many draws it fell; infinite where it is open.
    """
    up = _first_win(change + margin, 1 - margin, alpha)
    down = _first_win(-change - margin, 1 + margin, alpha)
    if up == down:  # neither has won
        return "open", math.inf
    return ("met", up) if up < down else ("missed", down)


def _first_win(gains: Draws, largest_loss: float, alpha: float) -> float:
    """After how many bets the capital is 1 / alpha; infinite where it never is."""
    won = _log_capital(gains, largest_loss) >= -math.log(alpha)
    return int(won.argmax()) + 1 if won.any() else math.inf


def _log_capital(gains: Draws, largest_loss: float) -> Draws:
    """Logarithm of the capital after each bet, shape (n,)."""
    stakes = _STAKES / max(largest_loss, 1e-9)
    capital = np.cumsum(np.log1p(stakes[:, None] * gains), axis=1)
    mixed: Draws = np.logaddexp.reduce(capital, axis=0) - np.log(len(stakes))
    return mixed


def betting_p_value(change: Draws, margin: float) -> float:
    """Of the test that a population's mean is below ``-margin``: 1 by the largest capital.

    The arguments are those of :func:`decide`.
    """
    return min(1.0, math.exp(-float(_log_capital(change + margin, 1 - margin).max())))


def twin_rows(margin: float) -> int:
    """Documents after which an A/A cell ends if none differs.

    So many without a difference exclude one as large as the margin: the upper end of Tango's
    interval of 0 in n, z² / (n + z²), is at most the margin. Never fewer than 100.
    """
    square = _CRITICAL**2
    return max(_FEWEST_TWINS, math.ceil(square * (1 - margin) / margin) if margin else 0)


def merits_of(metric: str, rows: Sequence[Mapping[str, Any]]) -> Merits:
    """What each document says about the criteria that an accuracy run decides.

    Args:
        metric: the headline figure.
        rows: of :func:`fdllm.record.per_document.rows_of`.

    Raises:
        FdllmError: a figure is no number in [0, 1], so that its mean cannot be bounded.
    """
    merits: Merits = {}
    for row in rows:
        key, value = (row["task"], row["doc_id"]), row["metrics"].get(metric)
        if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
            raise FdllmError(
                f"{key[0]} row {key[1]} has {metric} = {value}; a run can end early only where "
                "each document has a figure in [0, 1]: sweep without --until-decided"
            )
        merits[key] = {"max_accuracy_drop": float(value)} | {
            name: -row[sign] / row["requests"] for name, sign in SIGNS.items() if sign in row
        }
    return merits


@dataclass(frozen=True)
class Rule:
    """What ends a cell."""

    # by criterion, the loss that it allows; those that the task has no figure of are left out
    margins: Mapping[str, float]
    criteria: str  # lock of the experiment's criteria
    sharing: int = 1  # verdicts that share :data:`~fdllm.criteria.ALPHA` (Bonferroni)
    is_twin: bool = False  # the cell is the baseline's computation once more: an A/A cell

    def judge(self, base: Merits, cell: Merits, num_documents: int) -> Decided | None:
        """Whether the documents that both have, in the order asked, decide every criterion.

        ``num_documents`` are those of the whole task.
        """
        both = [(base[key], row) for key, row in cell.items() if key in base]
        outcomes: dict[str, Literal["met", "missed"]] = {}
        if self.is_twin:
            enough = twin_rows(min(self.margins.values()))
            if len(both) < enough or any(one != other for one, other in both):
                return None
        for name, margin in {} if self.is_twin else self.margins.items():
            change = np.array([row[name] - then[name] for then, row in both])
            outcome, _ = decide(change, margin, ALPHA / self.sharing)
            if outcome == "open":
                return None
            outcomes[name] = outcome
        return Decided(
            documents=len(cell),
            of=num_documents,
            criteria=self.criteria,
            sharing=self.sharing,
            outcomes=outcomes,
        )


@dataclass(frozen=True)
class Looks:
    """A run that may end at any of several looks."""

    rule: Rule | None  # what ends it; None asks every document, in the order of the others
    against: Run  # what it is judged against
    paths: RunPaths  # that run's files
    fingerprint: Fingerprint  # that run's

    def known(self) -> dict[str, dict[str, Any]]:
        """That run's answers so far, by key; it may be at work in another process.

        Raises:
            DamagedJournalError: its journal cannot be read.
        """
        entries: dict[str, dict[str, Any]] = {}
        for part in (self.paths, *self.paths.shards()):
            entries |= read_matching(part.journal, self.fingerprint).entries
        return entries

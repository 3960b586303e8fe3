"""What a comparison of two cells says; :mod:`fdllm.report.compare` makes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fdllm.report.intervals import Estimate
from fdllm.report.records import SampleKey
from fdllm.report.speed import Speed

Verdict = Literal["same-or-better", "worse", "cannot-tell"]

MARGIN = 0.02
"""A loss of accuracy that "same" still allows: 2 points, about what 1,319 documents can exclude."""


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        a: config of the first record.
        b: config of the second.
        task: what both did.
        limit: the smaller limit of the two; None where neither was cut.
        n: documents both have.
        value_a: accuracy of A on them, in [0, 1].
        value_b: accuracy of B.
        difference: ``value_b - value_a`` with its 95 % interval.
        interval: name of the interval.
        p_value: two-sided.
        p_holm: after Holm's adjustment over the grid; ``p_value`` where there is no grid.
        test: name of the test.
        losses: documents that A has right and B wrong; empty where figures are not yes or no.
        gains: documents that A has wrong and B right.
        speed: paired times; None where they must not be compared.
        speed_refused: why not.
        smallest_detectable: the difference that the sample would have shown with 80 % power.
        margin: the loss that "same" allows.
        collapsed: reasons to call B collapsed; its speed is never praised then.
        same_computation: an A/A pair: their settings make them one computation.
        identical: every output is the same, log-likelihoods to ``tolerance``.
        tolerance: in nats; 0 where text is generated.
        notes: what else differs, and what a reader should know.
        verdict: the verdict on accuracy.
        sentence: all of it in words.
    """

    a: str
    b: str
    task: str
    limit: int | None
    n: int
    value_a: float
    value_b: float
    difference: Estimate
    interval: str
    p_value: float
    p_holm: float
    test: str
    losses: tuple[SampleKey, ...]
    gains: tuple[SampleKey, ...]
    speed: Speed | None
    speed_refused: str | None
    smallest_detectable: float
    margin: float
    collapsed: tuple[str, ...]
    same_computation: bool
    identical: bool
    tolerance: float
    notes: tuple[str, ...]
    verdict: Verdict
    sentence: str

    @property
    def is_smoke_test(self) -> bool:
        """Whether a limit cut one of the records."""
        return self.limit is not None

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self) | {"smoke_test": self.is_smoke_test}

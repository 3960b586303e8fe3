"""What a comparison of two cells says, in figures and in words; ``compare.py`` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fdllm.report.agreement import stated
from fdllm.report.made import Made
from fdllm.report.margins import Marked
from fdllm.report.records import SampleKey
from fdllm.report.stats import ALPHA, Difference
from fdllm.report.times import TimedPair, shown

Verdict = Literal["same-or-better", "worse", "cannot-tell"]

MARGIN = 0.02
"""A loss of accuracy that "same" still allows: 2 points, about what 1,319 documents can exclude."""


SMOKE_TEST = "SMOKE TEST"


@dataclass(frozen=True, kw_only=True)
class Comparison(Difference):
    """B against A: the difference in accuracy, and all that stands beside it."""

    a: str  # config of the first record
    b: str  # config of the second
    task: str  # what both did
    limit: int | None  # the smaller limit of the two; None where neither was cut
    p_holm: float  # the p-value after Holm's adjustment over the grid
    # documents that A has right and B wrong; empty where figures are not yes or no
    losses: tuple[SampleKey, ...]
    gains: tuple[SampleKey, ...]  # documents that A has wrong and B right
    made: Made  # what B made by what A made, on the documents of both
    speed: TimedPair | None  # of the timing study; None where it has none of B against A
    floor: float | None  # that study's noise floor
    margin: float  # the loss that "same" allows
    within: float  # two-sided p-value that no more than the margin is lost
    beyond: float  # two-sided p-value that more is lost
    rises: Mapping[str, Marked]  # by criterion, documents marked on one side; scores have none
    collapsed: tuple[str, ...]  # reasons to call B collapsed; its speed is never praised then
    same_computation: bool  # an A/A pair: their settings make them one computation
    identical: bool  # every output is the same, log-likelihoods to ``tolerance``
    tolerance: float  # in nats; 0 where text is generated
    notes: tuple[str, ...]  # what else differs, and what a reader should know
    verdict: Verdict  # the verdict on accuracy
    sentence: str = ""  # all of it in words; see :func:`describe`

    @property
    def is_smoke_test(self) -> bool:
        """Whether a limit cut one of the records."""
        return self.limit is not None

    @property
    def claim(self) -> str:
        """What may be said of its time; empty where it was not measured."""
        if self.speed is None:
            return ""
        return "collapsed" if self.collapsed else self.speed.claim

    def as_dict(self) -> dict[str, Any]:
        """JSON form: accuracy and speed in short, and all the rest."""
        accuracy = {
            "a": self.value_a, "b": self.value_b, "difference": self.difference.value,
            "low": self.difference.low, "high": self.difference.high, "p": self.p_holm,
            "verdict": self.verdict,
        }  # fmt: skip
        speed = None if self.speed is None else self.speed.as_dict(self.task)
        return asdict(self) | {
            "accuracy": accuracy, "speed": speed, "smoke_test": self.is_smoke_test,
        }  # fmt: skip


def describe(c: Comparison) -> str:
    """The verdict, its figures, the speed, and what limits all of it; one paragraph."""
    sentences = [_verdict(c), _speed(c), _cost(c), _reach(c), *c.notes]
    ended = (text if text.endswith((".", "!", "?")) else f"{text}." for text in sentences if text)
    return smoke_mark(c.limit) + " ".join(ended)


def smoke_mark(limit: int | None) -> str:
    """What stands ahead of everything that a limit has cut."""
    if limit is None:
        return ""
    return f"{SMOKE_TEST} (limit {limit}, says nothing about accuracy or speed): "


def points(value: float) -> str:
    """A difference of shares, in percentage points."""
    return f"{100 * value:+.1f} points"


def _verdict(c: Comparison) -> str:
    p_value = f"p {_small(c.p_value)}"
    if c.p_holm != c.p_value:
        p_value += f", by Holm {_small(c.p_holm)}"
    if c.losses or c.gains:
        p_value += f"; {len(c.losses)} right to wrong, {len(c.gains)} wrong to right"
    figures = (
        f"{100 * c.value_b:.1f} % against {100 * c.value_a:.1f} % on {c.n} documents, "
        f"{c.difference.shown(100, '+.1f', ' points')} ({c.interval}; {c.test}, {p_value})"
    )
    if c.same_computation and c.identical:
        agrees = f"every output agrees{stated(c.tolerance)}"
        return f"{c.b} is one computation with {c.a}, and {agrees}: {figures}"
    loss = f"; a loss of more than {100 * c.margin:g} points is"
    verb, reach = {
        "same-or-better": ("is as accurate as", f"{loss} excluded"),
        "worse": ("is worse than", ""),
        "cannot-tell": ("cannot be told from", f"{loss} neither shown nor excluded"),
    }[c.verdict]
    if c.verdict == "same-or-better" and c.difference.low > 0 and c.p_holm < ALPHA:
        verb, reach = "is better than", ""
    return f"{c.b} {verb} {c.a} in accuracy: {figures}{reach}"


def _small(p_value: float) -> str:
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.4f}"  # noqa: PLR2004 - digits shown


def _speed(c: Comparison) -> str:
    if c.speed is None:
        return ""
    time = f"{shown(c.speed.ratio)} of {c.a}'s time"
    if c.collapsed:
        reasons = ", ".join(c.collapsed)
        return f"It has collapsed ({reasons}), so its time says nothing (measured: {time})"
    price = f", at the price of {points(c.difference.value)}" if c.verdict == "worse" else ""
    claimed = {"faster": f"It is faster{price}", "slower": "It is slower"}
    noise = "unknown" if c.floor is None else f"{100 * c.floor:.1f} %"
    text = claimed.get(c.speed.claim, "No difference in speed is claimed")
    return f"{text}: {time} in the timing study; noise floor {noise}"


def _cost(c: Comparison) -> str:
    if c.same_computation or c.made.flops is None or c.made.bytes is None:
        return ""
    return f"It makes {c.made.flops:.2f} of {c.a}'s FLOPs and moves {c.made.bytes:.2f} of its bytes"


def _reach(c: Comparison) -> str:
    if c.same_computation and c.identical:
        return ""
    if c.smallest_detectable >= 1:
        return "No difference could have been shown with so few documents"
    return (
        f"The smallest difference these documents could have shown with 80 % power is "
        f"{100 * c.smallest_detectable:.1f} points"
    )

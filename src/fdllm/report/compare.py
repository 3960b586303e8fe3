"""Cells compared on the same documents: a verdict, its figures, and a sentence that says both.

Accuracy decides the verdict; speed stands beside it.

- ``worse``: B loses, and the loss is significant at 5 % (in a grid after Holm's adjustment).
- ``same-or-better``: not worse, and the 95 % interval excludes a loss larger than the margin; or
  the two are one computation by their settings and every output is the same.
- ``cannot-tell``: anything else. A sample too small to see a loss never proves that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fdllm.report.agreement import stated
from fdllm.report.compare_text import describe
from fdllm.report.comparison import MARGIN, Comparison, Verdict
from fdllm.report.difference import ALPHA, Difference, find_difference, holm, is_binary
from fdllm.report.grid import differences, same_computation, speed_refusal
from fdllm.report.intervals import Estimate
from fdllm.report.pairs import Pairs, join
from fdllm.report.records import NotComparableError, Record, SampleKey
from fdllm.report.speed import Floor, measure_speed, most_by_calls, noise_floor

FAR = 0.1
"""A loss of accuracy whose whole interval is beyond 10 points is a collapse."""
RISE = 0.05
"""So is a rise of the truncation or repetition rate whose interval is beyond 5 points."""


@dataclass(frozen=True)
class _Found:
    """A comparison before the grid is known."""

    a: Record
    b: Record
    pairs: Pairs
    difference: Difference
    is_twin: bool


def compare(
    a: Record, b: Record, *, floor: Floor | None = None, margin: float = MARGIN
) -> Comparison:
    """Compare B with A.

    Args:
        a: the record to compare with.
        b: the record in question.
        floor: noise floor of their grid (:func:`fdllm.report.speed.noise_floor`); without it no
            speed-up is claimed.
        margin: a loss of accuracy that "same" still allows.

    Raises:
        NotComparableError: task, metric, estimator, task version, documents or prompts differ.
        RecordError: a sample lacks its headline figure.
    """
    return compare_all([(a, b, floor)], margin=margin)[0]


def compare_grid(
    baseline: Record,
    others: Sequence[Record],
    *,
    floor: Floor | None = None,
    margin: float = MARGIN,
) -> list[Comparison]:
    """Compare every cell of a grid with its baseline, with Holm's adjustment.

    Whether the records may stand in one table at all is asked by
    :func:`fdllm.report.grid.check_grid`.

    Args:
        baseline: the cell to compare with.
        others: the other cells, in the order of the answer.
        floor: noise floor; None takes the one of these cells.
        margin: a loss of accuracy that "same" still allows.

    Raises:
        NotComparableError: as :func:`compare`.
        RecordError: as :func:`compare`.
    """
    if floor is None:
        floor = noise_floor([baseline, *others])
    return compare_all([(baseline, cell, floor) for cell in others], margin=margin)


def compare_all(
    pairs: Sequence[tuple[Record, Record, Floor | None]], *, margin: float = MARGIN
) -> list[Comparison]:
    """Compare several pairs as one family, with Holm's adjustment over it.

    Pairs that are one computation test nothing, so they do not count in the family;
    :func:`fdllm.report.grid.findings` says whether they agree.

    Args:
        pairs: A, B and the noise floor of their grid.
        margin: a loss of accuracy that "same" still allows.

    Raises:
        NotComparableError: as :func:`compare`.
        RecordError: as :func:`compare`.
    """
    tested = sum(not same_computation(a, b) for a, b, _ in pairs)
    found = [_find(a, b, ALPHA / max(1, tested)) for a, b, _ in pairs]
    adjusted = iter(holm([one.difference.p_value for one in found if not one.is_twin]))
    return [
        _judge(one, one.difference.p_value if one.is_twin else next(adjusted), floor, margin)
        for one, (_, _, floor) in zip(found, pairs, strict=True)
    ]


def _find(a: Record, b: Record, level: float) -> _Found:
    pairs = join(a, b)
    if len(pairs.keys) == 1 and not is_binary(pairs.a, pairs.b):
        raise NotComparableError(
            f"{a.name} and {b.name} share one document, and {a.summary.headline.metric} is not yes "
            "or no: one figure has no spread to go by"
        )
    difference = find_difference(pairs.a, pairs.b, pairs.groups, level)
    return _Found(a, b, pairs, difference, same_computation(a, b))


def _judge(found: _Found, p_holm: float, floor: Floor | None, margin: float) -> Comparison:
    a, b, pairs, difference = found.a, found.b, found.pairs, found.difference
    refused = speed_refusal(a, b)
    speed = None if refused else measure_speed(pairs, floor)
    if speed is None and refused is None:
        refused = "there is one document, or one side took no measurable time"
    notes = _notes(found)
    if speed is not None and speed.claim == "faster" and speed.floor is not None:
        most = most_by_calls(a, b)
        if speed.ratio.low > most * (1 + speed.floor.floor):
            speed = replace(speed, claim="none")
            doubt = (
                f"it ran faster than its layer calls allow (at most {most:.2f}x): the machine sped "
                "up between the two; compute both anew, one right after the other"
            )
            notes += (doubt,)
    collapsed = collapse_reasons(a, b, difference)
    if collapsed and speed is not None and speed.claim == "faster":
        speed = replace(speed, claim="none")
    right = difference.losses is not None
    limits = [cell.limit for cell in (a, b) if cell.limit is not None]
    comparison = Comparison(
        a=a.name,
        b=b.name,
        task=a.task,
        limit=min(limits, default=None),
        n=difference.n,
        value_a=difference.value_a,
        value_b=difference.value_b,
        difference=difference.difference,
        interval=difference.interval,
        p_value=difference.p_value,
        p_holm=p_holm,
        test=difference.test,
        losses=_keys(pairs, pairs.a > pairs.b) if right else (),
        gains=_keys(pairs, pairs.a < pairs.b) if right else (),
        speed=speed,
        speed_refused=refused,
        smallest_detectable=difference.smallest,
        margin=margin,
        collapsed=collapsed,
        same_computation=found.is_twin,
        identical=pairs.identical,
        tolerance=pairs.tolerance,
        notes=notes,
        verdict=decide(
            difference.difference,
            p_holm,
            margin,
            certain=found.is_twin and pairs.identical,
        ),
        sentence="",
    )
    return replace(comparison, sentence=describe(comparison))


def decide(difference: Estimate, p_value: float, margin: float, *, certain: bool) -> Verdict:
    """The verdict on accuracy.

    Args:
        difference: of B and A.
        p_value: two-sided, adjusted.
        margin: a loss that "same" allows.
        certain: both are one computation, and every output agrees.
    """
    if p_value < ALPHA and difference.value < 0:
        return "worse"
    if certain or difference.low > -margin:
        return "same-or-better"
    return "cannot-tell"


def _keys(pairs: Pairs, chosen: Any) -> tuple[SampleKey, ...]:  # noqa: ANN401 - a mask, (n,)
    return tuple(key for key, picked in zip(pairs.keys, chosen, strict=True) if picked)


def _notes(found: _Found) -> tuple[str, ...]:
    a, b, pairs = found.a, found.b, found.pairs
    notes = []
    if pairs.left_out:
        notes.append(f"{pairs.left_out} documents are in one record only and were left out")
    changed = differences(a, b)
    if changed:
        notes.append(f"more than the cell differs: {'; '.join(changed)}")
    if found.is_twin and not pairs.identical:
        notes.append(
            "their settings make them one computation, yet outputs differ"
            f"{stated(pairs.tolerance)}: something is broken"
        )
    if pairs.identical and not found.is_twin:
        reuses = a.summary.strategy.reuses or b.summary.strategy.reuses
        ask = ": did the reuse reach this task?" if reuses else ", though their settings differ"
        notes.append(f"every output is identical{stated(pairs.tolerance)}{ask}")
    for cell, value in ((a, pairs.a.mean()), (b, pairs.b.mean())):
        if not pairs.left_out and abs(cell.summary.headline.value - value) > 1e-6:  # noqa: PLR2004 - rounding
            notes.append(
                f"{cell.name}: the harness weighs its subtasks otherwise and reports "
                f"{100 * cell.summary.headline.value:.1f} %"
            )
    return tuple(notes)


def collapse_reasons(a: Record, b: Record, difference: Difference) -> tuple[str, ...]:
    """Why B has collapsed against A; empty where it has not.

    A model that writes gibberish, or the same line again and again, or never stops, can be the
    fastest of a table: then its speed says nothing.
    """
    reasons = []
    change = difference.difference
    halved = difference.value_b < difference.value_a / 2 and difference.p_value < ALPHA
    if change.high < -FAR or (halved and change.value < 0):
        reasons.append(
            f"accuracy fell from {100 * difference.value_a:.1f} to {100 * difference.value_b:.1f} %"
        )
    for name, (one, other) in _rates(a, b).items():
        if _rise(one, a, other, b) > RISE:
            reasons.append(f"{name} answers rose from {100 * one:.1f} to {100 * other:.1f} %")
    return tuple(reasons)


def _rates(a: Record, b: Record) -> dict[str, tuple[float, float]]:
    one, other = a.summary.quality, b.summary.quality
    if one is None or other is None:
        return {}
    return {
        "truncated": (one.truncation_rate, other.truncation_rate),
        "repetitive": (one.repetition_rate, other.repetition_rate),
    }


def _rise(one: float, a: Record, other: float, b: Record) -> float:
    """Lower end of Newcombe's interval of the rise: at least so much is certain."""
    if other - one <= RISE:
        return 0.0
    from statsmodels.stats.proportion import confint_proportions_2indep  # noqa: PLC0415

    num_a, num_b = a.summary.num_requests, b.summary.num_requests
    low, _ = confint_proportions_2indep(
        round(other * num_b), num_b, round(one * num_a), num_a, method="newcomb", compare="diff"
    )
    return float(low)

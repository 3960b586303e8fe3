"""Cells compared on the same documents: a verdict, its figures, and a sentence that says both.

Accuracy decides the verdict; what a timing study says of the time stands beside it.

- ``worse``: B loses, and the loss is significant at 5 % (in a grid after Holm's adjustment).
- ``same-or-better``: not worse, and the 95 % interval excludes a loss larger than the margin; or
  the two are one computation by their settings and every output is the same.
- ``cannot-tell``: anything else. A sample too small to see a loss never proves that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from statsmodels.stats.proportion import confint_proportions_2indep

from fdllm.evaluate.tasks import TASKS
from fdllm.record.deciding import SIGNS
from fdllm.report.agreement import agree, stated, tolerance_of
from fdllm.report.compare_text import MARGIN, Comparison, Verdict, describe
from fdllm.report.grid import differences, same_computation
from fdllm.report.made import made_by
from fdllm.report.margins import Marked, weigh
from fdllm.report.records import NotComparableError, Record, RecordError, SampleKey
from fdllm.report.stats import (
    ALPHA,
    Difference,
    Estimate,
    Floats,
    Ints,
    find_difference,
    holm,
    is_binary,
)
from fdllm.report.times import Times

FAR = 0.1
"""A loss of accuracy whose whole interval is beyond 10 points is a collapse."""
RISE = 0.05
"""So is a rise of the truncation or repetition rate whose interval is beyond 5 points."""


def compare(
    a: Record, b: Record, *, times: Times | None = None, margin: float = MARGIN
) -> Comparison:
    """Compare B with A; see :func:`compare_all`. Without times nothing is said of speed."""
    return compare_all([(a, b, times)], margin=margin)[0]


def compare_all(
    pairs: Sequence[tuple[Record, Record, Times | None]], *, margin: float = MARGIN
) -> list[Comparison]:
    """Compare several pairs as one family, with Holm's adjustment over it.

    Pairs that are one computation test nothing, so they do not count in the family;
    :func:`fdllm.report.grid.checks` says whether they agree.

    Args:
        pairs: A, B and the times of their task against A (:func:`fdllm.report.times.read_times`).
        margin: a loss of accuracy that "same" still allows.

    Raises:
        NotComparableError: task, metric, estimator, task version, documents or prompts differ.
        RecordError: a sample lacks its headline figure.
    """
    joined = [join(a, b) for a, b, _ in pairs]
    level = ALPHA / max(1, sum(not pair.is_twin for pair in joined))
    found = [find_difference(pair.values[0], pair.values[1], pair.groups, level) for pair in joined]
    families = zip(joined, found, strict=True)
    adjusted = iter(holm([one.p_value for pair, one in families if not pair.is_twin]))
    return [
        _judge(pair, one, one.p_value if pair.is_twin else next(adjusted), times, margin)
        for pair, one, (_, _, times) in zip(joined, found, pairs, strict=True)
    ]


def _judge(
    pair: Pair, difference: Difference, p_holm: float, times: Times | None, margin: float
) -> Comparison:
    a, b = pair.a, pair.b
    right = is_binary(*pair.values)
    certain = pair.is_twin and pair.identical
    comparison = Comparison(
        **vars(difference),
        a=a.name,
        b=b.name,
        task=a.task,
        limit=min((cell.limit for cell in (a, b) if cell.limit is not None), default=None),
        p_holm=p_holm,
        losses=pair.where(pair.values[0] > pair.values[1]) if right else (),
        gains=pair.where(pair.values[0] < pair.values[1]) if right else (),
        made=made_by(b, a),
        speed=None if times is None else times.pairs.get(b.name),
        floor=None if times is None else times.floor,
        margin=margin,
        **vars(weigh(pair.values[0], pair.values[1], pair.groups, margin)),
        rises=_rises(pair),
        collapsed=collapse_reasons(a, b, difference),
        same_computation=pair.is_twin,
        identical=pair.identical,
        tolerance=pair.tolerance,
        notes=tuple(_notes(pair)),
        verdict=decide(difference.difference, p_holm, margin, certain=certain),
    )
    return replace(comparison, sentence=describe(comparison))


def _rises(pair: Pair) -> dict[str, Marked]:
    """Documents whose answers are cut off, or repetitive, on one side alone, by criterion."""
    found = {}
    for name, column in SIGNS.items():
        rows = [[cell.by_key[key].get(column) for key in pair.keys] for cell in (pair.a, pair.b)]
        if not any(mark is None for of in rows for mark in of):
            then, now = (np.array(of, dtype=bool) for of in rows)
            found[name] = Marked(int((now & ~then).sum()), int((then & ~now).sum()), len(then))
    return found


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
    return "same-or-better" if certain or difference.low > -margin else "cannot-tell"


def _notes(pair: Pair) -> list[str]:
    a, b = pair.a, pair.b
    notes = []
    if pair.left_out:
        notes.append(f"{pair.left_out} documents are in one record only and were left out")
    notes += [
        f"{cell.name} ended where its criteria were decided ({cell.summary.decided.words}): the "
        "report's verdict takes that decision, and intervals here are those of a fixed number of "
        "documents"
        for cell in (a, b)
        if cell.summary.decided is not None
    ]
    if changed := differences(a, b):
        notes.append(f"more than the cell differs: {'; '.join(changed)}")
    if pair.is_twin and not pair.identical:
        notes.append(
            "their settings make them one computation, yet outputs differ"
            f"{stated(pair.tolerance)}: something is broken"
        )
    if pair.identical and not pair.is_twin:
        reuses = a.summary.strategy.reuses or b.summary.strategy.reuses
        ask = ": did the reuse reach this task?" if reuses else ", though their settings differ"
        notes.append(f"every output is identical{stated(pair.tolerance)}{ask}")
    for cell, values in zip((a, b), pair.values, strict=True):
        value = cell.summary.headline.value
        if not pair.left_out and abs(value - values.mean()) > 1e-6:  # noqa: PLR2004 - rounding
            notes.append(
                f"{cell.name}: the harness weighs its subtasks otherwise and reports "
                f"{100 * value:.1f} %"
            )
    return notes


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
    if a.summary.quality is None or b.summary.quality is None:
        return tuple(reasons)
    for name, rate in (("truncated", "truncation_rate"), ("repetitive", "repetition_rate")):
        one, other = getattr(a.summary.quality, rate), getattr(b.summary.quality, rate)
        if other - one > RISE and _rise(one, a, other, b) > RISE:
            reasons.append(f"{name} answers rose from {100 * one:.1f} to {100 * other:.1f} %")
    return tuple(reasons)


def _rise(one: float, a: Record, other: float, b: Record) -> float:
    """Lower end of Newcombe's interval of the rise: at least so much is certain."""
    num_a, num_b = a.summary.num_requests, b.summary.num_requests
    low, _ = confint_proportions_2indep(
        round(other * num_b), num_b, round(one * num_a), num_a, method="newcomb", compare="diff"
    )
    return float(low)


# --- two records, document by document ------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """The n documents that two records share, in one order; figures of A, then of B."""

    a: Record  # the first record
    b: Record  # the second
    keys: tuple[SampleKey, ...]  # leaf task and number of each document
    values: Floats  # headline figures, shape (2, n)
    # number of each document's subject, shape (n,); None where the task has none
    groups: Ints | None
    is_twin: bool  # by their settings the records are one computation
    identical: bool  # whether every output is the same, log-likelihoods to ``tolerance``
    tolerance: float  # see :data:`fdllm.report.agreement.TOLERANCE`; 0 where text is generated
    left_out: int  # documents that only one of the records has

    def where(self, chosen: Floats) -> tuple[SampleKey, ...]:
        """The documents of a mask, shape (n,)."""
        return tuple(key for key, picked in zip(self.keys, chosen, strict=True) if picked)


def join(a: Record, b: Record) -> Pair:
    """Join two records by document hash, leaf task and document number.

    Raises:
        NotComparableError: task, metric, estimator, task version, documents or prompts differ, no
            document is in both, or one alone whose figure is not yes or no.
        RecordError: a sample lacks its headline figure or its subject.
    """
    _check(a, b)
    keys = tuple(key for key in a.by_key if key in b.by_key)
    both = [[cell.by_key[key] for key in keys] for cell in (a, b)]
    for key, one, other in zip(keys, *both, strict=True):
        _check_sample(f"{a.name} and {b.name}", f"{key[0]} row {key[1]}", one, other)
    if not keys:
        raise NotComparableError(f"{a.name} and {b.name} have no document in common")
    values = [[cell.value(one) for one in of] for cell, of in zip((a, b), both, strict=True)]
    tolerance = tolerance_of((a.summary, b.summary))
    pair = Pair(
        a=a,
        b=b,
        keys=keys,
        values=np.array(values),
        groups=_groups(a, both[0]),
        is_twin=same_computation(a, b),
        identical=all(agree(one, other, tolerance) for one, other in zip(*both, strict=True)),
        tolerance=tolerance,
        left_out=len(a.samples) + len(b.samples) - 2 * len(keys),
    )
    if len(keys) == 1 and not is_binary(pair.values):
        raise NotComparableError(
            f"{a.name} and {b.name} share one document, and {a.summary.headline.metric} is not yes "
            "or no: one figure has no spread to go by"
        )
    return pair


def _check(a: Record, b: Record) -> None:
    # A record that ended early may lack a small subtask.
    subtasks = a.summary.task_versions.keys() & b.summary.task_versions.keys()
    facts = [
        {
            "task": cell.task,
            "headline metric": cell.summary.headline.metric,
            "estimator": cell.summary.estimator,
            "version of the task": ", ".join(
                f"{name} {cell.summary.task_versions[name]}" for name in sorted(subtasks)
            ),
            "task's definition": cell.summary.fingerprint.fields.get("task"),
        }
        for cell in (a, b)
    ]
    for name, one in facts[0].items():
        if one != facts[1][name]:
            raise NotComparableError(
                f"{a.name} and {b.name} cannot be compared: the {name} differs ({_cut(one)} "
                f"against {_cut(facts[1][name])}); compute both the same way"
            )


def _check_sample(names: str, where: str, one: dict[str, object], other: dict[str, object]) -> None:
    if one["doc_hash"] != other["doc_hash"]:
        raise NotComparableError(
            f"{names} cannot be compared: {where} is another document in each; the data set "
            "changed between the runs, so compute both anew"
        )
    if one["prompt_hash"] != other["prompt_hash"]:
        raise NotComparableError(
            f"{names} cannot be compared: {where} was asked with different prompts (worked "
            "examples, chat template or prompt rule); compute both the same way"
        )


def _cut(text: str | None) -> str:
    if text is None:
        return "none"
    return text if len(text) <= 40 else f"{text[:19]}…"  # noqa: PLR2004 - a hash says enough by then


def _groups(cell: Record, samples: Sequence[dict[str, object]]) -> Ints | None:
    info = TASKS.get(cell.task)
    # Of a task that is not known by name its samples tell whether it is a group.
    by = info.cluster_by if info else "subject" if "subject" in samples[0] else None
    if by is None:
        return None
    if any(by not in sample for sample in samples):
        raise RecordError(
            f"{cell.folder}: a sample of {cell.task} lacks its {by}, and documents of "
            f"one {by} go together; compute the run anew"
        )
    names = [str(sample[by]) for sample in samples]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)

"""Two records, document by document, and the refusal where they must not be compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fdllm.evaluate.tasks import TASKS
from fdllm.report.agreement import agree, tolerance_of
from fdllm.report.intervals import Floats, Ints
from fdllm.report.records import NotComparableError, Record, RecordError, SampleKey


@dataclass(frozen=True)
class Pairs:
    """The documents that two records share, in one order; every array has shape (n,).

    Attributes:
        keys: leaf task and number of each document.
        a: headline figure of the first record.
        b: of the second.
        seconds_a: model time of the first.
        seconds_b: of the second.
        tokens_a: tokens written or scored by the first.
        tokens_b: by the second.
        groups: number of each document's subject; None where the task has none.
        identical: whether every output is the same, log-likelihoods to ``tolerance``.
        tolerance: see :data:`fdllm.report.agreement.TOLERANCE`; 0 where text is generated.
        left_out: documents that only one of the records has.
    """

    keys: tuple[SampleKey, ...]
    a: Floats
    b: Floats
    seconds_a: Floats
    seconds_b: Floats
    tokens_a: Floats
    tokens_b: Floats
    groups: Ints | None
    identical: bool
    tolerance: float
    left_out: int


def join(a: Record, b: Record) -> Pairs:
    """Join two records by document hash, leaf task and document number.

    Raises:
        NotComparableError: task, metric, estimator, task version, documents or prompts differ, or
            no document is in both.
        RecordError: a sample lacks its headline figure or its subject.
    """
    _check(a, b)
    keys = [key for key in a.by_key if key in b.by_key]
    for key in keys:
        _check_sample(a, b, key)
    if not keys:
        raise NotComparableError(f"{a.name} and {b.name} have no document in common")
    tolerance = tolerance_of((a.summary, b.summary))
    of_a, of_b = [a.by_key[key] for key in keys], [b.by_key[key] for key in keys]

    def column(samples: list[dict[str, object]], field: str) -> Floats:
        return np.array([sample[field] for sample in samples], dtype=np.float64)

    return Pairs(
        keys=tuple(keys),
        a=np.array([a.value(sample) for sample in of_a]),
        b=np.array([b.value(sample) for sample in of_b]),
        seconds_a=column(of_a, "seconds"),
        seconds_b=column(of_b, "seconds"),
        tokens_a=column(of_a, "tokens"),
        tokens_b=column(of_b, "tokens"),
        groups=_groups(a, keys),
        identical=all(agree(a.by_key[key], b.by_key[key], tolerance) for key in keys),
        tolerance=tolerance,
        left_out=len(a.samples) + len(b.samples) - 2 * len(keys),
    )


def _check(a: Record, b: Record) -> None:
    facts = {
        "task": (a.task, b.task),
        "headline metric": (a.summary.headline.metric, b.summary.headline.metric),
        "estimator": (a.summary.estimator, b.summary.estimator),
        "version of the task": (_versions(a), _versions(b)),
        "task's definition": (_field(a, "task"), _field(b, "task")),
    }
    for name, (one, other) in facts.items():
        if one != other:
            raise NotComparableError(
                f"{a.name} and {b.name} cannot be compared: the {name} differs ({_cut(one)} "
                f"against {_cut(other)}); compute both the same way"
            )


def _check_sample(a: Record, b: Record, key: SampleKey) -> None:
    one, other = a.by_key[key], b.by_key[key]
    where = f"{key[0]} row {key[1]}"
    if one["doc_hash"] != other["doc_hash"]:
        raise NotComparableError(
            f"{a.name} and {b.name} cannot be compared: {where} is another document in each; the "
            "data set changed between the runs, so compute both anew"
        )
    if one["prompt_hash"] != other["prompt_hash"]:
        raise NotComparableError(
            f"{a.name} and {b.name} cannot be compared: {where} was asked with different prompts "
            "(worked examples, chat template or prompt rule); compute both the same way"
        )


def _versions(cell: Record) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(cell.summary.task_versions.items()))


def _field(cell: Record, name: str) -> str | None:
    return cell.summary.fingerprint.fields.get(name)


def _cut(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:19]}…"  # noqa: PLR2004 - a hash says enough by then


def _groups(cell: Record, keys: list[SampleKey]) -> Ints | None:
    info = TASKS.get(cell.task)
    if info is None or info.cluster_by is None:
        return None
    samples = [cell.by_key[key] for key in keys]
    if any(info.cluster_by not in sample for sample in samples):
        raise RecordError(
            f"{cell.folder}: a sample of {cell.task} lacks its {info.cluster_by}, and documents of "
            f"one {info.cluster_by} go together; compute the run anew"
        )
    names = [str(sample[info.cluster_by]) for sample in samples]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)

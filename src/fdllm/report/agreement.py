"""When two runs said the same: the one rule by which outputs of runs are compared.

Texts, choices and metrics must be equal. A log-likelihood may differ in its last digits: how many
rows shared a forward, and with which kernels, decides the order in which numbers are added. So a
run that was resumed, sharded or batched otherwise is the same run (docs/algorithm.md 5.6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fdllm.record.summary import Summary

TOLERANCE: Mapping[str, float] = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.5}
"""By how much the log-likelihoods of one answer may differ, in nats, by the weights' type.

What a type's rounding adds up to. Seen on the embedded model (answers of 7 tokens; batches of 1, 3
and 16; compiled kernels and torch's): at most 1.4e-5 in float32, and 0.34 in bfloat16, whose
mantissa is 16 bits shorter; that of float16 has 3 bits more. A reuse that acts where it must not is
seldom so small, and choices and metrics are held exactly beside it."""


def agree(one: Mapping[str, Any], other: Mapping[str, Any] | None, tolerance: float) -> bool:
    """Whether two samples hold one output, log-likelihoods to ``tolerance`` nats."""
    if other is None or any(one[name] != other[name] for name in ("tokens", "metrics")):
        return False
    return same_answers(one["output"], other["output"], tolerance)


def same_answers(one: Any, other: Any, tolerance: float) -> bool:  # noqa: ANN401 - texts or scores
    """Whether two answers are one: texts equal, choices equal, log-likelihoods to ``tolerance``."""
    if not (_are_scores(one) and _are_scores(other)):
        return bool(one == other)
    return (
        len(one) == len(other)
        and _choice(one) == _choice(other)
        and all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))
    )


def tolerance_of(summaries: Iterable[Summary]) -> float:
    """The tolerance that the records' types allow, in nats; 0 where text is generated."""
    scored = [summary for summary in summaries if summary.kind == "loglikelihood"]
    if not scored:
        return 0.0
    strict = TOLERANCE["float32"]
    sessions = [one for summary in scored for one in summary.provenance.get("sessions", [])]
    return max([strict, *(TOLERANCE.get(str(one.get("dtype")), strict) for one in sessions)])


def stated(tolerance: float) -> str:
    """How a sentence about equal outputs says to what tolerance they are; empty where exactly."""
    return f" (log-likelihoods to {tolerance:g})" if tolerance else ""


def _are_scores(said: Any) -> bool:  # noqa: ANN401
    return isinstance(said, list) and bool(said) and all(isinstance(v, float | int) for v in said)


def _choice(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)

"""From the rows of a run to the figures of its summary. Pure: the same rows, the same figures."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

from fdllm.record.summary import (
    Guard,
    Headline,
    LayerCalls,
    Quality,
    ScoredSteps,
    StrategyRecord,
    Throughput,
)

Rows = Sequence[Mapping[str, Any]]
"""Documents, each with the facts that :func:`fdllm.record.per_document.rows_of` lists."""
CountsByPhase = dict[str, dict[str, int | float]]

_WINDOW = 8  # tokens
_SHORTEST = 16  # tokens; a shorter answer cannot be told to be repetitive


def headline(metric: str, value: float, rows: Rows) -> Headline:
    """The headline figure, with the number of right documents where each is right or wrong."""
    single = [row["metrics"].get(metric) for row in rows]
    binary = all(isinstance(v, (bool, int, float)) and v in (0, 1) for v in single)
    correct = round(sum(single)) if binary else None
    # A group may weigh its subjects otherwise; then the documents do not add up to the figure.
    if correct is not None and rows and abs(correct / len(rows) - value) > 1e-6:  # noqa: PLR2004
        correct = None
    return Headline(metric=metric, value=value, num_samples=len(rows), num_correct=correct)


def beside(metric: str, figures: Mapping[str, float], rows: Rows) -> dict[str, float]:
    """The figures beside the headline, as far as they are means over documents."""
    means = {name: mean_of(name, rows) for name in figures if name != metric}
    return {
        name: figures[name]
        for name, mean in means.items()
        if mean is not None and abs(figures[name] - mean) <= 1e-6  # noqa: PLR2004 - rounding
    }


def mean_of(metric: str, rows: Rows) -> float | None:
    """A metric's mean over documents; None where a document has no number of it."""
    single = [row["metrics"].get(metric) for row in rows]
    if not rows or not all(isinstance(value, (bool, int, float)) for value in single):
        return None
    return float(sum(single)) / len(rows)


def dataset(samples: Rows) -> str:
    """SHA-256 over the documents used, in order: leaf task, number and hash of each."""
    lines = (f"{one['task']} {one['doc_id']} {one['doc_hash']}\n" for one in samples)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def add_counts(rows: Rows) -> CountsByPhase:
    """Forwards and layer calls of many rows, by phase."""
    total: CountsByPhase = {}
    for row in rows:
        for phase, count in row["counts"].items():
            into = total.setdefault(phase, dict.fromkeys(count, 0))
            for name, number in count.items():
                into[name] = into.get(name, 0) + number
    return total


def total(counts: CountsByPhase, name: str) -> int | float:
    """A count, all phases."""
    return sum(count.get(name, 0) for count in counts.values())


def made(count: Mapping[str, int | float]) -> float:
    """Layer calls made in a phase, those for some columns only by their share."""
    return count.get("computed", 0) - count.get("trimmed", 0)


def layer_calls(counts: CountsByPhase) -> LayerCalls:
    """Layers computed and saved."""
    computed, reused = int(total(counts, "computed")), int(total(counts, "reused"))
    trimmed = total(counts, "trimmed")
    return LayerCalls(
        computed=computed,
        reused=reused,
        trimmed=trimmed,
        saved_share=_ratio(reused + trimmed, computed + reused),
    )


def throughput(kind: str, rows: Rows, counts: CountsByPhase) -> Throughput:
    """Speed, from the time and the tokens of each document."""
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    latencies = [row["seconds"] for row in rows]
    p50, p95 = _percentile(latencies, 50), _percentile(latencies, 95)
    if kind == "generate":
        return Throughput(
            seconds=seconds,
            tokens=tokens,
            tokens_per_second=_ratio(tokens, seconds),
            # Drafts are computed in the forward of the state at hand.
            tokens_per_forward=_ratio(tokens, total(counts, "forwards") - total(counts, "drafted")),
            latency_p50_s=p50,
            latency_p95_s=p95,
        )
    return Throughput(
        seconds=seconds,
        scored_tokens=tokens,
        scored_tokens_per_second=_ratio(tokens, seconds),
        requests_per_second=_ratio(num_requests(rows), seconds),
        shared_tokens=int(total(counts, "shared")),
        latency_p50_s=p50,
        latency_p95_s=p95,
    )


def num_requests(rows: Rows) -> int:
    """Requests behind the rows: one a document, or one a choice."""
    return sum(row["requests"] for row in rows)


def quality(kind: str, rows: Rows) -> Quality | None:
    """Signs of degeneration; None where nothing is generated."""
    if kind != "generate":
        return None
    return Quality(
        truncation_rate=_ratio(sum(row["truncated"] for row in rows), num_requests(rows)),
        repetition_rate=_ratio(sum(row["repetitive"] for row in rows), num_requests(rows)),
    )


def scored_steps(kind: str, rows: Rows) -> ScoredSteps | None:
    """At which steps answers were scored; None where text is generated."""
    if kind != "loglikelihood":
        return None
    steps = Counter(step for row in rows for step in row["scored_step"])
    order = sorted(steps, key=lambda step: (step is None, step))
    return ScoredSteps(
        first={"look-ahead" if step is None else str(step): steps[step] for step in order},
        without_reuse=sum(not reused for row in rows for reused in row["reused_tokens"]),
    )


def is_repetitive(tokens: Sequence[int]) -> bool:
    """Whether more than half of all 8-token windows have occurred earlier in the same answer."""
    if len(tokens) < _SHORTEST:
        return False
    windows = [tuple(tokens[i : i + _WINDOW]) for i in range(len(tokens) - _WINDOW + 1)]
    return len(set(windows)) * 2 < len(windows)


def guards(
    strategy: StrategyRecord,
    counts: CountsByPhase,
    *,
    one_forward: bool,
    num_samples: int,
    num_documents: int,
    limited: bool = False,
) -> tuple[Guard, ...]:
    """The checks that a record must pass (docs/algorithm.md 4.8).

    Args:
        strategy: what was asked for.
        counts: what happened.
        one_forward: the estimator runs one forward a prompt, so that nothing can be reused.
        num_samples: lines of ``samples.jsonl``.
        num_documents: documents of the evaluation.
        limited: only a few rows were run, in which reuse may never have had its turn: a warning.
    """
    reused = total(counts, "reused") + total(counts, "trimmed")
    drafted = total(counts, "drafted")
    acted = bool(reused or drafted)
    denoise = counts.get("denoise", {}).get("forwards", 0)
    refresh = counts.get("refresh", {}).get("forwards", 0)
    figures = (
        f"{reused:.10g} of {total(counts, 'reused') + total(counts, 'computed')} layer calls saved "
        f"in {denoise} DENOISE "
        f"and {refresh} REFRESH forwards"
        + (f", {drafted} of them of drafted states" if drafted else "")
    )
    should = strategy.reuses and not one_forward
    if should and not acted:
        why = (
            "every step was a REFRESH, which never reuses: the block cache is off, each sub-block "
            "was finished in one step, or chain scored answers of one token"
            if not denoise
            else f"no step of period k={strategy.k} fell on a DENOISE: the answers are too short, "
            "or the strategy never planned a reuse"
        )
        figures = f"reuse never acted ({figures}): {why}"
    elif acted and not should:
        figures = f"no reuse was asked for, yet {figures}"
    return (
        Guard(
            name="reuse counters",
            passed=acted == should,
            detail=figures,
            level="warning" if limited and should and not acted else "error",
        ),
        Guard(
            name="every document has a sample",
            passed=num_samples == num_documents and num_samples > 0,
            detail=f"{num_samples} samples of {num_documents} documents",
        ),
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _percentile(values: Sequence[float], percent: int) -> float:
    if not values:
        return 0.0
    if len(values) == 1:
        return float(values[0])
    return float(quantiles(values, n=100, method="inclusive")[percent - 1])

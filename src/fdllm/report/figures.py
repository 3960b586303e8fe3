"""A cell's figures, computed from its documents, never read from its summary."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, quantiles
from typing import Literal

from fdllm.record import measure
from fdllm.record.summary import Headline
from fdllm.report.records import Record
from fdllm.report.stats import Estimate, wilson

_LONGEST = 8  # tokens a step may unmask before they are counted together
_TENTHS = 10


@dataclass(frozen=True)
class Lengths:
    """Lengths of the answers, in tokens: five percentiles and the mean."""

    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    mean: float


@dataclass(frozen=True)
class Unmasking:
    """Tokens unmasked by denoising steps."""

    # share of the steps that unmask 1, 2, … 8 tokens; the last counts more too
    shares: tuple[float, ...]
    tenths: tuple[float | None, ...]  # mean tokens a step unmasks, by tenth of the answer's steps
    mean: float  # tokens unmasked a step
    num_steps: int  # how many steps there were


@dataclass(frozen=True)
class CellFigures:
    """What one cell's documents show; None is what its kind of task hides."""

    name: str  # the config
    k: int  # reuse period
    subset: str  # layers, by name
    layers: str  # layers, by number, as ``12-23``
    reuses: bool  # whether it is meant to reuse anything
    accuracy: float  # the headline figure: share of right documents, or a mean over documents
    interval: Estimate | None  # the same with its interval, where documents are right or wrong
    num_samples: int  # documents
    num_correct: int | None  # right documents, where they are right or wrong
    speed: float  # tokens/s, or scored tokens/s where nothing is generated
    tokens: int  # generated or scored tokens
    seconds: float  # model time
    tokens_per_forward: float  # tokens by forwards of all phases
    latency_p50_s: float  # median model time of a sample
    latency_p95_s: float  # 95th percentile of the same
    calls: measure.CountsByPhase  # by phase, forwards and layer calls computed and reused
    saved_share: float  # layer calls reused, of all
    # speed-up if every step but each k-th skipped the layers (ANCESTOR's formula), where the
    # strategy has a period
    ideal: float | None
    possible: float  # speed-up if time followed the layer calls that were really made
    truncation: float | None  # share of answers that ended at their token limit
    repetition: float | None  # share of repetitive answers
    lengths: Lengths | None  # of the answers
    steps: Unmasking | None  # tokens unmasked
    # accuracy and documents by subject; empty where the task has none
    subjects: dict[str, tuple[float, int]]
    # where it ended because its criteria were decided, and how each was; None where it is whole
    decided: str | None = None
    outcomes: dict[str, Literal["met", "missed"]] | None = None


def headline(cell: Record) -> Headline:
    """The headline figure, from the documents: their mean."""
    metric = cell.summary.headline.metric
    values = [float(sample["metrics"][metric]) for sample in cell.samples]
    return measure.headline(metric, fmean(values) if values else 0.0, cell.samples)


def cell_figures(cell: Record) -> CellFigures:
    """A cell's figures.

    Raises:
        RecordError: its columns cannot be read.
    """
    summary, strategy = cell.summary, cell.summary.strategy
    generates = summary.kind == "generate"
    counts = measure.add_counts(cell.samples)
    speed = measure.throughput(summary.kind, cell.samples, counts)
    tokens = (speed.tokens if generates else speed.scored_tokens) or 0
    found = headline(cell)
    calls = measure.layer_calls(counts)
    quality = measure.quality(summary.kind, cell.samples)
    return CellFigures(
        name=cell.name,
        k=strategy.k,
        subset=strategy.subset,
        layers=span(strategy.layers),
        reuses=strategy.reuses,
        accuracy=found.value,
        interval=wilson(found),
        num_samples=found.num_samples,
        num_correct=found.num_correct,
        speed=(speed.tokens_per_second if generates else speed.scored_tokens_per_second) or 0.0,
        tokens=tokens,
        seconds=speed.seconds,
        tokens_per_forward=tokens / max(measure.total(counts, "forwards"), 1),
        latency_p50_s=speed.latency_p50_s,
        latency_p95_s=speed.latency_p95_s,
        calls=counts,
        saved_share=calls.saved_share,
        ideal=ideal_speedup(strategy.k, len(strategy.layers), strategy.n_layers)
        if strategy.reuses
        else None,
        possible=1 / (1 - calls.saved_share) if calls.saved_share < 1 else 1.0,
        truncation=None if quality is None else quality.truncation_rate,
        repetition=None if quality is None else quality.repetition_rate,
        lengths=_lengths([s["tokens"] for s in cell.samples]) if generates else None,
        steps=_steps([steps for s in cell.samples for steps in s["steps"]]) if generates else None,
        subjects=_subjects(cell),
        decided=None if summary.decided is None else summary.decided.words,
        outcomes=None if summary.decided is None else dict(summary.decided.outcomes),
    )


def ideal_speedup(k: int, num_skipped: int, n_layers: int) -> float | None:
    """Of a step, if ``num_skipped`` layers are skipped on all but every ``k``-th one.

    None where there is no period, so that the formula says nothing.
    """
    if k == 1 or not num_skipped:
        return None
    return 1 / (1 - num_skipped / n_layers * (1 - 1 / k))


def span(layers: Sequence[int]) -> str:
    """Layer numbers in short: ``12-23``, or each where they are not adjacent."""
    if not layers:
        return "none"
    if list(layers) == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1:
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))


def _lengths(lengths: Sequence[int]) -> Lengths | None:
    if len(lengths) < 2:  # noqa: PLR2004 - no percentiles of one
        return None
    cut = quantiles(lengths, n=100, method="inclusive")
    return Lengths(cut[4], cut[24], cut[49], cut[74], cut[94], fmean(lengths))


def _steps(answers: Sequence[Sequence[int]]) -> Unmasking | None:
    every = [number for steps in answers for number in steps if number]
    if not every:
        return None
    counted = [min(number, _LONGEST) for number in every]
    shares = tuple(counted.count(n) / len(every) for n in range(1, _LONGEST + 1))
    tenths: list[list[int]] = [[] for _ in range(_TENTHS)]
    for steps in answers:
        for tenth, into in enumerate(tenths):
            # At least one step, so that an answer of few steps counts in every tenth too.
            start = tenth * len(steps) // _TENTHS
            into.extend(steps[start : max(start + 1, (tenth + 1) * len(steps) // _TENTHS)])
    means = tuple(fmean(tenth) if tenth else None for tenth in tenths)
    return Unmasking(shares, means, fmean(every), len(every))


def _subjects(cell: Record) -> dict[str, tuple[float, int]]:
    metric = cell.summary.headline.metric
    values: defaultdict[str, list[float]] = defaultdict(list)
    for sample in cell.samples:
        if sample.get("subject") is not None:
            values[str(sample["subject"])].append(float(sample["metrics"][metric]))
    return {name: (fmean(found), len(found)) for name, found in sorted(values.items())}

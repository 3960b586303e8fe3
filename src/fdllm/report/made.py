"""What a config made by what another made; "saved" is what it did not make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fdllm.record import measure
from fdllm.report.records import Record, SampleKey


@dataclass(frozen=True)
class Made:
    """Ratios over the documents that both answered; None where one of them counted none."""

    layer_calls: float | None  # of all layers
    flops: float | None  # docs/algorithm.md 4.9
    bytes: float | None  # moved: of weights, of keys and values, of what reuse keeps
    # those of a drafted state apart, which share one with the state at hand
    forwards: float | None = None


def made_by(one: Record, other: Record) -> Made:
    """What ``one`` made by what ``other`` made."""
    if one.summary.dataset == other.summary.dataset:  # the same documents, no need to read them
        return _made(one.summary.counts, other.summary.counts)
    return made_on(one, other, one.by_key.keys() & other.by_key.keys())


def made_on(one: Record, other: Record, documents: Iterable[SampleKey]) -> Made:
    """The same on some documents, which both answered."""
    keys = list(documents)
    return _made(*(measure.add_counts([cell.by_key[key] for key in keys]) for cell in (one, other)))


def _made(ours: measure.CountsByPhase, theirs: measure.CountsByPhase) -> Made:
    def ratio(*names: str) -> float | None:
        mine, its = (sum(measure.total(x, name) for name in names) for x in (ours, theirs))
        return mine / its if mine and its else None

    calls, base = measure.layer_calls(ours).made, measure.layer_calls(theirs).made
    alone, others = (measure.total(x, "forwards") - measure.total(x, "drafted")
                     for x in (ours, theirs))  # fmt: skip
    return Made(
        forwards=alone / others if others else None,
        layer_calls=calls / base if base else None,
        flops=ratio("flops"),
        bytes=ratio("weight_bytes", "kv_bytes", "stored_bytes"),
    )

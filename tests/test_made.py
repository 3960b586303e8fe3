"""Made by the config over made by k=1: sums over the documents that both answered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cells import make_cell
from fdllm.report.made import Made, made_by
from fdllm.report.records import Record


def counted(config: str, dataset: str, *flops: int, **more: int) -> Record:
    """A document for each number of FLOPs; every other counter is the same for all."""
    cell = make_cell(config, [1.0] * len(flops))
    counts: list[dict[str, Any]] = [
        {"refresh": {"computed": 6, "flops": n}, "denoise": {"computed": 2, "trimmed": 0.5} | more}
        for n in flops
    ]
    samples = [one | {"counts": count} for one, count in zip(cell.samples, counts, strict=True)]
    return replace(cell, read=samples, summary=cell.summary.model_copy(update={"dataset": dataset}))


def test_only_documents_of_both_count() -> None:
    base = counted("k1_first", "four", 10, 20, 30, 4_000, weight_bytes=7, kv_bytes=1)
    cell = counted("k2_first", "two", 9, 18, weight_bytes=3, kv_bytes=2, stored_bytes=1)
    assert made_by(cell, base) == Made(layer_calls=1.0, flops=0.9, bytes=6 / 8)
    assert made_by(base, cell).flops == pytest.approx(1 / 0.9)


def test_the_same_documents_are_not_read_again() -> None:
    base, cell = counted("k1_first", "all", 1), counted("k2_first", "all", 1)
    counts = {"refresh": {"computed": 4, "flops": 8, "kv_bytes": 5}}
    base, cell = (
        replace(one, read=[], summary=one.summary.model_copy(update={"counts": found}))
        for one, found in (
            (base, counts),
            (cell, {"refresh": {"computed": 3, "flops": 2, "kv_bytes": 10}}),
        )
    )
    assert made_by(cell, base) == Made(0.75, 0.25, 2.0)


def test_what_was_not_counted_is_not_told() -> None:
    old, new = counted("k1_first", "old", 5), counted("k2_first", "new", 5)
    old = replace(old, read=[one | {"counts": {}} for one in old.samples])
    assert made_by(new, old) == Made(None, None, None)

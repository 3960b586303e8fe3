"""Documents that one config gets right and the other wrong, for reading side by side.

The page holds them once, as JSON, and draws what is asked for. Texts are cut, and where that is not
enough flips are left out, until they fit; what was cut is said, never hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fdllm import strictjson
from fdllm.report.compare_text import Comparison
from fdllm.report.records import Record, SampleKey

# Characters of a text and flips of a config, tried in this order until the page is small enough.
_ALL = 1 << 30
_CUTS = ((6000, _ALL), (3000, _ALL), (1500, _ALL), (800, _ALL), (800, 400), (600, 150), (300, 50))


@dataclass(frozen=True)
class FlipSource:
    """What the flips of one table are made of.

    Attributes:
        key: of the table on the page.
        baseline: the cell on the left.
        cells: the cells on the right, with their comparisons.
    """

    key: str
    baseline: Record
    cells: Sequence[tuple[Record, Comparison]]


def embed(sources: Sequence[FlipSource], budget: int) -> dict[str, Any]:
    """The flips of all tables, as small as it takes.

    Args:
        sources: the tables.
        budget: bytes of JSON that all of them together may take.

    Returns:
        By key of the table: ``baseline``, ``cells`` (names), ``docs`` and ``flips``, each flip a
        list of document, cell and 1 where the config gained it; and how much was ``cut`` and
        ``left_out``.
    """
    data: dict[str, Any] = {}
    for characters, most in _CUTS:
        data = {source.key: _table(source, characters, most) for source in sources}
        if len(strictjson.dumps(data).encode("utf-8", "replace")) <= budget:
            break
    return data


def _table(source: FlipSource, characters: int, most: int) -> dict[str, Any]:
    documents: dict[SampleKey, int] = {}
    flips: list[tuple[int, int, int]] = []
    answers: dict[SampleKey, dict[int, SampleKey]] = {}
    left_out = 0
    for index, (_, against) in enumerate(source.cells):
        both = [(key, 0) for key in against.losses] + [(key, 1) for key in against.gains]
        left_out += max(len(both) - most, 0)
        for key, gained in sorted(both)[:most]:
            number = documents.setdefault(key, len(documents))
            flips.append((number, index, gained))
            answers.setdefault(key, {})[index] = key
    cutter = _Cutter(characters)
    docs = [_document(source, key, sorted(answers[key]), cutter) for key in documents]
    return {
        "baseline": source.baseline.name,
        "cells": [cell.name for cell, _ in source.cells],
        "docs": docs,
        "flips": flips,
        "cut": cutter.num_cut,
        "left_out": left_out,
    }


class _Cutter:
    """Shortens texts and counts how many it had to shorten."""

    def __init__(self, characters: int) -> None:
        self._characters = characters
        self.num_cut = 0

    def __call__(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no UTF-8 form
        if len(text) <= self._characters:
            return text
        self.num_cut += 1
        left = len(text) - self._characters
        return f"{text[: self._characters]}\n[… {left:,} characters more, in samples.jsonl]"


def _document(
    source: FlipSource, key: SampleKey, cells: Sequence[int], cutter: _Cutter
) -> dict[str, Any]:
    sample = source.baseline.by_key[key]
    return {
        "id": f"{key[0]} #{key[1]}",
        "subject": sample.get("subject"),
        "prompt": cutter(_text(sample.get("prompt", ""))),
        "target": cutter(_text(sample.get("target", ""))),
        "base": _answer(source.baseline, sample, cutter),
        "answers": {
            index: _answer(source.cells[index][0], source.cells[index][0].by_key[key], cutter)
            for index in cells
        },
    }


def _answer(cell: Record, sample: Mapping[str, Any], cutter: _Cutter) -> dict[str, Any]:
    """What the config said, and what the metric read in it."""
    output = sample["output"]
    metric = cell.summary.headline.metric
    if cell.summary.kind == "generate":
        said = cutter(_text(output))
        read = sample.get("filtered", {}).get(metric.partition(",")[2])
        shown = cutter(_text(read)) if read is not None else ""
        # A filter that reads nothing hands the whole answer on; once is enough.
        return {
            "text": said,
            "read": "" if shown == said else shown,
            "tokens": sample["tokens"],
            "finish": sample.get("finish"),
        }
    best = max(range(len(output)), key=lambda i: output[i]) if output else None
    lines = [
        f"choice {i + 1}: log-likelihood {value:.4f}{'  ← chosen' if i == best else ''}"
        for i, value in enumerate(output)
    ]
    return {"text": "\n".join(lines), "read": "", "tokens": sample["tokens"], "finish": None}


def _text(value: Any) -> str:  # noqa: ANN401 - whatever the harness logged
    return value if isinstance(value, str) else strictjson.dumps(value)

"""Documents that one config gets right and the other wrong, for reading side by side.

The page holds them once, as JSON, and draws what is asked for. Texts are cut, and where that is not
enough flips are left out, until they fit; what was cut is said, never hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fdllm import strictjson
from fdllm.plain import shown
from fdllm.report.build import Section, TablePage
from fdllm.report.records import Record, SampleKey

# Characters of a text and flips of a config, tried in this order until the page is small enough.
_ALL = 1 << 30
_CUTS = ((6000, _ALL), (3000, _ALL), (1500, _ALL), (800, _ALL), (800, 400), (600, 150), (300, 50))


def embed(sections: Sequence[Section], budget: int) -> dict[str, Any]:
    """The flips of all tables whose texts are here, as small as it takes.

    Args:
        sections: records with their comparisons.
        budget: bytes of JSON that all of them together may take.

    Returns:
        By key of the table: ``baseline``, ``cells`` (names), ``docs`` and ``flips``, each flip a
        list of document, cell and 1 where the config gained it; and how much was ``cut`` and
        ``left_out``.
    """
    pairs = [
        (one.table, {record.name: record for record in one.records})
        for one in sections
        if one.table is not None
        and one.table.baseline is not None
        and not any(record.is_published for record in one.records)
    ]
    data: dict[str, Any] = {}
    for characters, most in _CUTS:
        data = {table.key: _table(table, of, _Cutter(characters), most) for table, of in pairs}
        if len(strictjson.dumps(data).encode("utf-8")) <= budget:
            break
    return data


def _table(
    table: TablePage, cells: Mapping[str, Record], cutter: _Cutter, most: int
) -> dict[str, Any]:
    names = [name for name in cells if name in table.against]
    baseline = cells[str(table.baseline)]
    documents: list[dict[str, Any]] = []
    numbers: dict[SampleKey, int] = {}
    flips: list[tuple[int, int, int]] = []
    left_out = 0
    for index, name in enumerate(names):
        against = table.against[name]
        both = [(key, 0) for key in against.losses] + [(key, 1) for key in against.gains]
        left_out += max(len(both) - most, 0)
        for key, gained in sorted(both)[:most]:
            if key not in numbers:
                numbers[key] = len(documents)
                documents.append(_document(baseline, key, cutter))
            documents[numbers[key]]["answers"][index] = _answer(cells[name], key, cutter)
            flips.append((numbers[key], index, gained))
    return {
        "baseline": baseline.name,
        "cells": names,
        "docs": documents,
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
        text = shown(text)
        if len(text) <= self._characters:
            return text
        self.num_cut += 1
        left = len(text) - self._characters
        return f"{text[: self._characters]}\n[… {left:,} characters more, in samples.jsonl]"


def _document(baseline: Record, key: SampleKey, cutter: _Cutter) -> dict[str, Any]:
    sample = baseline.texts[key]
    return {
        "id": f"{key[0]} #{key[1]}",
        "subject": sample.get("subject"),
        "prompt": cutter(_text(sample.get("prompt", ""))),
        "target": cutter(_text(sample.get("target", ""))),
        "base": _answer(baseline, key, cutter),
        "answers": {},
    }


def _answer(cell: Record, key: SampleKey, cutter: _Cutter) -> dict[str, Any]:
    """What the config said, and what the metric read in it."""
    sample = cell.texts[key]
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

"""Every document with every config's answer, for reading side by side in the page.

A table's texts are one compressed block, which the page unpacks when somebody looks at them. Texts
are cut, and where that is not enough documents are left out, until they fit: first those on which
no config differs, then flips. What was cut is said, never hidden.
"""

from __future__ import annotations

import base64
import shlex
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fdllm import strictjson
from fdllm.plain import shown
from fdllm.record.paths import TaskFolder
from fdllm.report.build import Section, TablePage
from fdllm.report.records import Record, SampleKey

UNPACKED = 12
"""Bytes that one packed byte may become: what a browser must unpack and hold."""
_ALL = 1 << 30
# Characters of a text, whether a document stays that no config flips, and flips of a config, tried
# in this order until the page is small enough.
_CUTS = (
    (6000, True, _ALL), (3000, True, _ALL), (1500, True, _ALL), (3000, False, _ALL),
    (800, False, _ALL), (800, False, 400), (600, False, 150), (300, False, 50),
)  # fmt: skip


@dataclass(frozen=True)
class PageTexts:
    """What the page holds of a table's documents.

    ``data`` has the names of ``cells``, the ``baseline``'s number among them or None, how a
    ``trace`` is begun, and ``docs``, each with an answer a cell, None where it was not asked.
    """

    data: dict[str, Any]
    packed: str  # the same as JSON, deflated, in base 64
    num_cut: int  # texts that are shortened
    num_same: int  # documents left out that no config flips
    num_flips: int  # flips left out


def embed(sections: Sequence[Section], experiment: str, budget: int) -> dict[str, PageTexts]:
    """The documents of all tables whose texts are here, by the table's key.

    They are as small as it takes: all of them together may have ``budget`` bytes of the page.
    """
    found: dict[str, PageTexts] = {}
    for cut in _CUTS:
        found = {
            one.table.key: _texts(one.table, one.records, experiment, cut)
            for one in sections
            if one.table is not None and not any(record.is_published for record in one.records)
        }
        unpacked = sum(len(strictjson.dumps(one.data).encode()) for one in found.values())
        packed = sum(len(one.packed) for one in found.values())
        if packed <= budget and unpacked <= UNPACKED * budget:
            break
    return found


def _texts(
    table: TablePage,
    records: Sequence[Record],
    experiment: str,
    cut: tuple[int, bool, int],
) -> PageTexts:
    characters, keeps_same, most = cut
    flips = {
        name: sorted([*against.losses, *against.gains]) for name, against in table.against.items()
    }
    flipped = {key for keys in flips.values() for key in keys[:most]}
    everything = sorted({key for record in records for key in record.texts})
    kept = [key for key in everything if keeps_same or key in flipped]
    cutter = _Cutter(characters)
    names = [record.name for record in records]
    data = {
        "cells": names,
        "baseline": names.index(table.baseline) if table.baseline else None,
        "trace": f"fdllm trace {selection(experiment, table)}",
        "docs": [_document(records, key, cutter) for key in kept],
    }
    every = {key for keys in flips.values() for key in keys}
    return PageTexts(
        data,
        base64.b64encode(zlib.compress(strictjson.dumps(data).encode(), 6)).decode(),
        cutter.num_cut,
        0 if keeps_same else len(set(everything) - every),
        sum(key not in flipped for keys in flips.values() for key in keys),
    )


def selection(experiment: str, table: TablePage) -> str:
    """The flags that select the runs of a table, as they would be typed."""
    folder = TaskFolder.parse(table.folder)
    words = ["--experiment", experiment, "--task", table.task]
    if folder is not None and folder.model is not None:
        words += ["--model", table.model]
    if folder is not None and folder.preset is not None:
        words += ["--preset", folder.preset]
    if table.limit is not None:
        words += ["--limit", str(table.limit)]
    return shown(shlex.join(words))


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


def _document(records: Sequence[Record], key: SampleKey, cutter: _Cutter) -> dict[str, Any]:
    sample = next(record.texts[key] for record in records if key in record.texts)
    leaf, number = shown(key[0]), key[1]
    subject = sample.get("subject")
    return {
        "name": str(number) if key[0] == records[0].task else f"{leaf}:{number}",
        "id": f"{leaf} #{number}",
        "subject": None if subject is None else shown(str(subject)),
        "prompt": cutter(_text(sample.get("prompt", ""))),
        "target": cutter(_text(sample.get("target", ""))),
        "answers": [_answer(one, one.texts[key], cutter) if key in one.texts else None
                    for one in records],
    }  # fmt: skip


def _answer(cell: Record, sample: dict[str, Any], cutter: _Cutter) -> dict[str, Any]:
    """What the config said, and what the metric read in it."""
    output = sample["output"]
    metric = cell.summary.headline.metric
    facts = {"value": cell.value(sample), "tokens": sample["tokens"]}
    if cell.summary.kind == "generate":
        said = cutter(_text(output))
        read = sample.get("filtered", {}).get(metric.partition(",")[2])
        seen = cutter(_text(read)) if read is not None else ""
        # A filter that reads nothing hands the whole answer on; once is enough.
        facts |= {"text": said, "read": "" if seen == said else seen}
        return facts | {"finish": sample.get("finish")}
    best = max(range(len(output)), key=lambda i: output[i]) if output else None
    lines = [
        f"choice {i + 1}: log-likelihood {value:.4f}{'  ← chosen' if i == best else ''}"
        for i, value in enumerate(output)
    ]
    return facts | {"text": "\n".join(lines), "read": "", "finish": None}


def _text(value: Any) -> str:  # noqa: ANN401 - whatever the harness logged
    return value if isinstance(value, str) else strictjson.dumps(value)

"""Invented answers of a cell that reuses so much and is so good; see :mod:`made_up`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fdllm.evaluate.recording import text_hash
from fdllm.record.summary import StrategyRecord

N_LAYERS = 28
METRICS = {
    "gsm8k": "exact_match,flexible-extract",
    "mmlu": "acc,none",
    "tiny_arithmetic": "exact_match,strict-match",
}
SUBJECTS = ("anatomy", "astronomy", "marketing", "virology")
GRID = tuple(f"k{k}_{subset}" for k in (1, 2, 3) for subset in ("first", "middle", "last"))


@dataclass(frozen=True)
class Invented:
    """How one cell turns out.

    Attributes:
        config: its name.
        accuracy: share of right documents, about.
        speed: tokens/s, about.
        repetitive: share of answers that repeat themselves.
        threshold: of decoding.
    """

    config: str
    accuracy: float = 0.8
    speed: float = 40.0
    repetitive: float = 0.0
    threshold: float = 0.95

    @property
    def k(self) -> int:
        """Reuse period."""
        return int(self.config[1]) if self.config in GRID else 1


def make_document(
    invented: Invented, strategy: StrategyRecord, task: str, doc: int, prompt_length: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A sample line and the journal entries behind it."""
    # Cells that do the same work give the same answers, as k1_first and k1_last must.
    same = "k1" if invented.k == 1 and invented.config in GRID else invented.config
    chance, clock = random.Random(f"{same} {doc}"), random.Random(f"{invented.config} {doc}")
    hard = random.Random(doc).random()
    right = (
        hard < invented.accuracy if chance.random() < 0.8 else chance.random() < invented.accuracy
    )
    make = _scored if task == "mmlu" else _generated
    entries = list(make(invented, strategy, task, doc, chance, right))
    for entry in entries:
        entry["seconds"] = _tokens(entry) / invented.speed * clock.uniform(0.93, 1.07)
    prompt = f"Question {doc}: " + _words(random.Random(doc), prompt_length) + "\nAnswer:"
    generated = entries[0]["kind"] == "generate"
    counts: dict[str, dict[str, int]] = {}
    for entry in entries:
        for phase, count in entry["counts"].items():
            into = counts.setdefault(phase, dict.fromkeys(count, 0))
            for name, number in count.items():
                into[name] += number
    leaf = f"mmlu_{SUBJECTS[doc % 4]}" if task == "mmlu" else task
    sample = {
        "task": leaf,
        "doc_id": doc,
        "doc_hash": text_hash(f"document {doc}"),
        "prompt_hash": text_hash(prompt),
        "prompt": prompt,
        "target": "A" if task == "mmlu" else f"#### {doc}",
        "output": entries[0]["text"] if generated else [e["loglikelihood"] for e in entries],
        "filtered": {METRICS[task].partition(",")[2]: str(doc if right else doc + 1)},
        "metrics": {METRICS[task]: 1.0 if right else 0.0},
        "tokens": sum(map(_tokens, entries)),
        "forwards": sum(count["forwards"] for count in counts.values()),
        "seconds": sum(e["seconds"] for e in entries),
        "counts": counts,
        "finish": entries[0].get("finish"),
    }
    if task == "mmlu":
        sample["subject"] = SUBJECTS[doc % 4]
    return sample, entries


def _generated(
    invented: Invented,
    strategy: StrategyRecord,
    task: str,
    doc: int,
    chance: random.Random,
    right: bool,
) -> Iterator[dict[str, Any]]:
    shared = random.Random(f"text {doc}")
    text = _words(shared, 250) + " " + _words(chance, 150)
    text += f"\nThe answer is {doc if right else doc + 1}. <b>&\u2028done</b>"
    tokens = [chance.randrange(1000) for _ in range(int(chance.triangular(30, 220, 70)))]
    repetitive = chance.random() < invented.repetitive
    if repetitive:
        tokens = [1, 2, 3, 4] * 64
    steps, left = [], len(tokens)
    while left > 0:
        steps.append(
            min(left, max(1, round(chance.gauss(3 - 2 * (invented.threshold - 0.5), 1.3))))
        )
        left -= steps[-1]
    yield {
        "kind": "generate",
        "task": task,
        "doc_id": doc,
        "index": 0,
        "prompt_hash": f"p{doc}",
        "text": text,
        "tokens": tokens,
        "num_tokens": len(tokens),
        "finish": "length" if repetitive else "stop",
        "counts": _counts(strategy, len(steps), 1 + len(tokens) // 32),
        "steps": steps,
    }


def _scored(
    invented: Invented,  # noqa: ARG001 - the same shape as _generated
    strategy: StrategyRecord,
    task: str,
    doc: int,
    chance: random.Random,
    right: bool,
) -> Iterator[dict[str, Any]]:
    for index in range(4):
        best = (index == 0) == right
        yield {
            "kind": "loglikelihood",
            "task": f"{task}_{SUBJECTS[doc % 4]}",
            "doc_id": doc,
            "index": index,
            "prompt_hash": f"p{doc}",
            "target": "ABCD"[index],
            "loglikelihood": -0.5 if best else -3 - chance.random(),
            "is_greedy": best,
            "scored_tokens": 1,
            "scored_step": 5,
            "reused_tokens": int(strategy.reuses),
            "counts": _counts(strategy, 5, 1),
        }


def _tokens(entry: dict[str, Any]) -> int:
    return int(entry["num_tokens" if entry["kind"] == "generate" else "scored_tokens"])


def _counts(strategy: StrategyRecord, steps: int, blocks: int) -> dict[str, dict[str, int]]:
    saved = len(strategy.layers)
    reusing = steps - steps // strategy.k if strategy.reuses else 0
    forwards = {"prefill": 1, "refresh": blocks, "denoise": max(steps, 2), "commit": blocks}
    return {
        phase: {
            "forwards": number,
            "computed": number * N_LAYERS - (reusing * saved if phase == "denoise" else 0),
            "reused": reusing * saved if phase == "denoise" else 0,
            "tokens": number * 8,
            "shared": 0,
        }
        for phase, number in forwards.items()
    }


def _words(chance: random.Random, length: int) -> str:
    known = (
        "the",
        "sum",
        "of",
        "seven",
        "apples",
        "and",
        "what",
        "she",
        "sold",
        "is",
        "left",
        "so",
    )
    return " ".join(chance.choices(known, k=length // 4 + 1))[:length]

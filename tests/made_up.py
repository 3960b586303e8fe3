"""Made-up records of any size: the real writing code, invented answers, no model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import GRID
from fdllm.core.config import Decoding
from fdllm.core.subsets import subset_bounds
from fdllm.evaluate.recording import Evaluation, fill_summary, text_hash, write_record
from fdllm.record.identity import Fingerprint, strategy_words
from fdllm.record.journal import VERSION as JOURNAL_VERSION
from fdllm.record.journal import JournalContent, sealed
from fdllm.record.measure import add_counts, dataset
from fdllm.record.paths import Layout, RunPaths
from fdllm.record.summary import PeakMemory, StrategyRecord
from fdllm.runs import CONFIG_NAME, Cell, Evaluating, ModelChoice, Run

N_LAYERS = 28
METRICS = {
    "gsm8k": "exact_match,flexible-extract",
    "mmlu": "acc,none",
    "tiny_arithmetic": "exact_match,strict-match",
}
SUBJECTS = ("anatomy", "astronomy", "marketing", "virology")
WORDS = ["the", "sum", "of", "seven", "apples", "and", "what", "she", "sold", "is", "left", "so"]
SESSION = {
    "started": "2026-01-02T03:04:05+00:00",
    "machine": "Quadro RTX 6000",
    "host": "node7",
    "device": "cuda",
    "dtype": "float16",
    "packages": {"torch": "2.13.0", "transformers": "4.57.6", "lm-eval": "0.4.13"},
    "git": {"commit": "0123456789abcdef", "dirty": False},
}


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


def baseline_grid() -> list[Invented]:
    """Nine cells: the more is reused, the worse and the faster."""
    loss = {1: 0.0, 2: 0.06, 3: 0.14}
    gain = {1: 1.0, 2: 1.14, 3: 1.22}
    return [
        Invented(
            name,
            accuracy=0.8 - loss[int(name[1])] + (0.02 if "first" in name and name[1] > "1" else 0),
            speed=40.0 * gain[int(name[1])] + index * 0.2,
            repetitive={1: 0.01, 2: 0.05, 3: 0.12}[int(name[1])],
        )
        for index, name in enumerate(GRID)
    ]


def write_grid(results: Path, cells: Sequence[Invented], **options: Any) -> list[RunPaths]:
    """Records of one task, a cell each, joined by their documents; see :func:`write_cell`."""
    return [write_cell(results, cell, **options) for cell in cells]


def write_cell(
    results: Path,
    invented: Invented,
    *,
    experiment: str = "00_baseline",
    task: str = "gsm8k",
    num_docs: int = 60,
    limit: int | None = None,
    prompt_length: int = 200,
) -> RunPaths:
    """A record, its journal and its copy for git."""
    told = CONFIG_NAME.match(invented.config)
    cell = Cell.read({"name": invented.config} | (told.groupdict() if told else {}), "cell")
    decoding = Decoding(threshold=invented.threshold)
    run = Run(
        experiment=experiment, task=task, cell=cell, model=ModelChoice(), limit=limit,
        decoding=decoding, evaluating=Evaluating(),
    )  # fmt: skip
    paths = Layout.of(results.parent, results).run(run)
    start, stop = subset_bounds(cell.subset, N_LAYERS, None)
    strategy = StrategyRecord(
        text=f"PeriodicReuse(k={cell.k})" if cell.k > 1 else "NoReuse()",
        k=cell.k,
        subset=cell.subset,
        layers=tuple(range(start, stop)) if cell.k > 1 else (),
        n_layers=N_LAYERS,
        reuses=cell.k > 1,
    )
    identity = _identity(invented, task, limit, strategy)
    samples, entries = [], []
    for doc in range(num_docs):
        sample, answers = _document(invented, strategy, task, doc, prompt_length)
        samples.append(sample)
        entries += answers
    lines: list[dict[str, Any]] = [
        {"journal": JOURNAL_VERSION, "fingerprint": identity.model_dump()},
        {"session": SESSION},
        *({"key": str(number), "entry": entry} for number, entry in enumerate(entries)),
        {"total": len(entries)},
    ]
    paths.folder.mkdir(parents=True, exist_ok=True)
    paths.journal.write_bytes(b"".join(sealed(lines)))  # one write, not one a line, made durable
    metric = METRICS[task]
    value = sum(s["metrics"][metric] for s in samples) / len(samples)
    found = Evaluation(
        {"results": {task: {metric: value}}},
        samples,
        metric,
        value,
        dataset(samples),
        {task: 1},
        num_docs,
        entries,
    )
    summary = fill_summary(
        run,
        found,
        strategy=strategy,
        identity=identity,
        peak_memory=PeakMemory(bytes=1 << 30, kind="resident"),
        journal=JournalContent(sessions=[SESSION]),
    )
    write_record(paths, summary, found)
    return paths


def _identity(
    invented: Invented, task: str, limit: int | None, strategy: StrategyRecord
) -> Fingerprint:
    return Fingerprint(
        fields={
            "source": "a" * 64,
            "experiment": "b" * 64,
            "decoding": f"block_size=32, threshold={invented.threshold}",
            "strategy": strategy_words(strategy.text, strategy.layers, strategy.n_layers),
            "task": text_hash(task),
            "limit": "all" if limit is None else str(limit),
            "scoring": "denoise" if task == "mmlu" else "none",
            "fewshot_seed": "1234",
        }
    )


def tamper(path: Path, line: int, **changes: Any) -> None:
    """Change fields of one sample, and nothing else."""
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[line] = json.dumps(json.loads(lines[line]) | changes, ensure_ascii=False)
    path.write_text("\n".join(lines), encoding="utf-8")


# --- answers --------------------------------------------------------------------------------------


def _document(
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
    for entry in entries:
        entry["prompt_hash"] = text_hash(prompt)
    generated = entries[0]["kind"] == "generate"
    counts = add_counts(entries)
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
    return " ".join(chance.choices(WORDS, k=length // 4 + 1))[:length]

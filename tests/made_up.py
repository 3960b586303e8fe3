"""Made-up records of any size: the real writing code, invented answers, no model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fdllm.core.config import Decoding
from fdllm.core.reuse import subset_bounds
from fdllm.evaluate.recording import Evaluation, fill_summary, text_hash, write_record
from fdllm.record.identity import Fingerprint
from fdllm.record.journal import VERSION as JOURNAL_VERSION
from fdllm.record.paths import Layout, RunPaths
from fdllm.record.summary import PeakMemory, StrategyRecord
from fdllm.runs import CONFIG_NAME, Cell, Evaluating, ModelChoice, Run
from made_up_answers import GRID, METRICS, N_LAYERS, Invented, make_document

__all__ = ["GRID", "Invented", "baseline_grid", "tamper", "write_grid"]


def write_grid(
    results: Path,
    cells: Sequence[Invented],
    *,
    experiment: str = "00_baseline",
    task: str = "gsm8k",
    num_docs: int = 60,
    limit: int | None = None,
    prompt_length: int = 200,
) -> list[RunPaths]:
    """Records of one task, a cell each, joined by their documents."""
    return [
        _write(results, cell, experiment, task, num_docs, limit, prompt_length) for cell in cells
    ]


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


def _write(
    results: Path,
    invented: Invented,
    experiment: str,
    task: str,
    num_docs: int,
    limit: int | None,
    prompt_length: int,
) -> RunPaths:
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
    identity = _identity(invented, task, limit)
    session = _session()
    samples, entries = [], []
    for doc in range(num_docs):
        sample, answers = make_document(invented, strategy, task, doc, prompt_length)
        samples.append(sample)
        entries += answers
    lines: list[dict[str, Any]] = [
        {"journal": JOURNAL_VERSION, "fingerprint": identity.model_dump()},
        {"session": session},
        *({"key": str(number), "entry": entry} for number, entry in enumerate(entries)),
        {"total": len(entries)},
    ]
    paths.folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    paths.journal.write_text(text, encoding="utf-8")  # one write, not one a line, made durable
    metric = METRICS[task]
    value = sum(s["metrics"][metric] for s in samples) / len(samples)
    found = Evaluation(
        {"results": {task: {metric: value}}},
        samples,
        metric,
        value,
        "d" * 64,
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
        sessions=[session],
    )
    write_record(paths, summary, found)
    return paths


def _identity(invented: Invented, task: str, limit: int | None) -> Fingerprint:
    return Fingerprint(
        fields={
            "source": "a" * 64,
            "experiment": "b" * 64,
            "decoding": f"block_size=32, threshold={invented.threshold}",
            "strategy": invented.config,
            "task": text_hash(task),
            "limit": str(limit),
            "fewshot_seed": "1234",
        }
    )


def _session() -> dict[str, Any]:
    return {
        "started": "2026-01-02T03:04:05+00:00",
        "machine": "Quadro RTX 6000",
        "host": "node7",
        "device": "cuda",
        "dtype": "float16",
        "packages": {"torch": "2.13.0", "transformers": "4.57.6", "lm-eval": "0.4.13"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
    }


def tamper(path: Path, line: int, **changes: Any) -> None:
    """Change fields of one sample, and nothing else."""
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[line] = json.dumps(json.loads(lines[line]) | changes, ensure_ascii=False)
    path.write_text("\n".join(lines), encoding="utf-8")

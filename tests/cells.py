"""Records of which every figure is chosen: in memory, or written as a run would leave them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fdllm.evaluate.tasks import TASKS
from fdllm.record.atomic import write_json
from fdllm.record.identity import Fingerprint
from fdllm.record.paths import COLUMNS, SAMPLES, TIMING
from fdllm.record.per_document import digest_of_answer, pack, rows_of
from fdllm.record.study import Agreement, ConfigTimes, Study
from fdllm.record.summary import (
    Headline,
    LayerCalls,
    PeakMemory,
    Quality,
    StrategyRecord,
    Summary,
    Throughput,
    describe_file,
)
from fdllm.report.compare import compare_all
from fdllm.report.compare_text import Comparison
from fdllm.report.records import Record, load_record, sample_key
from fdllm.report.stats import Estimate
from fdllm.report.times import TimedPair, Times, claim_of

Numbers = Sequence[float] | Any
GRID = tuple(f"k{k}_{subset}" for k in (1, 2, 3) for subset in ("first", "middle", "last"))
MACHINE = "Quadro RTX 6000"


def make_samples(
    task: str,
    right: Numbers,
    seconds: Numbers,
    tokens: Numbers,
    outputs: Sequence[Any] | None = None,
    subjects: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """A sample a document, each with the figure it is given."""
    samples = []
    for i, value in enumerate(right):
        sample = {
            "task": task if subjects is None else f"{task}_{subjects[i]}",
            "doc_id": i,
            "doc_hash": f"document {i}",
            "prompt_hash": f"prompt {i}",
            "prompt": f"Question {i}?",
            "target": f"target {i}",
            "output": f"answer {value}" if outputs is None else outputs[i],
            "metrics": {TASKS[task].headline: float(value)},
            "tokens": int(tokens[i]),
            "seconds": float(seconds[i]),
        }
        samples.append(sample if subjects is None else sample | {"subject": subjects[i]})
    return samples


def make_cell(
    config: str,
    right: Numbers,
    *,
    seconds: Numbers | None = None,
    tokens: Numbers | None = None,
    outputs: Sequence[Any] | None = None,
    subjects: Sequence[str] | None = None,
    task: str = "gsm8k",
    limit: int | None = None,
    machines: Sequence[str] = (MACHINE,),
    batch_size: int = 1,
    fields: dict[str, str] | None = None,
    repetition: float = 0.0,
    truncation: float = 0.0,
    estimator: Any = "denoise",
    versions: dict[str, Any] | None = None,
    folder: Path = Path("results"),
    calls: dict[str, int] | None = None,
) -> Record:
    """A finished run: ``right`` is its headline figure for each document."""
    n = len(right)
    used = np.full(n, 2.0) if seconds is None else np.asarray(seconds)
    written = np.full(n, 100) if tokens is None else np.asarray(tokens)
    samples = make_samples(task, right, used, written, outputs, subjects)
    if calls is not None:  # of every document, by phase
        counts = {phase: {"computed": number} for phase, number in calls.items()}
        samples = [sample | {"counts": counts} for sample in samples]
    kind = TASKS[task].kind
    reuses = config[:2] in ("k2", "k3")
    generated = kind == "generate"
    per_second = float(written.sum() / used.sum())
    summary = Summary(
        experiment="00_baseline",
        task=task,
        config=config,
        limit=limit,
        model="Efficient-Large-Model/Fast_dLLM_v2_7B",
        kind=kind,
        estimator=None if generated else estimator,
        headline=Headline(
            metric=TASKS[task].headline,
            value=float(np.mean(right)),
            num_samples=n,
            num_correct=None,
        ),
        num_requests=n,
        throughput=Throughput(
            seconds=float(used.sum()),
            tokens_per_second=per_second if generated else None,
            scored_tokens_per_second=None if generated else per_second,
            latency_p50_s=1.0,
            latency_p95_s=1.0,
        ),
        peak_memory=PeakMemory(bytes=1, kind="cuda"),
        counts={},
        layer_calls=LayerCalls(computed=1, reused=int(reuses), saved_share=0.5 * reuses),
        quality=Quality(truncation_rate=truncation, repetition_rate=repetition)
        if generated
        else None,
        strategy=StrategyRecord(
            text=config, k=int(config[1]), subset="first", layers=(1,), n_layers=28, reuses=reuses
        ),
        guards=(),
        files={},
        fingerprint=Fingerprint(
            fields={"source": "s1", "task": task, "decoding": "threshold=0.9", "limit": str(limit)}
            | {"strategy": config}
            | (fields or {})
        ),
        dataset="documents",
        task_versions={task: 3} if versions is None else versions,
        provenance={"sessions": [{"machine": m, "batch_size": batch_size} for m in machines]},
    )
    return Record(folder / config, summary, samples)


def write_cell(results: Path, cell: Record) -> Record:
    """Put a record where a run would leave it, and read it back."""
    limit = "" if cell.limit is None else f"_limit_{cell.limit}"
    folder = results / cell.summary.experiment / f"{cell.task}{limit}" / cell.name
    folder.mkdir(parents=True)
    samples = folder / SAMPLES
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in cell.samples]
    samples.write_text("".join(lines), encoding="utf-8")
    columns = folder / COLUMNS
    columns.write_bytes(pack(rows_of(cell.samples, ())))
    files = {
        SAMPLES: describe_file(samples, len(lines)),
        COLUMNS: describe_file(columns, None),
    }
    summary = cell.summary.model_copy(update={"files": files})
    write_json(folder / "summary.json", summary.model_dump(mode="json"))
    return load_record(folder)


def make_times(
    floor: float | None = 0.01, *, baseline: str = "k1_first", **ratios: float | tuple[float, ...]
) -> Times:
    """A study's times by config: a ratio, held within 1 %, or a ratio and its interval."""
    noise = None if floor is None else math.log1p(floor)
    pairs = {}
    for name, given in ratios.items():
        ends = given if isinstance(given, tuple) else (given, 0.99 * given, 1.01 * given)
        claim = claim_of(Estimate(*(math.log(end) for end in ends)), noise)
        pairs[name] = TimedPair(baseline, name, Estimate(*ends), name.startswith("k1"), claim)
    return Times(pairs, floor, "timing study of 100 documents")


def compare_grid(
    baseline: Record, others: Sequence[Record], times: Times | None = None
) -> list[Comparison]:
    """Every cell of a grid against its baseline, as one family."""
    return compare_all([(baseline, cell, times) for cell in others])


def write_study(cells: Sequence[Record], ratios: Mapping[str, float], **changes: Any) -> Study:
    """A study beside written records: each config takes so many times the first one's time."""
    draw = np.random.default_rng(len(cells))
    keys = [sample_key(sample) for sample in cells[0].samples]
    length = draw.lognormal(-3, 0.3, (len(keys), 1))
    configs = {}
    for cell in cells:
        seconds = length * ratios.get(cell.name, 1.0) * np.exp(draw.normal(0, 0.01, (len(keys), 3)))
        configs[cell.name] = ConfigTimes(
            fingerprint={k: v for k, v in cell.summary.fingerprint.fields.items() if v is not None},
            k=cell.summary.strategy.k,
            reuses=cell.summary.strategy.reuses,
            seconds=tuple(map(tuple, seconds.tolist())),
            answers=tuple(_digest(cell.by_key[key]["output"]) for key in keys),
            agrees=Agreement(compared=len(keys), equal=len(keys)),
        )
    summary = cells[0].summary
    values: dict[str, Any] = {
        "experiment": summary.experiment, "task": summary.task, "limit": summary.limit,
        "model": summary.model, "baseline": cells[0].name, "repeats": 3, "documents": tuple(keys),
        "configs": configs, "device": MACHINE, "dtype": "float16", "threads": None,
        "started": "2026-01-02T03:04:05+00:00", "seconds": 1.0,
    }  # fmt: skip
    study = Study(**(values | changes))
    study.write(cells[0].folder.parent / TIMING / "study.json")
    return study


def _digest(output: Any) -> str:
    return output if isinstance(output, str) else digest_of_answer(output)  # texts are told by it


def flipped(right: Any, losses: int, gains: int) -> Any:
    """``right`` with its first right documents made wrong, and its first wrong ones right."""
    new = np.array(right, dtype=float)
    ones, zeros = np.flatnonzero(new == 1), np.flatnonzero(new == 0)
    new[ones[:losses]] = 0
    new[zeros[:gains]] = 1
    return new


def share(n: int, num_right: int) -> Any:
    """``num_right`` ones of ``n``."""
    return (np.arange(n) < num_right).astype(float)

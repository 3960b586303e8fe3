"""What sharing is worth on 5-shot MMLU: ``python benchmarks/loglikelihood.py --shared ../shared``.

One subject's questions behind its five examples, in the harness's own prompts, scored by a random
model (28 layers x 512) in one process: with everything off (one request, one forward after the
other, as the published evaluator works), then with each idea added. Printed are wall time, the
tokens that went through the network, and the floor: the bare matrix products and attention of the
forwards that were left, one row at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fdllm
from fdllm.core.scorer import Score, score_requests
from fdllm.selftest.subjects import random_model, small
from fdllm_bench.floor import seconds
from fdllm_bench.loads import Seen
from fdllm_bench.models import BenchModel, with_floor
from fdllm_bench.tables import text

TESTS = Path(__file__).resolve().parents[1] / "tests"
Pairs = list[tuple[list[int], list[int]]]


def harness_requests(shared: Path, subject: str, questions: int) -> tuple[Pairs, int]:
    """The harness's requests for a subject, tokenised, and the size of the vocabulary."""
    sys.path.insert(0, str(TESTS))  # the loopback Hub that serves the rows
    from hub.checkpoint import byte_tokenizer  # noqa: PLC0415
    from hub.rows import all_repositories, read_rows  # noqa: PLC0415
    from hub.server import Hub  # noqa: PLC0415

    texts = [str(row["question"]) for row in read_rows(shared, "mmlu_test.jsonl")]
    tokenizer = byte_tokenizer(texts)
    with tempfile.TemporaryDirectory() as home, Hub(all_repositories(shared)) as hub:
        os.environ |= {"HF_HOME": home, "HF_ENDPOINT": hub.url}
        from lm_eval.tasks import TaskManager  # noqa: PLC0415

        name = f"mmlu_{subject}"
        task: Any = TaskManager().load([name])["tasks"][name]
        task.set_config(key="num_fewshot", value=5)
        task.build_all_requests(limit=questions, rank=0, world_size=1)
    pairs = []
    for instance in task.instances:
        context, continuation = instance.args
        ahead = tokenizer.encode(context)
        pairs.append((ahead, tokenizer.encode(context + continuation)[len(ahead) :]))
    return pairs, len(tokenizer)


def floor_seconds(bench: BenchModel, seen: Seen) -> float:
    """The bare forwards: each different one is timed, and counted as often as it was made."""
    return sum(
        count * seconds(bench.floor.prepare(shape), 1)
        for shape, count in Counter(seen.shapes).items()
    )


def main() -> None:
    """Run each idea on top of the ones before, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with datasets/")
    parser.add_argument("--subject", default="abstract_algebra")
    parser.add_argument("--questions", type=int, default=25)
    parser.add_argument("--scoring", choices=("first-token", "denoise"), default="first-token")
    parser.add_argument("--repeats", type=int, default=3, help="of all variants but the first")
    parser.add_argument("--batch-size", type=int, default=16, help="rows at once in the last one")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    pairs, vocabulary = harness_requests(given.shared, given.subject, given.questions)
    spec = replace(small(given.layers, given.width), vocab_size=vocabulary, mask_id=vocabulary - 1)
    model = random_model("random", spec, torch.device("cpu"), torch.float32)
    bench = with_floor("random", model)
    off: dict[str, Any] = {"deduplicate": False, "prefix_cache_gib": 0.0, "batch_size": 1}
    variants = {"all off": off, "+ identical inputs once": off | {"deduplicate": True}}
    variants["+ shared prefixes"] = {**off, "deduplicate": True, "prefix_cache_gib": 1.0}
    last = {**variants["+ shared prefixes"], "batch_size": given.batch_size}
    variants[f"+ batches of {given.batch_size}"] = last

    def run(some: Pairs, settings: dict[str, Any], hook: Seen | None = None) -> list[Score]:
        decoding = fdllm.Decoding(stop_token=(), end_token=0)
        return score_requests(model, some, decoding, scoring=given.scoring, hook=hook, **settings)

    run(pairs[:1], off)  # warm up
    lengths = [len(prefix) for prefix, _ in pairs]
    title = (
        f"{given.scoring}, {len(pairs)} requests of {min(lengths)}-{max(lengths)} tokens, "
        f"{given.layers} layers x {given.width}"
    )
    table = Table("variant", "seconds", "times", "fed tokens", "times", "floor", title=title)
    base_seconds, base_tokens, base = 0.0, 0, list[Score]()
    for name, settings in variants.items():
        took, scores = [], list[Score]()
        for _ in range(given.repeats if base else 1):
            began = time.perf_counter()
            scores = run(pairs, settings)
            took.append(time.perf_counter() - began)
            print(f"{name}: {took[-1]:.2f} s", file=sys.stderr, flush=True)
        seen = Seen(bench)
        run(pairs, settings, seen)
        floor = floor_seconds(bench, seen)
        fed, middle = sum(score.counts.tokens for score in scores), median(took)
        if not base:
            base_seconds, base_tokens, base = middle, fed, scores
        moved = max(
            abs(a.loglikelihood - b.loglikelihood) for a, b in zip(scores, base, strict=True)
        )
        assert moved < 1e-4, f"{name} changed a score by {moved}"  # noqa: S101, PLR2004
        table.add_row(
            name,
            text(tuple(took)),
            f"{base_seconds / middle:.1f}x",
            f"{fed:,}",
            f"{base_tokens / fed:.1f}x",
            f"{floor:.2f} s ({middle / floor:.2f} times)",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

"""What sharing is worth on 5-shot MMLU: ``python benchmarks/loglikelihood.py --shared ../shared``.

One subject's questions behind its five examples, in the harness's own prompts, scored by a random
model (28 layers x 512) in one process: with everything off (one request, one forward after the
other, as the published evaluator works), then with each idea added, in turn. Printed are wall time,
the tokens that went through the network, and the floor: the bare matrix products and attention of
the forwards that were left, one row at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from functools import partial
from operator import sub
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import fdllm
from fdllm.core.scorer import Score
from fdllm.selftest.subjects import random_model, small
from fdllm.timing.interleave import Rounds, interleave
from fdllm_bench.floor import seconds
from fdllm_bench.loads import Seen
from fdllm_bench.models import BenchModel, with_floor
from fdllm_bench.tables import Line, section

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
    parser.add_argument("--repeats", type=int, default=3, help="of all variants")
    parser.add_argument("--batch-size", type=int, default=16, help="rows at once in the last one")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=512)
    given = parser.parse_args()
    pairs, vocabulary = harness_requests(given.shared, given.subject, given.questions)
    spec = replace(small(given.layers, given.width), vocab_size=vocabulary, mask_id=vocabulary - 1)
    model = random_model("random", spec, torch.device("cpu"), torch.float32)
    bench = with_floor(f"random {given.layers} x {given.width}", model)
    off: dict[str, Any] = {"deduplicate": False, "prefix_cache_gib": 0.0, "batch_size": 1}
    variants = {"all off": off, "+ identical inputs once": off | {"deduplicate": True}}
    variants["+ shared prefixes"] = {**off, "deduplicate": True, "prefix_cache_gib": 1.0}
    last = {**variants["+ shared prefixes"], "batch_size": given.batch_size}
    variants[f"+ batches of {given.batch_size}"] = last

    def run(settings: dict[str, Any], hook: Seen | None = None) -> list[Score]:
        decoding = fdllm.Decoding(stop_token=(), end_token=0)
        return fdllm.score(model, pairs, given.scoring, decoding, hook=hook, **settings)

    floors, fed, scores = {}, {}, {}
    for name, settings in variants.items():
        seen = Seen(bench)
        found = run(settings, seen)
        scores[name] = [one.loglikelihood for one in found]
        fed[name] = sum(one.counts.tokens for one in found)
        floors[name] = floor_seconds(bench, seen)
        moved = max(map(abs, map(sub, scores[name], scores["all off"])))
        assert moved < 1e-4, f"{name} changed a score by {moved}"  # noqa: S101, PLR2004
    works = {name: partial(run, settings) for name, settings in variants.items()}
    done = interleave(works, bench.model.device, Rounds(given.repeats, warm_ups=0))
    lines = [
        Line(
            name,
            took,
            (floors[name],) * given.repeats,
            done["all off"],
            {"fed tokens": fed[name], "times fewer": fed["all off"] / fed[name]},
        )
        for name, took in done.items()
    ]
    lengths = [len(prefix) for prefix, _ in pairs]
    title = f"{given.scoring}, {len(pairs)} requests of {min(lengths)}-{max(lengths)} tokens"
    notes = ["floor: each different forward timed alone, times how often it is made"]
    section(bench, "loglikelihood", title, lines, *notes, baseline="all off").show(Console())


if __name__ == "__main__":
    main()

"""What sharing is worth on 5-shot MMLU: ``python benchmarks/loglikelihood.py --shared ../shared``.

One subject's questions behind its five examples, in the harness's own prompts, scored by a random
model (28 layers x 512) in one process: with everything off (one request, one forward after the
other, as the published evaluator works), then with each idea added. Printed are wall time, the
tokens that went through the network, and the floor: the bare matrix products and attention of the
forwards that were left, looped over the same shapes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fdllm
from fdllm.bench.shapes import random_model, small
from fdllm.core.cache import RowCache, Window
from fdllm.core.model_runner import Forwarded
from fdllm.core.scorer import Score, score_requests

TESTS = Path(__file__).resolve().parents[1] / "tests"
Pairs = list[tuple[list[int], list[int]]]
Windows = tuple[Window, ...]


@dataclass(frozen=True)
class Variant:
    """One way to run the same requests."""

    name: str
    deduplicate: bool
    prefix_cache_gib: float
    batch_size: int


def variants(batch_size: int) -> list[Variant]:
    """Each idea on top of the ones before."""
    name = f"+ batches of {batch_size}"
    return [
        Variant("all off", deduplicate=False, prefix_cache_gib=0.0, batch_size=1),
        Variant("+ identical inputs once", deduplicate=True, prefix_cache_gib=0.0, batch_size=1),
        Variant("+ shared prefixes", deduplicate=True, prefix_cache_gib=1.0, batch_size=1),
        Variant(name, deduplicate=True, prefix_cache_gib=1.0, batch_size=batch_size),
    ]


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


def model_of(vocab_size: int, layers: int, width: int, *, freeze: bool) -> fdllm.Model:
    """Random weights of the bench's shapes, with a head for this vocabulary."""
    spec = replace(small(layers, width), vocab_size=vocab_size, mask_id=vocab_size - 1)
    made = random_model("random", spec, "cpu", "float32")
    if freeze:
        made.network.freeze()
    return made


def timed(work: Callable[[], list[Score]]) -> tuple[list[Score], float]:
    """The result and its wall time in seconds."""
    began = time.perf_counter()
    out = work()
    return out, time.perf_counter() - began


def floor_seconds(model: fdllm.Model, shapes: list[Windows]) -> float:
    """Wall time of the bare products and attention of forwards of these shapes."""
    spec = model.spec
    group = spec.num_heads // spec.num_kv_heads
    with torch.inference_mode():
        began = time.perf_counter()
        for windows in shapes:
            x = torch.randn(sum(len(w.rows) * w.width for w in windows), spec.hidden_size)
            extents = [(w.width, extent) for w in windows for extent in w.extents]
            kv_shape = (1, spec.num_kv_heads, max(extent for _, extent in extents), spec.head_dim)
            keys, values = torch.randn(kv_shape), torch.randn(kv_shape)
            width = max(width for width, _ in extents)
            q = torch.randn(1, spec.num_kv_heads, group * width, spec.head_dim)
            for layer in model.network.stack:
                F.linear(x, layer.qkv.weight, layer.qkv.bias)
                for width, extent in extents:
                    F.scaled_dot_product_attention(
                        q[:, :, : group * width], keys[:, :, :extent], values[:, :, :extent]
                    )
                y = F.linear(x[:, : layer.q_size], layer.o.weight)
                gate = F.linear(y, layer.gate_up.weight)[:, : spec.intermediate_size]
                F.linear(gate, layer.down.weight)
        return time.perf_counter() - began


def main() -> None:
    """Run the variants and print the table."""
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
    pairs, vocab_size = harness_requests(given.shared, given.subject, given.questions)
    model = model_of(vocab_size, given.layers, given.width, freeze=True)
    plain = model_of(vocab_size, given.layers, given.width, freeze=False)
    decoding = fdllm.Decoding()
    shapes: list[Windows] = []
    stepper = model.network.prepare()
    read = stepper.read

    def counted(
        ids: Tensor,
        cache: RowCache,
        windows: Sequence[Window],
        *rest: Any,  # noqa: ANN401
        **more: Any,  # noqa: ANN401
    ) -> Forwarded:
        shapes.append(tuple(windows))
        return read(ids, cache, windows, *rest, **more)

    vars(stepper)["read"] = counted

    def run(variant: Variant) -> list[Score]:
        shapes.clear()
        return score_requests(
            model,
            pairs,
            decoding,
            scoring=given.scoring,
            batch_size=variant.batch_size,
            deduplicate=variant.deduplicate,
            prefix_cache_gib=variant.prefix_cache_gib,
        )

    score_requests(model, pairs[:1], decoding, scoring=given.scoring)  # warm up
    lengths = [len(prefix) for prefix, _ in pairs]
    title = (
        f"{given.scoring}, {len(pairs)} requests of {min(lengths)}-{max(lengths)} tokens, "
        f"{given.layers} layers x {given.width}"
    )
    table = Table(
        "variant", "seconds", "spread", "times", "fed tokens", "times", "floor", title=title
    )
    base_seconds, base_tokens, base_scores = 0.0, 0, list[Score]()
    for i, variant in enumerate(variants(given.batch_size)):
        seconds = []
        scores: list[Score] = []
        for _ in range(given.repeats if i else 1):
            scores, wall = timed(partial(run, variant))
            seconds.append(wall)
            print(f"{variant.name}: {wall:.2f} s", file=sys.stderr, flush=True)
        tokens = sum(score.counts.tokens for score in scores)
        floor = floor_seconds(plain, list(shapes))
        median = statistics.median(seconds)
        if not i:
            base_seconds, base_tokens, base_scores = median, tokens, scores
        off = max(
            abs(a.loglikelihood - b.loglikelihood) for a, b in zip(scores, base_scores, strict=True)
        )
        assert off < 1e-4, f"{variant.name} changed a score by {off}"  # noqa: S101, PLR2004
        table.add_row(
            variant.name,
            f"{median:.2f}",
            f"{min(seconds):.2f}-{max(seconds):.2f}",
            f"{base_seconds / median:.1f}x",
            f"{tokens:,}",
            f"{base_tokens / tokens:.1f}x",
            f"{floor:.2f} s ({median / floor:.2f} times)",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

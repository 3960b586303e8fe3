"""Continuous batches against fixed ones and against one row at a time, on one load."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fdllm.core.sampler import GenerationRequest
from fdllm.errors import FdllmError
from fdllm.timing.interleave import Rounds, interleave
from fdllm_bench.command import BenchCommand
from fdllm_bench.floor import ForwardShape
from fdllm_bench.loads import Load, forwards_of, generate
from fdllm_bench.models import BenchModel
from fdllm_bench.tables import Line, Section, ratio, section

_SEED = 5
_READS = 8  # reads of a batch's floor are rounded up to this: fewer different loops to measure
Tokens = list[list[int]]


def mixed_load(bench: BenchModel, options: BenchCommand) -> Load:
    """Requests with answers of 1 to ``max_blocks`` blocks, in no order."""
    rng, block = random.Random(_SEED), bench.block
    requests = []
    for i in range(options.requests):
        length = rng.randint(block // 4, 2 * block)
        # Up to the end of a block, so that a row leaves where its block ends.
        room = rng.randint(1, options.max_blocks) * block - length % block
        requests.append(GenerationRequest(bench.tokens(length, i), room))
    return Load(tuple(requests), options.tokens_per_step)


def bench_batch(bench: BenchModel, options: BenchCommand) -> list[Section]:
    """The table of a shape.

    Raises:
        FdllmError: a row's tokens depend on the batch, on a CPU.
    """
    load, size = mixed_load(bench, options), options.batch_size
    shapes = forwards_of(bench, load).shapes

    def decode(requests: Sequence[GenerationRequest], rows: int) -> Tokens:
        part = replace(load, requests=tuple(requests))
        return [row.tokens for row in generate(bench, part, batch_size=rows)]

    def fixed() -> Tokens:
        parts = (load.requests[at : at + size] for at in range(0, len(load.requests), size))
        return [row for part in parts for row in decode(part, size)]

    works: dict[str, Callable[[], Tokens]] = {
        f"continuous, batch {size}": lambda: decode(load.requests, size),
        f"fixed, batch {size}": fixed,
        "one row at a time": lambda: decode(load.requests, 1),
    }
    [_, of_fixed, one] = works
    found = {name: work() for name, work in works.items()}
    batches = full_batches(shapes, size)
    floors = {"one row at a time": shapes, "batches": batches}
    lanes = works | {f"floor {n}": bench.floor.prepare_all(some) for n, some in floors.items()}
    done = interleave(lanes, bench.model.device, Rounds(options.repeats, warm_ups=0))
    new = sum(map(len, found[one]))
    lines = [
        Line(
            name,
            done[name],
            done.get(f"floor {name}", done["floor batches"]),
            done[one],
            {
                "tokens/s": tuple(new / second for second in done[name]),
                "x fixed": ratio(done[of_fixed], done[name]),
            },
        )
        for name in works
    ]
    title = (
        f"{len(load.requests)} requests, answers of 1-{options.max_blocks} blocks, {new} tokens, "
        f"{options.tokens_per_step} a step"
    )
    return [
        section(
            bench,
            "batch",
            title,
            lines,
            "fixed: each batch waits for its slowest row; x fixed: how many times its tokens/s",
            f"floor: the forwards of batch 1, of batch {size} gathered into full batches of one "
            "width and extent",
            compare(bench, found),
            baseline=one,
        )
    ]


def compare(bench: BenchModel, found: Mapping[str, Tokens]) -> str:
    """Whether every row's tokens are the same in each way of batching, as a sentence.

    Raises:
        FdllmError: they are not, on a CPU, where they must be.
    """
    rows = list(zip(*found.values(), strict=True))
    differ = [i for i, row in enumerate(rows) if any(one != row[0] for one in row)]
    device = bench.model.device.type
    if not differ:
        return f"tokens identical in all {len(rows)} rows"
    if device == "cpu":
        raise FdllmError(
            f"the tokens of rows {differ[:8]} depend on how they are batched; on a CPU they must "
            "not: this is a fault of the engine"
        )
    return (
        f"tokens differ in {len(differ)} of {len(rows)} rows: products of another batch size round "
        f"otherwise in {bench.dtype} on {device}"
    )


def full_batches(shapes: Sequence[ForwardShape], size: int) -> list[ForwardShape]:
    """The same forwards, of one row each, in as few batches of one width and extent as can be."""
    alike: defaultdict[tuple[int, int], list[ForwardShape]] = defaultdict(list)
    for shape in sorted(shapes, key=lambda shape: shape.reads):
        alike[shape.width, shape.extent].append(shape)
    out: list[ForwardShape] = []
    for group in alike.values():
        for at in range(0, len(group), size):
            part = group[at : at + size]
            reads = -(-sum(shape.reads for shape in part) // _READS) * _READS
            out.append(replace(part[0], rows=len(part), reads=reads))
    return out

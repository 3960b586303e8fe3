"""Continuous batches against fixed ones and against one row at a time, on one load."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from fdllm.bench.asks import tokens
from fdllm.bench.floor import Forward
from fdllm.bench.generation import FixedUnmask, Load, forwards_of, generate
from fdllm.bench.options import Options
from fdllm.bench.results import Line, Section, dtype_of
from fdllm.bench.shapes import Subject
from fdllm.bench.timing import Clock, Spread, interleave
from fdllm.core.sampler import GenerationRequest
from fdllm.errors import FdllmError

TOPIC = "batch"
_SEED = 5
_READS = 8  # reads of a batch's floor are rounded up to this: fewer different loops to measure


def load_of(subject: Subject, options: Options) -> Load:
    """Requests with answers of 1 to ``max_blocks`` blocks, in no order."""
    rng, block = random.Random(_SEED), subject.spec.block_size
    requests = []
    for i in range(options.requests):
        length = rng.randint(block // 4, 2 * block)
        # Up to the end of a block, so that a row leaves where its block ends.
        room = rng.randint(1, options.max_blocks) * block - length % block
        requests.append(GenerationRequest(tokens(subject, length, i), room))
    return Load(tuple(requests), FixedUnmask(options.tokens_per_step))


def bench_batch(subject: Subject, options: Options) -> list[Section]:
    """The table of a shape.

    Raises:
        FdllmError: a row's tokens depend on the batch, on a CPU.
    """
    load, size = load_of(subject, options), options.batch_size
    found: dict[str, list[list[int]]] = {}

    def run(name: str, work: Callable[[], list[list[int]]]) -> Callable[[], None]:
        def keep() -> None:
            found[name] = work()

        return keep

    seen = forwards_of(subject, load).seen
    floors = {1: Counter(seen), size: full_batches(seen, size)}
    clock = Clock(subject.model.device)
    names = {"continuous": f"continuous, batch {size}", "fixed": f"fixed, batch {size}"}
    works: dict[str, Callable[[], object]] = {
        "continuous": run("continuous", lambda: _continuous(subject, load, size)),
        "fixed": run("fixed", lambda: _fixed(subject, load, size)),
        "one": run("one", lambda: _continuous(subject, load, 1)),
    }
    done: dict[str, list[float]] = {name: [] for name in works}
    under: dict[int, list[float]] = {rows: [] for rows in floors}
    for _ in range(options.repeats):
        for name, spread in interleave(clock, works, 1, warm_ups=0).items():
            done[name] += spread.values
        for rows, counted in floors.items():
            under[rows].append(_seconds(subject, clock, counted))
    subject.floor.forget()
    note = compare(subject, found)
    spreads = {name: Spread(tuple(values)) for name, values in done.items()}
    new = sum(map(len, found["one"]))
    lines = [
        Line(
            names.get(name, "one row at a time"),
            spread,
            Spread(tuple(under[1 if name == "one" else size])),
            spreads["one"],
            {"tokens/s": new / spread.median, "x fixed": spreads["fixed"].over(spread)},
        )
        for name, spread in spreads.items()
    ]
    title = (
        f"{len(load.requests)} requests, answers of 1-{options.max_blocks} blocks, {new} tokens, "
        f"{options.tokens_per_step} a step"
    )
    notes = (
        "fixed: each batch waits for its slowest row; x fixed: how many times its tokens/s",
        (
            f"floor: the forwards of batch 1, of batch {size} gathered into full batches of "
            "one width and extent; each different one timed, times how often it is made"
        ),
        note,
    )
    dtype = dtype_of(subject.model)
    return [Section(TOPIC, subject.name, dtype, title, tuple(lines), "one row at a time", notes)]


def _continuous(subject: Subject, load: Load, size: int) -> list[list[int]]:
    return [row.tokens for row in generate(subject, load, batch_size=size)]


def _fixed(subject: Subject, load: Load, size: int) -> list[list[int]]:
    out: list[list[int]] = []
    for at in range(0, len(load.requests), size):
        part = replace(load, requests=load.requests[at : at + size])
        out += _continuous(subject, part, size)
    return out


def compare(subject: Subject, found: dict[str, list[list[int]]]) -> str:
    """Whether every row's tokens are the same in each way of batching, as a sentence.

    Raises:
        FdllmError: they are not, on a CPU, where they must be.
    """
    rows = list(zip(*found.values(), strict=True))
    differ = [i for i, row in enumerate(rows) if any(one != row[0] for one in row)]
    if not differ:
        return f"tokens identical in all {len(rows)} rows"
    model = subject.model
    if model.device.type == "cpu":
        raise FdllmError(
            f"the tokens of rows {differ[:8]} depend on how they are batched; on a CPU they must "
            "not: this is a fault of the engine"
        )
    return (
        f"tokens differ in {len(differ)} of {len(rows)} rows: products of another batch size round "
        f"otherwise in {dtype_of(model)} on {model.device.type}"
    )


def full_batches(forwards: list[Forward], size: int) -> Counter[Forward]:
    """The same forwards in as few batches as there can be: of one width and extent.

    Args:
        forwards: of one row each.
        size: rows of a batch at most.
    """
    alike: dict[tuple[int, int], list[Forward]] = {}
    for forward in forwards:
        alike.setdefault((forward.width, forward.extent), []).append(forward)
    out: Counter[Forward] = Counter()
    for group in alike.values():
        order = sorted(group, key=lambda forward: forward.reads)
        for at in range(0, len(order), size):
            part = order[at : at + size]
            reads = sum(forward.reads for forward in part)
            reads = -(-reads // _READS) * _READS
            out[replace(part[0], rows=len(part), reads=reads)] += 1
    return out


def _seconds(subject: Subject, clock: Clock, forwards: Counter[Forward]) -> float:
    """The floors of all forwards, each different one timed and counted as often as it is made."""
    total = 0.0
    for forward, count in forwards.items():
        work = subject.floor.prepare(forward)
        work()
        total += count * Spread(tuple(clock.time(work) for _ in range(3))).median
    return total

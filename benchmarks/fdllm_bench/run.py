"""``fdllm bench``, from its topics to its document."""

from __future__ import annotations

import gc
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from fdllm.cli.output import complain, say_json
from fdllm.cli.pace import refuse_days
from fdllm.core.checkpoint import resolve_device
from fdllm_bench.batch import bench_batch
from fdllm_bench.command import BenchCommand
from fdllm_bench.growth import bench_growth
from fdllm_bench.models import SHAPES, BenchModel, make_model
from fdllm_bench.profiling import PhaseProfile, profile_model
from fdllm_bench.reuse import bench_reuse
from fdllm_bench.step import bench_step
from fdllm_bench.tables import Section

SCHEMA = 1
_WIDE = 200  # columns of a log, which folds nothing
Topic = Callable[[BenchModel, BenchCommand], list[Section]]
TOPICS: dict[str, Topic] = {
    "step": bench_step,
    "reuse": bench_reuse,
    "batch": bench_batch,
    "growth": bench_growth,
}


def run(
    given: BenchCommand, topics: Sequence[str], shapes: Sequence[str], trace: Path | None
) -> None:
    """Measure and print, one model in memory at a time.

    A profile of several shapes is as many traces: each adds its name to the file's.
    """
    device, used = resolve_device(given.device), "no"
    check_pace_of(given, topics, shapes)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    console = Console(quiet=given.json)
    if not console.is_terminal:
        console = Console(width=max(console.width, _WIDE), quiet=given.json)
    sections: list[Section] = []
    profiles: list[PhaseProfile] = []
    for shape in shapes:
        bench = make_model(shape, str(device), given.dtype)
        used = bench.model.compile(asked=given.compile)
        for topic in topics:
            complain(f"bench: {topic} of {shape} …")
            found = TOPICS[topic](bench, given)
            for section in found:
                section.show(console)
            sections += found
        if trace is not None:
            named = trace if len(shapes) == 1 else trace.with_stem(f"{trace.stem}-{shape}")
            seen = profile_model(bench, given, named)
            for phase in seen:
                phase.show(console)
            profiles += seen
            complain(f"wrote {named}; open it at ui.perfetto.dev or chrome://tracing")
        del bench  # the next model may need this one's memory
        gc.collect()
    if given.json:
        document = {
            "schema": SCHEMA,
            "machine": {**machine(device), "compile": used, "repeats": given.repeats},
            "sections": [section.as_dict() for section in sections],
            "profiles": [asdict(phase) for phase in profiles],
        }
        say_json(document)


def check_pace_of(given: BenchCommand, topics: Sequence[str], shapes: Sequence[str]) -> None:
    """Refuse shapes that a CPU would take hours for, ahead of the first.

    Raises:
        UsageError: there is one, and nobody named the CPU.
    """
    for shape in shapes:
        if (spec := SHAPES[shape]) is not None:
            size, forwards = spec.num_parameters, least_forwards(given, topics, spec.block_size)
            refuse_days(shape, partial(float, size), forwards, given.device, "--shape 28x1024")


def least_forwards(given: BenchCommand, topics: Sequence[str], block: int) -> int:
    """Forwards of a whole model that the topics take at the least, their floors' included."""
    steps = given.new_tokens // given.tokens_per_step  # of a generation
    answers = given.requests * given.max_blocks // 2 * block // given.tokens_per_step
    each = {"step": 3 * steps, "reuse": 18 * steps, "batch": 2 * answers, "growth": 400}
    return given.repeats * sum(each[topic] for topic in topics)


def machine(device: torch.device) -> dict[str, str | float]:
    """What it is measured on."""
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "processor": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }

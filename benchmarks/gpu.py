"""Everything that a GPU is for, in one go: ``python benchmarks/gpu.py --out gpu.json``.

In the environment of the package, on any machine with a CUDA GPU; the 7B shape needs about 20 GB of
its memory, and nothing is fetched: weights are random and made on the device. It takes at most ten
minutes. Measured are, each figure beside its floor (the bare products, attention and head of the
same forwards):

- ``selftest``: every type and path against float32 on the CPU; remembered, so that later runs on
  this GPU say so and take CUDA graphs where they pay;
- ``step``, ``step compiled``: a DENOISE, a REFRESH and a generation, without CUDA graphs and with;
- ``reuse``, ``reuse compiled``: what k=2 and k=3 save, on each subset, of either target;
- ``batch``: a new token's time for 1 to 32 rows, and continuous batches against fixed ones, with
  CUDA graphs where the selftest found that they pay, as a run has it.

Each part runs in a process of its own, for as long as its budget lasts: one that fails or hangs is
written down as an error and the next begins. The file is complete after every part. ``--shape`` and
``--dtype`` choose another model, ``--part`` some of the parts. ``--quick --device cpu`` is a
rehearsal on any machine, with the embedded model: it shows that the script works, no more.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fdllm.core.checkpoint import resolve_device
from fdllm.errors import UsageError
from fdllm.record import selftested
from fdllm.record.atomic import write_json
from fdllm.record.provenance import utc_now
from fdllm.selftest import run_selftest
from fdllm.selftest.subjects import embedded, random_one
from fdllm_bench.batch import bench_batch
from fdllm_bench.command import BenchCommand
from fdllm_bench.growth import bench_growth
from fdllm_bench.memory import apart
from fdllm_bench.models import SHAPES, BenchModel, make_model
from fdllm_bench.reuse import bench_reuse
from fdllm_bench.run import machine
from fdllm_bench.step import bench_step
from fdllm_bench.tables import Section

SCHEMA = 1
GOOD = ("done", "passed")
FULL = BenchCommand(
    repeats=3, new_tokens=32, requests=16, batch_size=16, max_blocks=2, stretch_ms=20
)
QUICK = BenchCommand(
    repeats=1, prompt_blocks=1, new_tokens=8, requests=3, batch_size=2, max_blocks=1, stretch_ms=1
)
Measure = Callable[[BenchModel, BenchCommand], list[Section]]


def measure_batch(bench: BenchModel, options: BenchCommand) -> list[Section]:
    """Time against the batch and the prompt, and batches of requests of all lengths."""
    quick = options is QUICK
    prompts, batches = ((64,), (1, 2)) if quick else ((256, 2048), (1, 2, 4, 8, 16, 32))
    grown = bench_growth(bench, options, prompts, batches, memory=())
    return [*grown, *bench_batch(bench, options)]


@dataclass(frozen=True)
class Part:
    """One part."""

    budget_s: float  # until it is ended, its start included
    measure: Measure | None  # the tables of a model; None is the selftest
    compiled: bool | None = None  # C kernels on a CPU, CUDA graphs on a GPU; None as a run would


PARTS: dict[str, Part] = {
    "selftest": Part(120, None),
    "step": Part(60, bench_step, compiled=False),
    "step compiled": Part(60, bench_step, compiled=True),
    "reuse": Part(110, bench_reuse, compiled=False),
    "reuse compiled": Part(110, bench_reuse, compiled=True),
    "batch": Part(110, measure_batch),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="where JSON goes")
    parser.add_argument("--device", default="cuda", help="(cuda)")
    parser.add_argument("--shape", choices=SHAPES, help="(7B; of a rehearsal tiny)")
    parser.add_argument("--dtype", default="auto", help="(by device)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="repeatable (all)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, with small figures")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the process of this part
    given = parser.parse_args(arguments)
    given.shape = given.shape or ("tiny" if given.quick else "7B")
    if given.inside:
        print(json.dumps(inside(given.inside, given)))
        return 0
    try:
        device = resolve_device(given.device)
    except UsageError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return error.exit_code
    about: dict[str, object] = dict(machine(device))
    if device.type == "cuda":
        about["cuda"] = torch.version.cuda
        about["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "started": utc_now(),
        "quick": given.quick,
        "shape": given.shape,
        "dtype": given.dtype,
        "machine": about,
        "parts": {},
    }
    told = ["--device", given.device, "--shape", given.shape, "--dtype", given.dtype]
    told += ["--out", str(given.out), *(["--quick"] if given.quick else [])]
    for name in given.part or PARTS:
        budget_s = PARTS[name].budget_s
        done = apart([__file__, *told, "--inside", name], budget_s)
        found["parts"][name] = {**done, "budget_s": budget_s}
        write_json(given.out, found)
        print(f"{name}: {said(done)} ({done['seconds']:.0f} s)", flush=True)
    return int(any(said(done) not in GOOD for done in found["parts"].values()))


def said(done: Mapping[str, Any]) -> str:
    """How a part went, in a line."""
    return str(done["error"] if "error" in done else done["result"].get("verdict", GOOD[0]))


def inside(name: str, given: argparse.Namespace) -> dict[str, object]:
    """A part's figures."""
    part = PARTS[name]
    if part.measure is None:
        subjects = (embedded,) if given.quick else (embedded, random_one)
        tested = run_selftest(resolve_device(given.device), subjects=subjects)
        if not given.quick:
            selftested.keep(tested.accelerator, tested.kept)
        return tested.as_dict()
    bench = make_model(given.shape, given.device, given.dtype)
    device = bench.model.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    used = bench.model.compile(asked=selftested.choose(part.compiled, gpu, bench.dtype))
    sections = part.measure(bench, QUICK if given.quick else FULL)
    return {
        "compile": used,
        "dtype": bench.dtype,
        "sections": [section.as_dict() for section in sections],
    }


if __name__ == "__main__":
    sys.exit(main())

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
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fdllm.bench.batching import bench_batch
from fdllm.bench.growth import bench_growth
from fdllm.bench.options import Options
from fdllm.bench.results import Section
from fdllm.bench.reuse import bench_reuse
from fdllm.bench.run import Bench
from fdllm.bench.shapes import Subject, make_subject
from fdllm.bench.step import bench_step
from fdllm.bench.topics import SHAPE_NAMES
from fdllm.core.checkpoint import resolve_device
from fdllm.errors import UsageError
from fdllm.record import selftested
from fdllm.record.atomic import write_json
from fdllm.record.provenance import utc_now
from fdllm.selftest import run_selftest
from fdllm.selftest.subjects import embedded, random_one

SCHEMA = 1
GOOD = ("done", "passed")
FULL = Options(repeats=3, new_tokens=32, requests=16, batch_size=16, max_blocks=2, stretch_ms=20)
QUICK = Options(
    repeats=1, prompt_blocks=1, new_tokens=8, requests=3, batch_size=2, max_blocks=1, stretch_ms=1
)
BATCHES = {False: (1, 2, 4, 8, 16, 32), True: (1, 2)}  # by whether it is a rehearsal
PROMPTS = {False: (256, 2048), True: (64,)}

Measured = Callable[[Subject, Options, bool], list[Section]]


def measure_batch(subject: Subject, options: Options, quick: bool) -> list[Section]:  # noqa: FBT001
    """Time against the batch and the prompt, and batches of requests of all lengths."""
    grown = bench_growth(subject, options, PROMPTS[quick], BATCHES[quick], memory=())
    return [*(section for section in grown if section.lines), *bench_batch(subject, options)]


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        budget_s: seconds until it is ended, its start included.
        measure: the tables of a model; None is the selftest.
        compiled: C kernels on a CPU, CUDA graphs on a GPU; None as a run would choose.
    """

    budget_s: float
    measure: Measured | None
    compiled: bool | None = None


def measure_step(subject: Subject, options: Options, quick: bool) -> list[Section]:  # noqa: ARG001, FBT001
    """Steps and a generation."""
    return bench_step(subject, options)


def measure_reuse(subject: Subject, options: Options, quick: bool) -> list[Section]:  # noqa: ARG001, FBT001
    """Every subset and target, k=2 and k=3."""
    return bench_reuse(subject, options)


PARTS: dict[str, Part] = {
    "selftest": Part(120, None),
    "step": Part(60, measure_step, compiled=False),
    "step compiled": Part(60, measure_step, compiled=True),
    "reuse": Part(110, measure_reuse, compiled=False),
    "reuse compiled": Part(110, measure_reuse, compiled=True),
    "batch": Part(110, measure_batch),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; 1 where one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="where JSON goes")
    parser.add_argument("--device", default="cuda", help="(cuda)")
    parser.add_argument("--shape", choices=SHAPE_NAMES, help="(7B; of a rehearsal tiny)")
    parser.add_argument("--dtype", default="auto", help="(by device)")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="repeatable (all)")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, with small figures")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # the process of this part
    given = parser.parse_args(arguments)
    given.shape = given.shape or ("tiny" if given.quick else "7B")
    if given.inside:
        write_json(given.out, inside(given.inside, given))
        return 0
    try:
        device = resolve_device(given.device)
    except UsageError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return error.exit_code
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "started": utc_now(),
        "quick": given.quick,
        "shape": given.shape,
        "dtype": given.dtype,
        "machine": machine_of(device),
        "parts": {},
    }
    for name in given.part or PARTS:
        passed_on = ["--device", given.device, "--shape", given.shape, "--dtype", given.dtype]
        told = [*passed_on, "--inside", name, *(["--quick"] if given.quick else [])]
        done = apart([sys.executable, __file__, *told], PARTS[name].budget_s)
        found["parts"][name] = done
        write_json(given.out, found)
        print(f"{name}: {said(done)} ({done['seconds']:.0f} s)", flush=True)
    return int(any(said(done) not in GOOD for done in found["parts"].values()))


def said(done: Mapping[str, Any]) -> str:
    """How a part went, in a line."""
    return str(done["error"] if "error" in done else done["result"].get("verdict", GOOD[0]))


def machine_of(device: torch.device) -> Mapping[str, object]:
    """What it is measured on."""
    about: dict[str, object] = dict(Bench(str(device), "auto", None, FULL).machine())
    del about["compile"], about["repeats"]  # those are the parts'
    if device.type == "cuda":
        about["cuda"] = torch.version.cuda
        about["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return about


def apart(command: Sequence[str], budget_s: float) -> dict[str, Any]:
    """Run a command that writes JSON into the file it is given last, behind ``--out``.

    Args:
        command: the program and its arguments, without ``--out``.
        budget_s: seconds until it is ended.

    Returns:
        ``seconds``, ``budget_s``, and either ``result`` or ``error``, a line.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        told: dict[str, Any]
        try:
            done = subprocess.run(
                [*command, "--out", str(out)],
                capture_output=True,
                text=True,
                check=False,
                timeout=budget_s,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                told = {"error": lines[-1] if lines else f"exit code {done.returncode}"}
            else:
                told = {"result": json.loads(out.read_text(encoding="utf-8"))}
        except subprocess.TimeoutExpired:
            told = {"error": f"not done within its {budget_s:.0f} s"}
        except (OSError, ValueError) as error:
            told = {"error": f"wrote no JSON: {error}"}
    return {"seconds": time.perf_counter() - began, "budget_s": budget_s, **told}


def inside(name: str, given: argparse.Namespace) -> dict[str, object]:
    """A part's figures."""
    part = PARTS[name]
    if part.measure is None:
        subjects = (embedded,) if given.quick else (embedded, random_one)
        tested = run_selftest(resolve_device(given.device), subjects=subjects)
        if not given.quick:
            selftested.keep(tested.accelerator, tested.kept)
        return tested.as_dict()
    subject = make_subject(given.shape, given.device, given.dtype)
    dtype = str(subject.model.dtype).removeprefix("torch.")
    device = subject.model.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    used = subject.model.compile(asked=selftested.choose(part.compiled, gpu, dtype))
    sections = part.measure(subject, QUICK if given.quick else FULL, given.quick)
    return {
        "compile": used,
        "dtype": dtype,
        "sections": [section.as_dict() for section in sections],
    }


if __name__ == "__main__":
    sys.exit(main())

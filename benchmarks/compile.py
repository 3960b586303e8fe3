"""What compiling pays on a CPU: ``python benchmarks/compile.py``.

A step of the embedded model, 8 columns and 32: by torch's own kernels, with the C kernels of
:mod:`fdllm.fast.kernels`, and as ``torch.compile`` writes it over the fixed buffers of a recorded
forward (:mod:`fdllm.fast.cuda_graphs`); in turn, in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import fdllm
from fdllm.bench.timing import Clock, interleave
from fdllm.core.cache import RowCache, Window
from fdllm.core.layerplan import LayerPlan
from fdllm.fast.accelerators import Compiled
from fdllm.fast.cuda_graphs import RECORD_FROM, Work

LENGTH, CAPACITY, STEPS = 64, 256, 20


def compiled(work: Work) -> Work:
    """``work`` as torch's compiler writes it."""
    made: Work = torch.compile(work, dynamic=False)
    made()
    return made


def main() -> None:
    """Compile and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", help="a checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    ways = ("torch", "C kernels", "torch.compile")
    models = {way: fdllm.load_model(given.model, device="cpu", dtype="float32") for way in ways}
    models["torch"].compile(asked=False)
    models["C kernels"].compile(asked=True)
    models["torch.compile"].network.use(Compiled(record=compiled))
    table = Table("columns", "by", "ms", "times torch's", "made in s")
    with torch.inference_mode():
        for width in (8, models["torch"].spec.block_size):
            steps = {way: step_of(model, width) for way, model in models.items()}
            made = {way: first_steps(work) for way, work in steps.items()}
            done = interleave(Clock(torch.device("cpu")), steps, given.repeats)
            for way, spread in done.items():
                ratio = spread.over(done["torch"])
                table.add_row(
                    str(width),
                    way,
                    f"{spread.median / STEPS * 1e3:.2f}",
                    f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
                    f"{made[way]:.1f}",
                )
    Console().print(table)


def first_steps(work: Callable[[], object]) -> float:
    """Seconds until a way has made what it needs, a few steps included."""
    began = time.perf_counter()
    for _ in range(RECORD_FROM):
        work()
    return time.perf_counter() - began


def step_of(model: fdllm.Model, width: int) -> Callable[[], object]:
    """A step of so many columns behind a prefix, again and again at one place."""
    spec, stepper, plan = model.spec, model.network.prepare(), LayerPlan(model.n_layers)
    like = model.network.embedding.weight
    cache = RowCache(
        spec,
        num_rows=1,
        capacity=CAPACITY,
        block_size=spec.block_size,
        like=like,
        fused=stepper.fused,
    )
    window = Window((0,), (LENGTH,), width, (LENGTH + spec.block_size,))
    ids, columns = torch.arange(width), range(width)

    def steps() -> None:
        for _ in range(STEPS):
            stepper.read(ids, cache, [window], plan, [0], columns=columns)

    return steps


if __name__ == "__main__":
    main()

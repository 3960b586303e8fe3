"""What compiling pays on a CPU: ``python benchmarks/compile.py``.

A step of the embedded model, 8 columns and 32: by torch's own kernels, with the C kernels of
:mod:`fdllm.fast.kernels`, and as ``torch.compile`` writes it over the fixed buffers of a recorded
forward (:mod:`fdllm.fast.cuda_graphs`); in turn, in one process.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

import fdllm
from fdllm.fast.cuda_graphs import CudaGraphs, Work
from fdllm.selftest.result import STEPS, steps_of
from fdllm.timing.interleave import Rounds, interleave
from fdllm_bench.tables import ratio, text


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
    models["torch.compile"].accelerator = CudaGraphs(compiled)
    table = Table("columns", "by", "ms", "times torch's", "made in s")
    for width in (8, models["torch"].spec.block_size):
        works, made = {}, {}
        for way, model in models.items():
            began = time.perf_counter()
            works[way] = steps_of(model, width)
            made[way] = time.perf_counter() - began
        done = interleave(works, torch.device("cpu"), Rounds(given.repeats))
        for way, seconds in done.items():
            over = text(ratio(seconds, done["torch"]))
            table.add_row(
                str(width), way, text(median(seconds) / STEPS * 1e3), over, text(made[way])
            )
    Console().print(table)


if __name__ == "__main__":
    main()

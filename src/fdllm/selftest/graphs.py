"""What recording forwards pays: a step replayed beside the same step launched kernel by kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from operator import truediv

import torch

from fdllm.core.checkpoint import Model
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.reuse import LayerPlan
from fdllm.core.torch_backend import Accelerator
from fdllm.fast.cuda_graphs import RECORD_FROM
from fdllm.selftest.subjects import SUB_BLOCK, copied, decoding_tokens
from fdllm.timing.interleave import Rounds, interleave

_AHEAD = 4  # blocks of prefix
STEPS = 20
"""In one measurement."""
_REPEATS = 5


def time_graphs(
    model: Model, device: torch.device, dtype: torch.dtype, recorded: Accelerator
) -> dict[str, float]:
    """A step's time with recordings by its time without, batch 1, by phase; medians."""
    ways = {"plain": Accelerator(), "recorded": recorded}
    models = {way: copied(model, device, dtype) for way in ways}
    for way, one in models.items():
        one.accelerator = ways[way]
        one.freeze()
    ratios = {}
    for phase, width in (("DENOISE", SUB_BLOCK), ("REFRESH", model.spec.block_size)):
        works: dict[str, Callable[[], object]] = {
            way: steps_of(one, width) for way, one in models.items()
        }
        done = interleave(works, device, Rounds(_REPEATS))
        ratios[phase] = statistics.median(map(truediv, done["recorded"], done["plain"]))
    return ratios


def steps_of(model: Model, width: int) -> Callable[[], object]:
    """A step of so many columns, :data:`STEPS` times; already recorded where it will be."""
    spec, runner, plan = model.spec, model.runner(), LayerPlan(model.n_layers)
    length = _AHEAD * spec.block_size
    backend = model.backend(num_rows=1, capacity=length + spec.block_size)
    batch = ForwardBatch((Window((0,), (length,), width, (length + spec.block_size,)),))
    ids = torch.tensor(decoding_tokens(spec, width), device=model.device)

    @torch.inference_mode()
    def run(times: int) -> None:
        for _ in range(times):
            runner.forward(ids, backend, batch, plan)

    run(RECORD_FROM + 1)
    return lambda: run(STEPS)

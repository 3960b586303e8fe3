"""What recording forwards pays: a step replayed beside the same step launched kernel by kernel."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from operator import truediv

import torch

from fdllm.core.cache import RowCache, Window
from fdllm.core.checkpoint import Model
from fdllm.core.layerplan import LayerPlan
from fdllm.fast.accelerators import Compiled
from fdllm.fast.cuda_graphs import RECORD_FROM
from fdllm.selftest.subjects import SUB_BLOCK, copied, decoding_tokens
from fdllm.timing.interleave import Rounds, interleave

_AHEAD = 4  # blocks of prefix
STEPS = 20
"""In one measurement."""
_REPEATS = 5


def time_graphs(
    model: Model, device: torch.device, dtype: torch.dtype, compiled: Compiled
) -> dict[str, float]:
    """A step's time with recordings by its time without, batch 1, by phase; medians.

    Args:
        model: not laid out for decoding yet; it is copied.
        device: where to measure.
        dtype: in which type.
        compiled: how forwards are recorded.
    """
    ways = {"plain": Compiled(), "recorded": compiled}
    models = {way: copied(model, device, dtype) for way in ways}
    for way, one in models.items():
        one.network.use(ways[way])
        one.network.freeze()
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
    spec, stepper, plan = model.spec, model.network.prepare(), LayerPlan(model.n_layers)
    length = _AHEAD * spec.block_size
    cache = RowCache(
        spec,
        num_rows=1,
        capacity=length + spec.block_size,
        block_size=spec.block_size,
        like=model.network.embedding.weight,
        fused=stepper.fused,
    )
    window = Window((0,), (length,), width, (length + spec.block_size,))
    ids = torch.tensor(decoding_tokens(spec, width), device=model.device)

    @torch.inference_mode()
    def run(times: int) -> None:
        for _ in range(times):
            stepper.read(ids, cache, [window], plan, [0], columns=range(width))

    run(RECORD_FROM + 1)
    return lambda: run(STEPS)

"""A whole selftest: the checks, what recording forwards pays, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import truediv

import torch

from fdllm.core.checkpoint import Model
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.reuse import LayerPlan
from fdllm.core.torch_backend import Accelerator
from fdllm.fast.cuda_graphs import RECORD_FROM, CudaGraphs
from fdllm.record.provenance import cpu_name
from fdllm.record.selftested import Selftested
from fdllm.selftest.checks import DTYPES, Check, Path, name_of, paths_of, run_checks
from fdllm.selftest.subjects import (
    SUB_BLOCK,
    Subject,
    copied,
    decoding_tokens,
    embedded,
    random_one,
)
from fdllm.timing.interleave import Rounds, interleave

Ratios = Mapping[str, Mapping[str, float]]
_AHEAD = 4  # blocks of prefix
STEPS = 20
"""In one measurement."""
_REPEATS = 5


@dataclass(frozen=True)
class Result:
    """What came of a device."""

    accelerator: str | None  # the GPU's name; None for the processor
    checks: tuple[Check, ...]  # all of them, in order
    # a step's time with CUDA graphs by its time without, by type and phase; of types in which
    # every check of the graphs passed
    graphs: Ratios

    @property
    def device(self) -> str:
        """The device's name."""
        return cpu_name() if self.accelerator is None else self.accelerator

    @property
    def kept(self) -> Selftested:
        """What records of the device are to say of it."""
        failed = [check for check in self.checks if check.problems]
        depends = [
            f"{check.dtype} ({check.path})" for check in self.checks if check.depends_on_batch
        ]
        return Selftested(
            tuple(f"{check.name}: {'; '.join(check.problems)}" for check in failed),
            tuple(dict.fromkeys(depends)),
            {dtype: max(ratios.values()) for dtype, ratios in self.graphs.items()},
        )

    def as_dict(self) -> dict[str, object]:
        """JSON form."""
        return {
            "device": self.device,
            "torch": str(torch.__version__),
            "verdict": self.kept.words,
            "depends_on_batch": list(self.kept.depends_on_batch),
            "graphs": {dtype: dict(ratios) for dtype, ratios in self.graphs.items()},
            "checks": [check.as_dict() for check in self.checks],
        }


def run_selftest(
    device: torch.device,
    on_check: Callable[[Check], None] = lambda _: None,
    subjects: Iterable[Callable[[], Subject]] = (embedded, random_one),
    paths: Callable[[torch.device, torch.dtype], list[Path]] = paths_of,
    dtypes: Sequence[torch.dtype] = DTYPES,
) -> Result:
    """Check a device, and measure what recorded forwards pay where it has them.

    ``on_check`` is told each check as it is done; the last subject's steps are timed.
    """
    subjects = list(subjects)
    checks = []
    for check in run_checks(device, subjects, paths, dtypes):
        checks.append(check)
        on_check(check)
    graphs = {}
    for dtype in dtypes:
        recording = [
            path for path in paths(device, dtype) if isinstance(path.accelerator, CudaGraphs)
        ]
        for path in recording:
            mine = [c for c in checks if c.path == path.name and c.dtype == name_of(dtype)]
            if not any(check.problems for check in mine):
                model = subjects[-1]().model
                graphs[name_of(dtype)] = time_graphs(model, device, dtype, path.accelerator)
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Result(accelerator, tuple(checks), graphs)


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

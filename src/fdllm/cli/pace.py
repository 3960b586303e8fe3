"""Before a laptop starts what a CPU would be at for days: by the weights each forward reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from fdllm.checkpoint.folder import read_json
from fdllm.checkpoint.hub_config import spec_of
from fdllm.cli.request import SweepRequest
from fdllm.errors import FdllmError, UsageError
from fdllm.evaluate.tasks import task_info
from fdllm.runs import DEFAULT_MODEL, Run

_PUBLISHED = 7_615_616_512  # parameters of DEFAULT_MODEL, which may not be on this machine yet
_SMALL = 1e9  # parameters; below, a CPU is a place to compute
# On the quick side, each: what is said is the least that it takes.
_BYTES = 4  # a parameter, in float32
_BYTES_PER_S = 20e9  # a laptop's memory
_FORWARDS = {"generate": 100, "loglikelihood": 10}  # of a document
_DOCUMENTS = 100  # of a task, where all are asked
_LONG_S = 3600


_FEWER = ", or one config and a few rows (--config k1_first --limit 2)"


def check_pace(
    request: SweepRequest, runs: Sequence[Run], documents: int | None, *, fewer: str = _FEWER
) -> None:
    """Refuse runs that a CPU would take days for, as :func:`refuse_days` has it.

    Args:
        request: with the model and the device.
        runs: what would be computed here; a run that is repeated counts each time.
        documents: of each run at most; None is all.
        fewer: what else to try than the embedded model.

    Raises:
        UsageError: they take more than an hour on a CPU, and this machine has no GPU.
    """
    forwards = sum(
        (documents or _DOCUMENTS) * _FORWARDS[task_info(run.task, run.include).kind] for run in runs
    )
    model = request.sweep.model
    tried = f"--model tiny{fewer}"
    refuse_days(model.name, lambda: _num_parameters(request), forwards, model.device, tried)


def refuse_days(
    name: str, num_parameters: Callable[[], float], forwards: int, device: str, tried: str
) -> None:
    """Refuse what a CPU would take days for, unless a device is named; a job is never refused.

    Args:
        name: of the model.
        num_parameters: of it; asked only where it matters.
        forwards: with each of which all weights are read.
        device: as asked for.
        tried: what to try instead.

    Raises:
        UsageError: it takes more than an hour on a CPU, and this machine has no GPU.
    """
    if device != "auto" or "SLURM_JOB_ID" in os.environ:
        return
    number = num_parameters()
    seconds = forwards * number * _BYTES / _BYTES_PER_S
    if number < _SMALL or seconds < _LONG_S or _is_gpu_here():
        return
    days = seconds / 86_400
    long = f"{seconds / 3600:.0f} hours" if days < 2 else f"{days:.0f} days"  # noqa: PLR2004
    raise UsageError(
        f"{name} has {number / 1e9:.1f} billion parameters and this machine no GPU: {long} on a "
        f"CPU at the least, by the weights that each forward reads; try {tried}; --device cpu "
        "starts it all the same"
    )


def _num_parameters(request: SweepRequest) -> float:
    """Of the model; 0 where nothing here tells."""
    folder = request.planner.model(request.sweep.model).folder
    if folder is None:
        return _PUBLISHED if request.sweep.model.name == DEFAULT_MODEL else 0
    with suppress(FdllmError):  # what is wrong with it is said where it is loaded
        return spec_of(read_json(folder / "config.json"), folder.name).num_parameters
    return 0


def _is_gpu_here() -> bool:
    from fdllm.core.checkpoint import resolve_device  # noqa: PLC0415 - torch: only where asked

    return resolve_device("auto").type != "cpu"

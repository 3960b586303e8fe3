"""Memory of a model and its caches, measured in a process of its own."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fdllm.core.checkpoint import Model, resolve_device, resolve_dtype
from fdllm.core.config import Decoding
from fdllm.core.model_spec import ModelSpec
from fdllm.core.sampler import GenerationRequest, generate
from fdllm.errors import FdllmError
from fdllm.fast.accelerators import load_model
from fdllm.selftest.subjects import decoding_tokens, random_model, small
from fdllm_bench.models import SHAPES

_NEW_BLOCKS = 2


def apart(
    command: Sequence[str],
    budget_s: float = math.inf,
    watch: Callable[[int], None] = lambda _: None,
    every_s: float = 0.05,
) -> dict[str, Any]:
    """Run a Python program whose last line of output is JSON, in a process of its own.

    Args:
        command: what to run.
        budget_s: seconds until it is ended.
        watch: called with its process id while it runs.
        every_s: seconds between two such calls.

    Returns:
        ``seconds``, and either ``result`` or ``error``, a line.
    """
    began = time.perf_counter()
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=env) as process,
    ):
        while process.poll() is None and time.perf_counter() - began < budget_s:
            watch(process.pid)
            time.sleep(every_s)
        late = process.poll() is None
        process.kill()
        process.wait()
        for file in (out, err):
            file.seek(0)
        said, complaint = (file.read().strip().splitlines() for file in (out, err))
    done: dict[str, Any] = {"seconds": time.perf_counter() - began}
    if late:
        return done | {"error": f"not done within its {budget_s:.0f} s"}
    if process.returncode:
        return done | {"error": (complaint or [f"exit code {process.returncode}"])[-1]}
    try:
        return done | {"result": json.loads(said[-1])}
    except (IndexError, ValueError):
        return done | {"error": f"wrote no JSON: {' '.join(said[-1:])[:100]}"}


@dataclass(frozen=True)
class Memory:
    """Bytes above a process without a model, and those of the formula."""

    held: int  # at most while decoding
    weights: int  # of the formula
    caches: int  # of the formula


def measure_apart(shape: str, device: str, dtype: str, prompt: int, rows: int) -> Memory:
    """Measure in a fresh process, which this one's memory is no part of.

    Raises:
        FdllmError: it failed; what it said last is told.
    """
    request = json.dumps([shape, device, dtype, prompt, rows], allow_nan=False)
    done = apart(["-m", "fdllm_bench.memory", request])
    if "error" in done:
        raise FdllmError(f"memory of {shape} could not be measured: {done['error']}")
    return Memory(**done["result"])


def measure_here(shape: str, device: str, dtype: str, prompt: int, rows: int) -> Memory:
    """Make the model, decode, and see how much memory that took."""
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    # Libraries that load themselves on first use are no model.
    _decode(random_model("warm-up", small(1, 64), where, kind), prompt, 1)
    gauge = _Gauge(where)
    spec = SHAPES[shape]
    model = (
        load_model(shape, device, dtype) if spec is None else random_model(shape, spec, where, kind)
    )
    model.freeze()
    gauge.reset()
    _decode(model, prompt, rows)
    positions = prompt + _NEW_BLOCKS * model.spec.block_size
    caches = cache_bytes(model.spec, kind.itemsize, positions, rows)
    weights = model.spec.num_parameters * kind.itemsize
    return Memory(gauge.peak(), weights, caches)


def cache_bytes(spec: ModelSpec, size: int, positions: int, rows: int) -> int:
    """Bytes of the keys and values of ``rows`` rows of ``positions`` positions, whole blocks."""
    capacity = -(-positions // spec.block_size) * spec.block_size
    return 2 * spec.num_layers * rows * capacity * spec.num_kv_heads * spec.head_dim * size


def _decode(model: Model, prompt: int, rows: int) -> None:
    spec = model.spec
    new = _NEW_BLOCKS * spec.block_size
    decoding = Decoding(
        block_size=spec.block_size, max_new_tokens=new, threshold=0.0, stop_token=()
    )
    requests = [GenerationRequest(decoding_tokens(spec, prompt, seed)) for seed in range(rows)]
    generate(model, requests, decoding, batch_size=rows)


class _Gauge:
    """Peak memory above what the process held when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._before = 0
        self.reset()
        self._before = self.peak()

    def reset(self) -> None:
        """Begin a new peak."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            raise FdllmError(
                "the memory peak of a process can be reset on Linux only; leave out the topic "
                "growth here, or measure on a GPU"
            ) from None

    def peak(self) -> int:
        """Bytes above the beginning."""
        if self._cuda is not None:
            return torch.cuda.max_memory_allocated(self._cuda) - self._before
        status = Path("/proc/self/status").read_text(encoding="ascii")
        [peak] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        return int(peak) * 1024 - self._before


if __name__ == "__main__":
    found = measure_here(*json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(found), allow_nan=False) + "\n")

"""Memory of a model and its caches, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fdllm.bench.asks import decoding_tokens
from fdllm.bench.formula import cache_bytes, weight_bytes
from fdllm.bench.shapes import SHAPES, SMALLEST, TINY, random_model
from fdllm.core.checkpoint import Model, load_model
from fdllm.core.config import Decoding
from fdllm.core.model_spec import ModelSpec
from fdllm.core.sampler import GenerationRequest, generate_requests
from fdllm.errors import FdllmError

_NEW_BLOCKS = 2
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        held: most that was held while decoding, above a process without a model.
        loading: the same while the model was made.
        weights: of the formula.
        caches: of the formula.
    """

    held: int
    loading: int
    weights: int
    caches: int

    @property
    def formula(self) -> int:
        """What has to be there."""
        return self.weights + self.caches


def measure_apart(shape: str, device: str, dtype: str, prompt: int, rows: int) -> Memory:
    """Measure in a fresh process, which this one's memory is no part of.

    Raises:
        FdllmError: it failed; what it said last is told.
    """
    request = json.dumps([shape, device, dtype, prompt, rows], allow_nan=False)
    done = subprocess.run(  # noqa: S603 - this very program
        [sys.executable, "-m", "fdllm.bench.memory", request],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise FdllmError(f"memory of {shape} could not be measured: {last}")
    return Memory(**json.loads(done.stdout.strip().splitlines()[-1]))


def measure_here(shape: str, device: str, dtype: str, prompt: int, rows: int) -> Memory:
    """Make the model, decode, and see how much memory that took."""
    # Libraries that load themselves on first use are no model.
    _decode(_made("warm-up", SMALLEST, device, dtype), prompt, 1)
    gauge = _Gauge(torch.device(device))
    spec = SHAPES[shape]
    if shape == TINY or spec is None:
        model = load_model(TINY, device, dtype)
    else:
        model = _made(shape, spec, device, dtype)
    loading = gauge.peak()
    gauge.reset()
    _decode(model, prompt, rows)
    size = model.network.embedding.weight.element_size()
    positions = prompt + _NEW_BLOCKS * model.spec.block_size
    return Memory(
        gauge.peak(),
        loading,
        weight_bytes(model.spec, size),
        cache_bytes(model.spec, size, positions, rows),
    )


def _made(name: str, spec: ModelSpec, device: str, dtype: str) -> Model:
    model = random_model(name, spec, device, dtype)
    model.network.freeze()
    return model


def _decode(model: Model, prompt: int, rows: int) -> None:
    new = _NEW_BLOCKS * model.spec.block_size
    decoding = Decoding(
        block_size=model.spec.block_size, max_new_tokens=new, threshold=0.0, stop_token=()
    )
    requests = [
        GenerationRequest(decoding_tokens(model.spec, prompt, seed)) for seed in range(rows)
    ]
    generate_requests(model, requests, decoding, batch_size=rows)


class _Gauge:
    """Peak memory above what the process held when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self.reset()
        self._before = self._read()

    def reset(self) -> None:
        """Begin a new peak."""
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        try:
            _CLEAR.write_text("5", encoding="ascii")
        except OSError:
            raise FdllmError(
                "the memory peak of a process can be reset on Linux only; leave out the topic "
                "growth here, or measure on a GPU"
            ) from None

    def peak(self) -> int:
        """Bytes above the beginning."""
        return max(self._read() - self._before, 0)

    def _read(self) -> int:
        if self._cuda is not None:
            return int(torch.cuda.max_memory_allocated(self._cuda))
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        [line] = [line for line in lines if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


if __name__ == "__main__":
    found = measure_here(*json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps(asdict(found), allow_nan=False) + "\n")

"""Memory of a model and its caches, measured in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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
_EVERY_S = 0.002  # between two looks at a process


def held(pid: int | str) -> int:
    """Bytes of a process that no file stands behind: a mapped file is the system's to take back."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return sum(
        int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem"))
    )


def apart(command: Sequence[str], budget_s: float = math.inf) -> dict[str, Any]:
    """Run a Python program whose last line of output is JSON, in a process of its own.

    Returns:
        ``seconds``, ``peak`` (bytes that it held at most; 0 where there is no ``/proc``), and
        either ``result`` or ``error``, a line.
    """
    began, peak = time.perf_counter(), 0
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
        subprocess.Popen([sys.executable, *command], stdout=out, stderr=err, env=env) as process,
    ):
        while process.poll() is None and time.perf_counter() - began < budget_s:
            with suppress(OSError, ValueError):  # it has ended, or this is no Linux
                peak = max(peak, held(process.pid))
            time.sleep(_EVERY_S)
        late = process.poll() is None
        process.kill()
        process.wait()
        for file in (out, err):
            file.seek(0)
        said, complaint = (file.read().strip().splitlines() for file in (out, err))
    done: dict[str, Any] = {"seconds": time.perf_counter() - began, "peak": peak}
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

    held: int  # at most, while the model was made and decoded
    weights: int  # of the formula
    caches: int  # of the formula


def measure_apart(shape: str, device: str, dtype: str, prompt: int, rows: int) -> Memory:
    """Measure in a fresh process, which this one's memory is no part of.

    Raises:
        FdllmError: it failed; what it said last is told.
    """
    request = json.dumps([shape, device, dtype, prompt, rows], allow_nan=False)
    done = apart(["-m", "fdllm_bench.memory", request])
    if "error" in done or not done["peak"]:
        why = done.get("error", "it is read from /proc, on Linux only; leave out the topic growth")
        raise FdllmError(f"memory of {shape} could not be measured: {why}")
    found = done["result"]
    peak = done["peak"] if found["peak"] is None else found["peak"]
    return Memory(peak - found["before"], found["weights"], found["caches"])


def decode_here(shape: str, device: str, dtype: str, prompt: int, rows: int) -> dict[str, Any]:
    """Make the model and decode; what was held before, and on a GPU at most."""
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    # Libraries that load themselves on first use are no model.
    _decode(random_model("warm-up", small(1, 64), where, kind), prompt, 1)
    gpu = where.type == "cuda"
    before = torch.cuda.memory_allocated(where) if gpu else held("self")
    spec = SHAPES[shape]
    model = random_model(shape, spec, where, kind) if spec else load_model(shape, device, dtype)
    model.freeze()
    _decode(model, prompt, rows)
    positions = prompt + _NEW_BLOCKS * model.spec.block_size
    return {
        "before": before,
        "peak": torch.cuda.max_memory_allocated(where) if gpu else None,
        "weights": model.spec.num_parameters * kind.itemsize,
        "caches": cache_bytes(model.spec, kind.itemsize, positions, rows),
    }


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


if __name__ == "__main__":
    print(json.dumps(decode_here(*json.loads(sys.argv[1])), allow_nan=False))

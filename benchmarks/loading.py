"""What loading takes: ``python benchmarks/loading.py --shape 1.5B``.

A random checkpoint of the shape, sharded, in bfloat16 as published, is written to a folder of its
own (``--folder``, deleted afterwards) and loaded in a fresh process. Printed, as JSON: the most
memory that was held meanwhile, anonymous and shared (a mapped file is the system's to take back),
above what the process held before and beside the weights; and the seconds, beside those of reading
the same files into a buffer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

import fdllm
from fdllm.bench.shapes import SHAPES
from fdllm.core.checkpoint import hub_shapes
from fdllm.core.checkpoint_files import INDEX
from fdllm.core.model_spec import ModelSpec

_SHARD = 120  # tensors; 7B's are 4 GB at most
_EVERY_S = 0.002


def write(spec: ModelSpec, folder: Path) -> None:
    """A checkpoint of random weights; their values repeat, which no reader minds."""
    shapes = hub_shapes(spec)
    rows = max(torch.Size(shape).numel() for shape in shapes.values())
    values = (torch.randn(1 << 20) * 0.02).bfloat16()
    values = values.repeat(-(-rows // len(values)))
    names, number = iter(shapes), 0
    index: dict[str, str] = {}
    while part := list(islice(names, _SHARD)):
        number += 1
        file = f"model-{number:05}.safetensors"
        tensors = {}
        for name in part:
            shape = torch.Size(shapes[name])
            tensors[name] = values[: shape.numel()].view(shape).clone()
        save_file(tensors, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": index}))
    config = {
        "model_type": "qwen2",
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "intermediate_size": spec.intermediate_size,
        "rope_theta": spec.rope_theta,
        "tie_word_embeddings": spec.tie_embeddings,
        "mask_token_id": spec.mask_id,
        "eos_token_id": 151645,
    }
    (folder / "config.json").write_text(json.dumps(config))


def read(folder: Path) -> float:
    """Seconds to read the weights into one buffer."""
    began, buffer = time.perf_counter(), bytearray(1 << 24)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def child(folder: str, device: str, dtype: str) -> None:
    """Load when told to; what came before is no part of it."""
    fdllm.load_model("tiny", device, dtype)  # libraries that load themselves on first use
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    model = fdllm.load_model(folder, device, dtype)
    print(time.perf_counter() - began, model.spec.num_parameters, flush=True)


def held(pid: int) -> int:
    """Bytes of a process that no file stands behind."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(
        int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem"))
    )


def measure(folder: Path, device: str, dtype: str) -> dict[str, float]:
    """Load in a fresh process and watch its memory."""
    command = [sys.executable, __file__, "--child", str(folder), "--device", device]
    with subprocess.Popen(
        [*command, "--dtype", dtype], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        process.stdout.readline()
        peak = before = held(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            try:
                peak = max(peak, held(process.pid))
            except (OSError, ValueError):
                break
            time.sleep(_EVERY_S)
        said = process.stdout.read().split()
    if len(said) != 2:  # noqa: PLR2004 - seconds and parameters
        sys.exit(f"loading {folder} failed with exit status {process.returncode}")
    weights = int(said[1]) * getattr(torch, dtype).itemsize
    return {
        "seconds": float(said[0]),
        "weights_gb": weights / 1e9,
        "peak_gb": (peak - before) / 1e9,
        "peak_to_weights": (peak - before) / weights,
    }


def main() -> None:
    """Write, read, load, delete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="1.5B", choices=[n for n, s in SHAPES.items() if s])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where there is room")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.device, given.dtype)
        return
    spec = SHAPES[given.shape]
    assert spec is not None  # noqa: S101 - the parser looked
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        write(spec, folder)
        read_s = read(folder)
        found = measure(folder, given.device, given.dtype)
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"shape": given.shape, "dtype": given.dtype, "read_seconds": read_s} | found))


if __name__ == "__main__":
    main()

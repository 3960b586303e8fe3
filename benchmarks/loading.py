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
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file

import fdllm
from fdllm.checkpoint.folder import INDEX
from fdllm.checkpoint.tensors import hub_shapes
from fdllm.core.model_spec import ModelSpec
from fdllm_bench.memory import apart, held
from fdllm_bench.models import SHAPES

_SHARD = 120  # tensors; 7B's are 4 GB at most


def write(spec: ModelSpec, folder: Path) -> None:
    """A checkpoint of random weights; their values repeat, which no reader minds."""
    shapes = {name: torch.Size(shape) for name, shape in hub_shapes(spec).items()}
    values = (torch.randn(1 << 20) * 0.02).bfloat16()
    values = values.repeat(-(-max(shape.numel() for shape in shapes.values()) // len(values)))
    index: dict[str, str] = {}
    left = iter(shapes)
    while names := list(islice(left, _SHARD)):
        file = f"model-{len(index):05}.safetensors"
        tensors = {n: values[: shapes[n].numel()].view(shapes[n]).clone() for n in names}
        save_file(tensors, folder / file)
        index |= dict.fromkeys(names, file)
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


def load(folder: str, device: str, dtype: str) -> dict[str, float]:
    """Load here; what came before is no part of it."""
    fdllm.load_model("tiny", device, dtype)  # libraries that load themselves on first use
    before, began = held("self"), time.perf_counter()
    model = fdllm.load_model(folder, device, dtype)
    weights = model.spec.num_parameters * model.dtype.itemsize
    return {"seconds": time.perf_counter() - began, "before": before, "weights": weights}


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
        print(json.dumps(load(given.child, given.device, given.dtype)))
        return
    spec = SHAPES[given.shape]
    assert spec is not None  # noqa: S101 - the parser looked
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        write(spec, Path(folder))
        read_s = read(Path(folder))
        command = [__file__, "--child", folder, "--device", given.device, "--dtype", given.dtype]
        done = apart(command)
    if "error" in done:
        sys.exit(f"loading {given.shape} failed: {done['error']}")
    found = done["result"]
    peak = done["peak"] - found["before"]
    result = {
        "shape": given.shape,
        "dtype": given.dtype,
        "read_seconds": read_s,
        "seconds": found["seconds"],
        "weights_gb": found["weights"] / 1e9,
        "peak_gb": peak / 1e9,
        "peak_to_weights": peak / found["weights"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

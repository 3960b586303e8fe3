"""How many rows fit into memory: ``--batch-size auto``."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fdllm.core.checkpoint import Model
from fdllm.core.config import BatchSize
from fdllm.core.model_spec import ModelSpec

MOST_ROWS = 64
"""More rows than this are bound by arithmetic on every machine seen, and only cost memory."""
_SHARE = 0.8  # of the memory; the rest is for activations of a prompt, libraries and the harness
_BYTES_FLOAT32 = 4
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def max_batch_size(model: Model, asked: BatchSize = "auto") -> int:
    """As many rows as are asked for; ``auto``: as many as fit, each as long as the model allows.

    It depends on the model and on the size of the memory, not on what is free at the moment or on
    what is asked: the same command on the same machine takes the same batches, and speeds compare.
    """
    if asked != "auto":
        return asked
    size = model.network.embedding.weight.element_size()
    return batch_size_within(memory_bytes(model.device), model.spec, size)


def batch_size_within(num_bytes: int, spec: ModelSpec, size: int) -> int:
    """Rows for which there is space beside the weights, from 1 to :data:`MOST_ROWS`.

    Args:
        num_bytes: memory of the device.
        spec: the model's shape.
        size: bytes of a number.
    """
    left = _SHARE * num_bytes - spec.num_parameters * size
    return max(1, min(MOST_ROWS, int(left // row_bytes(spec, size))))


def row_bytes(spec: ModelSpec, size: int) -> int:
    """Bytes of one row: keys and values of all positions, and a block on its way through."""
    positions = spec.num_layers * spec.max_positions
    caches = 2 * positions * spec.num_kv_heads * spec.head_dim * size
    column = (3 * spec.intermediate_size + 8 * spec.hidden_size) * size
    logits = 4 * spec.vocab_size * _BYTES_FLOAT32  # softmax in float32, and what it is made of
    return caches + spec.block_size * (column + logits)


def memory_bytes(device: torch.device) -> int:
    """Memory of a GPU, or what this process may take of the machine's (SLURM, control groups)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    granted = os.environ.get("SLURM_MEM_PER_NODE", "")
    if granted.isdigit() and int(granted):
        limits.append(int(granted) * 2**20)
    for path in _LIMITS:
        text = path.read_text(encoding="ascii").strip() if path.is_file() else "max"
        if text.isdigit():
            limits.append(int(text))
    return min(limits)

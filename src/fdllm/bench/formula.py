"""Memory by formula: weights, keys and values."""

from __future__ import annotations

import os

import torch

from fdllm.core.model_spec import ModelSpec
from fdllm.errors import FdllmError

_COPIES = {"cpu": 2.3, "cuda": 1.3}
"""Weights that are held at once while a model and its floor are made; packed ones are their own."""


def weight_bytes(spec: ModelSpec, size: int) -> int:
    """Bytes of a model's weights.

    Args:
        spec: its shape.
        size: bytes of a number.
    """
    return spec.num_parameters * size


def cache_bytes(spec: ModelSpec, size: int, positions: int, rows: int) -> int:
    """Bytes of the keys and values of ``rows`` rows of ``positions`` positions, whole blocks."""
    block = spec.block_size
    capacity = -(-positions // block) * block
    return 2 * spec.num_layers * rows * capacity * spec.num_kv_heads * spec.head_dim * size


def check_room(name: str, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a shape that cannot be held, before the machine begins to swap.

    Raises:
        FdllmError: model and floor need more memory than the device has.
    """
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0]
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = _COPIES.get(device.type, 1.0) * weight_bytes(spec, dtype.itemsize)
    if need > room:
        raise FdllmError(
            f"shape {name} in {str(dtype).removeprefix('torch.')} needs about {need / 1e9:.0f} GB "
            f"with its floor, and {device} has {room / 1e9:.0f} GB; choose a smaller --shape, "
            "--dtype bfloat16, or a GPU"
        )

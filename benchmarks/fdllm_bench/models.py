"""The models that are measured, and the forwards that are measured of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from fdllm.core.checkpoint import Model, resolve_device, resolve_dtype
from fdllm.core.config import Decoding
from fdllm.core.model_spec import ModelSpec
from fdllm.core.reuse import LayerPlan
from fdllm.core.row_task import ForwardRequest
from fdllm.core.schedule import Phase
from fdllm.errors import FdllmError
from fdllm.fast.accelerators import load_model
from fdllm.selftest.subjects import SUB_BLOCK, decoding_tokens, random_model, small
from fdllm_bench.floor import Floor, ForwardShape

SHAPES: dict[str, ModelSpec | None] = {
    "tiny": None,
    "12x256": small(12, 256),
    "28x512": small(28, 512),
    "28x1024": small(28, 1024),
    "1.5B": ModelSpec(151936, 1536, 28, 12, 2, 8960, max_positions=8192, mask_id=151665),
    "7B": ModelSpec(152064, 3584, 28, 28, 4, 18944, max_positions=8192, mask_id=151665),
}
"""Shapes by name; None is the embedded model, which has weights of its own."""
_COPIES = {"cpu": 2.3, "cuda": 1.3}
"""Weights that are held at once while a model and its floor are made; packed ones are their own."""


@dataclass(frozen=True)
class BenchModel:
    """What is measured: a model, laid out for decoding, and the bare work of the same weights."""

    name: str  # of the shape
    model: Model
    floor: Floor

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.model.spec.block_size

    @property
    def dtype(self) -> str:
        """The name of its type."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def decoding(self) -> Decoding:
        """Nothing ends a row early, so that runs are comparable."""
        return Decoding(
            block_size=self.block,
            small_block_size=SUB_BLOCK,
            stop_token=(),
            mask_id=self.model.spec.mask_id,
        )

    def tokens(self, count: int, seed: int = 0) -> tuple[int, ...]:
        """Tokens below the mask, the same for the same seed."""
        return decoding_tokens(self.model.spec, count, seed)

    def refresh(self, plan: LayerPlan | None = None, seed: int = 1) -> ForwardRequest:
        """A REFRESH that reads a whole sub-block's predictions: the most that a step reads."""
        read = tuple(range(SUB_BLOCK - 1, 2 * SUB_BLOCK - 1))
        whole = plan or LayerPlan(self.model.n_layers)
        return ForwardRequest(Phase.REFRESH, self.tokens(self.block, seed), whole, read=read)

    def denoise(self, plan: LayerPlan | None = None, seed: int = 2) -> ForwardRequest:
        """A DENOISE of the second sub-block with all but its first column masked."""
        whole, ids = plan or LayerPlan(self.model.n_layers), self.tokens(SUB_BLOCK, seed)
        read = tuple(range(SUB_BLOCK - 1))
        return ForwardRequest(Phase.DENOISE, ids, whole, SUB_BLOCK, read=read)

    def shape_of(self, request: ForwardRequest, length: int, rows: int = 1) -> ForwardShape:
        """The floor of a forward of so many rows, each behind ``length`` tokens."""
        width, plan, layers = len(request.ids), request.plan, None
        seen = length + (width if request.phase is Phase.PREFILL else self.block)
        if isinstance(plan, LayerPlan) and plan.reuse:
            skipped = {layer for run in plan.reuse for layer in range(run.start, run.stop)}
            layers = tuple(layer for layer in range(plan.n_layers) if layer not in skipped)
        return ForwardShape(width, seen, rows * len(request.read), rows, layers)


def make_model(name: str, device: str = "cpu", dtype: str = "auto") -> BenchModel:
    """A model of one of :data:`SHAPES`, and its floor; nothing is fetched.

    Raises:
        UsageError: the device or the type does not exist.
        FdllmError: model and floor need more memory than the device has.
    """
    spec = SHAPES[name]
    if spec is None:
        return with_floor(name, load_model(name, device, dtype, freeze=False))
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    check_room(name, spec, where, kind)
    return with_floor(name, random_model(name, spec, where, kind))


def with_floor(name: str, model: Model) -> BenchModel:
    """A model that is not frozen yet, with its floor; it is frozen here.

    The floor takes the weights first: freezing gives up the layout that it packs from.
    """
    floor = Floor(model)
    model.freeze()
    return BenchModel(name, model, floor)


def check_room(name: str, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a shape that cannot be held, before the machine begins to swap.

    Raises:
        FdllmError: model and floor need more memory than the device has.
    """
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0]
    else:
        room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need = _COPIES.get(device.type, 1.0) * spec.num_parameters * dtype.itemsize
    if need > room:
        raise FdllmError(
            f"shape {name} in {str(dtype).removeprefix('torch.')} needs about {need / 1e9:.0f} GB "
            f"with its floor, and {device} has {room / 1e9:.0f} GB; choose a smaller --shape, "
            "--dtype bfloat16, or a GPU"
        )

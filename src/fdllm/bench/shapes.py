"""The models that a bench runs: shapes, and random weights made where they are used."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fdllm.bench.floor import Floor
from fdllm.bench.formula import check_room
from fdllm.bench.topics import check_shapes
from fdllm.core.checkpoint import Model, load_model, resolve_device, resolve_dtype
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import Network

TINY = "tiny"
_SMALL_VOCABULARY = 4096
_SPREAD = 0.02  # of the weights, as such models are initialised


def small(layers: int, width: int) -> ModelSpec:
    """Qwen-like proportions: 64 wide heads, a quarter for keys and values, SwiGLU of 2.75 widths.

    Args:
        layers: transformer layers.
        width: hidden size, a multiple of 64.
    """
    heads = width // 64
    return ModelSpec(
        vocab_size=_SMALL_VOCABULARY,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=max(1, heads // 4),
        intermediate_size=width * 11 // 4,
        max_positions=8192,
        mask_id=_SMALL_VOCABULARY - 1,
    )


SHAPES: dict[str, ModelSpec | None] = {
    TINY: None,
    "12x256": small(12, 256),
    "28x512": small(28, 512),
    "28x1024": small(28, 1024),
    "1.5B": ModelSpec(151936, 1536, 28, 12, 2, 8960, max_positions=8192, mask_id=151665),
    "7B": ModelSpec(152064, 3584, 28, 28, 4, 18944, max_positions=8192, mask_id=151665),
}
"""Shapes by name; None is the embedded model, which has weights of its own."""
SMALLEST = small(1, 64)


@dataclass(frozen=True)
class Subject:
    """What is measured: a model, and the bare work of the same weights.

    Attributes:
        name: the shape's name.
        model: the checkpoint, laid out for decoding.
        floor: its products, attention and head alone.
    """

    name: str
    model: Model
    floor: Floor

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.model.spec


def make_subject(name: str, device: str = "cpu", dtype: str = "auto") -> Subject:
    """Make a model of a shape, and its floor.

    Args:
        name: one of :data:`SHAPES`.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``.

    Raises:
        UsageError: the shape, the device or the type does not exist.
    """
    check_shapes([name])
    spec = SHAPES[name]
    if spec is None:
        model = load_model(TINY, device, dtype, freeze=False)
    else:
        model = random_model(name, spec, device, dtype)
    return subject_of(name, model)


def subject_of(name: str, model: Model) -> Subject:
    """A model that is not frozen yet, with its floor; it is frozen here.

    The floor takes the weights first: freezing gives up the layout that it packs from.
    """
    floor = Floor(model)
    model.network.freeze()
    return Subject(name, model, floor)


def random_model(name: str, spec: ModelSpec, device: str, dtype: str) -> Model:
    """A model of random weights, made on its device in its type; nothing is fetched.

    Raises:
        FdllmError: it does not fit into memory.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    check_room(name, spec, where, kind)
    with torch.device("meta"):
        network = Network(spec)
    network = network.to(kind).to_empty(device=where)
    generator = torch.Generator(where).manual_seed(0)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "norm" in key:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, _SPREAD, generator=generator)
    network.eval().requires_grad_(requires_grad=False)
    return Model(network, spec, None, name, where, kind)

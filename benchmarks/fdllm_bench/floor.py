"""The floor of a forward: its matrix products, its attention, the head on what is read, no more.

No norms, no rotary embedding, no activations, no sums, no caches written, no choice of tokens. The
products are those of the model's weights, each in the layout that is fastest here; the plain floor
takes torch's own product of the weights as a checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils.benchmark import Timer

from fdllm.core.checkpoint import Model
from fdllm.core.decoder_layer import can_pack
from fdllm.timing.interleave import Rounds, interleave

Work = Callable[[], object]
Product = Callable[[Tensor], Tensor]
_MATRICES = ("qkv", "o", "gate_up", "down")
_COLUMNS = (8, 32)  # of a sub-block and of a block: the layouts compete at both
_TRIALS = 12
_LEAST, _MOST = 4 << 20, 1 << 30  # bytes of the buffer that is read
_SIDE = {"cpu": 1536, "cuda": 8192}  # of the large product


@dataclass(frozen=True)
class ForwardShape:
    """A forward's extents.

    Attributes:
        width: columns fed, of each row.
        extent: keys that each query sees.
        reads: columns of all rows whose logits are read.
        rows: rows of the batch.
        layers: layers that are computed; None for all.
    """

    width: int
    extent: int
    reads: int
    rows: int = 1
    layers: tuple[int, ...] | None = None

    @property
    def last_columns(self) -> int:
        """Columns whose last layer reaches a logit, or all where the others are not worth a cut."""
        columns = self.rows * self.width
        return self.reads if 2 * self.reads <= columns else columns


@dataclass(frozen=True)
class _Inputs:
    """What the products are made from, and each layer's attention; the values do not matter."""

    hidden: Tensor
    mixed: Tensor
    gated: Tensor
    last: tuple[Tensor, Tensor, Tensor]
    read: Tensor
    query: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class Floor:
    """The bare loop over a model's weights.

    Args:
        model: not frozen yet; its weights are shared, or packed anew where that is faster.

    Attributes:
        layouts: which layout won, by matrix.
    """

    def __init__(self, model: Model) -> None:
        self.spec, self._like = model.spec, model.network.head.weight.data
        stack = model.network.stack
        parts = {name: [getattr(layer, name).weight.data for layer in stack] for name in _MATRICES}
        self._sizes = {name: weights[0].numel() for name, weights in parts.items()}
        self.layouts: dict[str, str] = {}
        parts["head"] = [self._like]
        with torch.inference_mode():
            fastest = {name: self._fastest(name, weights) for name, weights in parts.items()}
        plain = {name: list(map(_plain, weights)) for name, weights in parts.items()}
        self._fast, self._plain = (
            (list(zip(*(products[name] for name in _MATRICES), strict=True)), products["head"][0])
            for products in (fastest, plain)
        )

    def _fastest(self, name: str, weights: list[Tensor]) -> list[Product]:
        """Every layer's product in the layout that is fastest, all of them in one loop."""
        ways = {"plain": list(map(_plain, weights))}
        if can_pack(weights[0]):
            ways["packed"] = list(map(_packed, weights))
        inputs = [weights[0].new_ones(rows, weights[0].shape[1]) for rows in _COLUMNS]

        def loop(products: list[Product]) -> None:
            for x in inputs:
                for product in products:
                    product(x)

        works = {way: partial(loop, products) for way, products in ways.items()}
        times = interleave(works, self._like.device, Rounds(_TRIALS))
        # The best of many: a wrong choice on a busy machine would raise the floor.
        self.layouts[name] = min(ways, key=lambda way: min(times[way]))
        return ways[self.layouts[name]]

    def prepare(self, shape: ForwardShape, *, plain: bool = False) -> Work:
        """The loop for these extents, ready to be timed.

        On a GPU it is one CUDA graph: launching kernels one by one is no part of a floor.

        Args:
            shape: the forward's.
            plain: by torch's own products, whatever is faster.
        """
        products, head = self._plain if plain else self._fast
        work = partial(self._run, shape, self._inputs(shape), products, head)
        return _captured(work) if self._like.device.type == "cuda" else work

    def prepare_all(self, shapes: Iterable[ForwardShape]) -> Work:
        """The loops of many forwards, one behind the other."""
        shapes = list(shapes)
        each = {shape: self.prepare(shape) for shape in set(shapes)}

        def run() -> None:
            for shape in shapes:
                each[shape]()

        return run

    @torch.inference_mode()
    def _run(
        self,
        shape: ForwardShape,
        inputs: _Inputs,
        products: list[tuple[Product, ...]],
        head: Product,
    ) -> None:
        hidden, mixed, gated = inputs.hidden, inputs.mixed, inputs.gated
        for i in range(len(products)) if shape.layers is None else shape.layers:
            qkv, o, gate_up, down = products[i]
            qkv(hidden)
            if i == len(products) - 1:  # of the last layer only what is read goes on
                if not shape.last_columns:
                    return
                hidden, mixed, gated = inputs.last
            F.scaled_dot_product_attention(inputs.query, inputs.keys[i], inputs.values[i])
            o(mixed)
            gate_up(hidden)
            down(gated)
        if shape.reads:
            head(inputs.read)

    def _inputs(self, shape: ForwardShape) -> _Inputs:
        spec, new, columns = self.spec, self._like.new_ones, shape.rows * shape.width
        heads = (shape.rows, spec.num_kv_heads)
        group = spec.num_heads // spec.num_kv_heads
        hidden = new(columns, spec.hidden_size)
        mixed = new(columns, spec.num_heads * spec.head_dim)
        gated = new(columns, spec.intermediate_size)
        last = shape.last_columns
        return _Inputs(
            hidden,
            mixed,
            gated,
            (hidden[:last], mixed[:last], gated[:last]),
            new(max(shape.reads, 1), spec.hidden_size),
            new(*heads, group * shape.width, spec.head_dim),
            *(new(spec.num_layers, *heads, shape.extent, spec.head_dim).unbind(0) for _ in "kv"),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all layers' matrices and of the head."""
        numbers = self.spec.num_layers * sum(self._sizes.values()) + self._like.numel()
        return int(numbers * self._like.element_size())

    def cost(self, shape: ForwardShape) -> Cost:
        """Bytes that a forward must read and operations it must make."""
        spec, layers, last = self.spec, shape.layers, shape.last_columns
        num = spec.num_layers if layers is None else len(layers)
        columns, size = shape.rows * shape.width, self._like.element_size()
        matrices, head = sum(self._sizes.values()), self._like.numel()
        behind = matrices - self._sizes["qkv"]
        kv = 2 * shape.rows * shape.extent * spec.num_kv_heads * spec.head_dim
        attention = 4 * columns * shape.extent * spec.num_heads * spec.head_dim
        numbers = num * (matrices + kv) + (head if shape.reads else 0)
        operations = num * (2 * columns * matrices + attention) + 2 * shape.reads * head
        if layers is None or spec.num_layers - 1 in layers:
            operations -= 2 * (columns - last) * behind
            if not last:  # only the keys and values it owes
                operations -= attention
                numbers -= behind + kv
        return Cost(numbers * size, operations)


@dataclass(frozen=True)
class Cost:
    """What arithmetic cannot avoid.

    Attributes:
        num_bytes: bytes read: the weights once, and keys and values.
        operations: multiplications and additions.
    """

    num_bytes: int
    operations: int


@dataclass(frozen=True)
class Limits:
    """A machine's measured rates.

    Attributes:
        read: bytes a second, over a buffer of the weights' size.
        product: operations a second of a large square product of the weights' type.
    """

    read: float
    product: float

    def seconds(self, cost: Cost) -> float:
        """The physical limit: nothing is faster than the slower of the two."""
        return max(cost.num_bytes / self.read, cost.operations / self.product)

    def bound(self, cost: Cost) -> str:
        """Which of the two it is."""
        by_read = cost.num_bytes / self.read > cost.operations / self.product
        return "reading" if by_read else "arithmetic"


def measure_limits(device: torch.device, dtype: torch.dtype, weight_bytes: int) -> Limits:
    """Measure the machine.

    Args:
        device: where.
        dtype: of the product.
        weight_bytes: what a step reads: what fits into a cache is read at the cache's speed.
    """
    count = min(max(weight_bytes, _LEAST), _MOST) // 4
    buffer = torch.ones(count, dtype=torch.float32, device=device)
    side = _SIDE.get(device.type, _SIDE["cpu"])
    a = torch.ones(side, side, dtype=dtype, device=device)
    # Which reduction comes closest to the bandwidth differs by machine: the best one counts.
    reads: tuple[Work, ...] = (buffer.sum, buffer.max, lambda: torch.dot(buffer, buffer))
    with torch.inference_mode():
        best = min(_fastest_of(work) for work in reads)
        return Limits(count * 4 / best, 2 * side**3 / _fastest_of(lambda: a @ a))


def seconds(work: Work, number: int = 3) -> float:
    """Seconds of a work by itself, the mean of so many."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.timeit(number).mean


def _fastest_of(work: Work) -> float:
    return min(seconds(work, 1) for _ in range(7))


def _plain(weight: Tensor) -> Product:
    return lambda x: F.linear(x, weight)


def _packed(weight: Tensor) -> Product:
    """The product in oneDNN's own layout."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _COLUMNS[-1])  # noqa: SLF001
    product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
    return lambda x: product(x, packed, None, "none", [], "")


def _captured(work: Work) -> Work:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay

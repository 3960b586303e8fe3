"""The floor of a forward: its matrix products, its attention, the head on what is read, no more.

No norms, no rotary embedding, no activations, no sums, no caches written, no choice of tokens. The
products are those of the model's weights, each in the layout that is fastest here; the plain floor
takes torch's own product of the weights as a checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """A forward's extents."""

    width: int  # columns fed, of each row
    extent: int  # keys that each query sees
    reads: int  # columns of all rows whose logits are read
    rows: int = 1
    layers: tuple[int, ...] | None = None  # that are computed; None for all

    @property
    def last_columns(self) -> int:
        """Columns whose last layer reaches a logit, or all where the others are not worth a cut."""
        columns = self.rows * self.width
        return self.reads if 2 * self.reads <= columns else columns


@dataclass(frozen=True)
class Cost:
    """What arithmetic cannot avoid."""

    num_bytes: int  # read: the weights once, and keys and values
    operations: int  # multiplications and additions


class Floor:
    """The bare loop over a model's weights.

    Args:
        model: not frozen yet; its weights are shared, or packed anew where that is faster.

    Attributes:
        like: a tensor of the weights' type and device.
        layouts: which layout won, by matrix.
        weight_bytes: of all layers' matrices and of the head.
    """

    def __init__(self, model: Model) -> None:
        self.spec, self.like = model.spec, model.network.head.weight.data
        stack = model.network.stack
        parts = {name: [getattr(layer, name).weight.data for layer in stack] for name in _MATRICES}
        self._sizes = {name: weights[0].numel() for name, weights in parts.items()}
        parts["head"] = [self.like]
        numbers = sum(len(weights) * weights[0].numel() for weights in parts.values())
        self.weight_bytes = numbers * self.like.element_size()
        self.layouts: dict[str, str] = {}
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
        times = interleave(works, self.like.device, Rounds(_TRIALS))
        # The best of many: a wrong choice on a busy machine would raise the floor.
        self.layouts[name] = min(ways, key=lambda way: min(times[way]))
        return ways[self.layouts[name]]

    def prepare(self, shape: ForwardShape, *, plain: bool = False) -> Work:
        """The loop for these extents, ready to be timed.

        On a GPU it is one CUDA graph: launching kernels one by one is no part of a floor. The plain
        loop is of torch's own products, whatever is faster.
        """
        spec, new, last = self.spec, self.like.new_ones, shape.last_columns
        columns, rows = shape.rows * shape.width, (shape.rows, spec.num_kv_heads)
        # What stands in them does not matter to a product.
        hidden, gated = new(columns, spec.hidden_size), new(columns, spec.intermediate_size)
        mixed = new(columns, spec.num_heads * spec.head_dim)
        read = new(max(shape.reads, 1), spec.hidden_size)
        group = spec.num_heads // spec.num_kv_heads
        query = new(*rows, group * shape.width, spec.head_dim)
        keys = new(spec.num_layers, *rows, shape.extent, spec.head_dim)
        pairs = list(zip(keys.unbind(0), torch.ones_like(keys).unbind(0), strict=True))
        products, head = self._plain if plain else self._fast
        layers = range(spec.num_layers) if shape.layers is None else shape.layers
        whole = (mixed, hidden, gated)
        cut = tuple(x[:last] for x in whole)

        @torch.inference_mode()
        def run() -> None:
            for i in layers:
                qkv, *behind = products[i]
                qkv(hidden)
                # Of the last layer only what is read goes on.
                fed = cut if i == spec.num_layers - 1 else whole
                if not len(fed[0]):
                    return
                F.scaled_dot_product_attention(query, *pairs[i])
                for product, x in zip(behind, fed, strict=True):
                    product(x)
            if shape.reads:
                head(read)

        return _captured(run) if self.like.device.type == "cuda" else run

    def prepare_all(self, shapes: Iterable[ForwardShape]) -> Work:
        """The loops of many forwards, one behind the other."""
        shapes = list(shapes)
        each = {shape: self.prepare(shape) for shape in set(shapes)}

        def run() -> None:
            for shape in shapes:
                each[shape]()

        return run

    def cost(self, shape: ForwardShape) -> Cost:
        """Bytes that a forward must read and operations it must make."""
        spec, layers, last = self.spec, shape.layers, shape.last_columns
        num = spec.num_layers if layers is None else len(layers)
        columns, size = shape.rows * shape.width, self.like.element_size()
        matrices, head = sum(self._sizes.values()), self.like.numel()
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
class Limits:
    """What the machine can do a second, measured."""

    read: float  # bytes, over a buffer of the weights' size
    product: float  # operations, of a large square product of the weights' type

    def seconds(self, cost: Cost) -> float:
        """The physical limit: nothing is faster than the slower of the two."""
        return max(cost.num_bytes / self.read, cost.operations / self.product)

    def bound(self, cost: Cost) -> str:
        """Which of the two it is."""
        return "reading" if self.seconds(cost) * self.product > cost.operations else "arithmetic"


def measure_limits(floor: Floor) -> Limits:
    """Measure the machine; what fits into a cache is read at the cache's speed."""
    count = min(max(floor.weight_bytes, _LEAST), _MOST) // 4
    buffer = floor.like.new_ones(count, dtype=torch.float32)
    a = floor.like.new_ones(side := _SIDE.get(buffer.device.type, _SIDE["cpu"]), side)
    # Which reduction comes closest to the bandwidth differs by machine: the best one counts.
    reads: tuple[Work, ...] = (buffer.sum, buffer.max, lambda: torch.dot(buffer, buffer))
    with torch.inference_mode():
        best, product = (
            min(seconds(work, 1) for work in works for _ in range(7))
            for works in (reads, [lambda: a @ a])
        )
    return Limits(count * 4 / best, 2 * side**3 / product)


def seconds(work: Work, number: int = 3) -> float:
    """Seconds of a work by itself, the mean of so many."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.timeit(number).mean


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
    return partial(_replay, graph, work)


def _replay(graph: torch.cuda.CUDAGraph, _: Work) -> None:
    """What the work reads stays as long as the graph does."""
    graph.replay()

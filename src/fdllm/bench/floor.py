"""The floor of a forward: its matrix products, its attention, the head on what is read, no more.

No norms, no rotary embedding, no activations, no sums, no caches written, no choice of tokens. The
products are those of the model's weights, each in the layout that is fastest here; the plain floor
takes torch's own product of the weights as a checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.bench.timing import Clock
from fdllm.core.checkpoint import Model
from fdllm.core.decoder_layer import can_pack

Product = Callable[[Tensor], Tensor]
Products = tuple[Product, ...]
_COLUMNS = (8, 32)  # of a sub-block and of a block: the layouts compete at both
_TRIALS = 12


@dataclass(frozen=True)
class Forward:
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
    """What the products of a forward are made from, and each layer's attention."""

    hidden: Tensor
    mixed: Tensor
    gated: Tensor
    read: Tensor
    last: tuple[Tensor, Tensor, Tensor]
    query: Tensor
    keys: Sequence[Tensor]
    values: Sequence[Tensor]


class Floor:
    """The bare loop over a model's weights.

    Args:
        model: not frozen yet; its weights are shared, or packed anew where that is faster.

    Attributes:
        layouts: which layout won, by matrix.
        weight_bytes: bytes of a layer's matrices, and of the head, as :attr:`head_bytes`.
    """

    def __init__(self, model: Model) -> None:
        network, self.spec = model.network, model.spec
        self._like = network.embedding.weight.data
        self._clock = Clock(model.device)
        self.layouts: dict[str, str] = {}
        parts = {
            "qkv": [layer.qkv.weight.data for layer in network.stack],
            "o": [layer.o.weight.data for layer in network.stack],
            "gate_up": [layer.gate_up.weight.data for layer in network.stack],
            "down": [layer.down.weight.data for layer in network.stack],
        }
        self.layer_bytes = sum(w[0].numel() * w[0].element_size() for w in parts.values())
        self.layer_weights = sum(w[0].numel() for w in parts.values())
        self._behind = self.layer_weights - parts["qkv"][0].numel()
        head = network.head.weight.data
        self.head_bytes, self.head_weights = head.numel() * head.element_size(), head.numel()
        self._plain: list[Products] = list(
            zip(*([_plain(w) for w in ws] for ws in parts.values()), strict=True)
        )
        self._plain_head = _plain(head)
        with torch.inference_mode():
            products = [self._fastest(name, weights) for name, weights in parts.items()]
            [self._head] = self._fastest("head", [head])
        self._layers: list[Products] = list(zip(*products, strict=True))
        self._inputs: dict[Forward, _Inputs] = {}
        self._graphs: dict[Forward, torch.cuda.CUDAGraph] = {}

    def _fastest(self, name: str, weights: list[Tensor]) -> list[Product]:
        """Every layer's product in the layout that is fastest, all of them in one loop."""
        plain = [_plain(weight) for weight in weights]
        if not can_pack(weights[0]):
            self.layouts[name] = "plain"
            return plain
        packed = [_packed(weight) for weight in weights]
        inputs = [weights[0].new_ones(rows, weights[0].shape[1]) for rows in _COLUMNS]

        def loop(products: list[Product]) -> None:
            for x in inputs:
                for product in products:
                    product(x)

        loop(plain)
        loop(packed)
        # In turn, and the best of many: a wrong choice on a busy machine would raise the floor.
        times = [
            (self._clock.time(lambda: loop(plain)), self._clock.time(lambda: loop(packed)))
            for _ in range(_TRIALS)
        ]
        faster = min(by for _, by in times) < min(by for by, _ in times)
        self.layouts[name] = "packed" if faster else "plain"
        return packed if faster else plain

    def prepare_plain(self, forward: Forward) -> Callable[[], object]:
        """The loop of torch's own products."""
        if self._like.device.type == "cuda":
            return self.prepare(forward)  # which has no others
        inputs = self._made(forward)
        return lambda: self._run(forward, inputs, self._plain, self._plain_head)

    def prepare(self, forward: Forward) -> Callable[[], object]:
        """The loop for these extents, ready to be timed.

        On a GPU it is one CUDA graph: launching kernels one by one is no part of a floor.
        """
        inputs = self._made(forward)
        if self._like.device.type != "cuda":
            return lambda: self._run(forward, inputs, self._layers, self._head)
        if forward not in self._graphs:
            self._graphs[forward] = self._capture(forward, inputs)
        return self._graphs[forward].replay

    def prepare_all(self, forwards: Iterable[Forward]) -> Callable[[], object]:
        """The loops of many forwards, one behind the other."""
        works = [self.prepare(forward) for forward in forwards]

        def run() -> None:
            for work in works:
                work()

        return run

    @torch.inference_mode()
    def _run(
        self, forward: Forward, inputs: _Inputs, products: list[Products], head: Product
    ) -> None:
        attend = F.scaled_dot_product_attention
        hidden, mixed, gated, query = inputs.hidden, inputs.mixed, inputs.gated, inputs.query
        layers = range(len(products)) if forward.layers is None else forward.layers
        for i in layers:
            qkv, o, gate_up, down = products[i]
            qkv(hidden)
            if i == len(products) - 1:  # of the last layer only what is read goes on
                if not forward.last_columns:
                    return
                hidden, mixed, gated = inputs.last
            attend(query, inputs.keys[i], inputs.values[i])
            o(mixed)
            gate_up(hidden)
            down(gated)
        if forward.reads:
            head(inputs.read)

    def _made(self, forward: Forward) -> _Inputs:
        """Inputs of the right shapes; what stands in them does not matter to a product."""
        if forward in self._inputs:
            return self._inputs[forward]
        spec, like, columns = self.spec, self._like, forward.rows * forward.width
        group = spec.num_heads // spec.num_kv_heads
        shape = (forward.rows, spec.num_kv_heads, forward.extent, spec.head_dim)
        keys = like.new_ones((spec.num_layers, *shape))
        values = torch.ones_like(keys)
        hidden = like.new_ones(columns, spec.hidden_size)
        mixed = like.new_ones(columns, spec.num_heads * spec.head_dim)
        gated = like.new_ones(columns, spec.intermediate_size)
        last = forward.last_columns
        made = _Inputs(
            hidden,
            mixed,
            gated,
            like.new_ones(max(forward.reads, 1), spec.hidden_size),
            (hidden[:last], mixed[:last], gated[:last]),
            like.new_ones(forward.rows, spec.num_kv_heads, group * forward.width, spec.head_dim),
            keys.unbind(0),
            values.unbind(0),
        )
        self._inputs[forward] = made
        return made

    def _capture(self, forward: Forward, inputs: _Inputs) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run(forward, inputs, self._layers, self._head)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._run(forward, inputs, self._layers, self._head)
        return graph

    def forget(self) -> None:
        """Drop the inputs made so far, and their memory."""
        self._inputs.clear()
        self._graphs.clear()

    def cost(self, forward: Forward) -> Cost:
        """Bytes that a forward must read and operations it must make."""
        spec, layers = self.spec, forward.layers
        num = spec.num_layers if layers is None else len(layers)
        columns = forward.rows * forward.width
        size = self._like.element_size()
        kv = 2 * forward.rows * forward.extent * spec.num_kv_heads * spec.head_dim
        attention = 4 * columns * forward.extent * spec.num_heads * spec.head_dim
        head = 2 * forward.reads * self.head_weights
        num_bytes = num * (self.layer_bytes + kv * size) + (self.head_bytes if forward.reads else 0)
        operations = num * (2 * columns * self.layer_weights + attention) + head
        if layers is None or spec.num_layers - 1 in layers:
            operations -= 2 * (columns - forward.last_columns) * self._behind
            if not forward.last_columns:  # only the keys and values it owes
                operations -= attention
                num_bytes -= self._behind * size + kv * size
        return Cost(num_bytes, operations)


@dataclass(frozen=True)
class Cost:
    """What arithmetic cannot avoid.

    Attributes:
        num_bytes: bytes read: the weights once, and keys and values.
        operations: multiplications and additions.
    """

    num_bytes: int
    operations: int


def _plain(weight: Tensor) -> Product:
    return lambda x: F.linear(x, weight)


def _packed(weight: Tensor) -> Product:
    """The product in oneDNN's own layout."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _COLUMNS[-1])  # noqa: SLF001
    product = torch.ops.mkldnn._linear_pointwise.default  # noqa: SLF001
    return lambda x: product(x, packed, None, "none", [], "")

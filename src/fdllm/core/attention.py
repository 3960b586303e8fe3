"""What a forward does between its matrix products: attention over a cache, norms, activations.

A backend belongs to one cache and owns every buffer that forwards over it pass through. What it
makes of a window serves every layer, and every later forward over the same window: its views into
the cache stay valid, as the cache's buffers are never moved.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fdllm.core.cache import RowCache
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.model_spec import ModelSpec
from fdllm.core.network import rotary_table
from fdllm.core.reuse import LayerPlan

Compute = Callable[[Tensor, Sequence[int]], Tensor]
"""Carries out a plan at what is prepared: tokens, and which columns are read, to hidden states."""
KEPT = 64
"""Windows and sizes remembered: a block has one for each sub-block, and REFRESH and COMMIT."""
At = TypeVar("At")


class Norm(NamedTuple):
    """A root-mean-square norm.

    Attributes:
        plain: by torch's kernels.
        scale: its weight; None where that went into the matrix behind it.
    """

    plain: Callable[[Tensor], Tensor]
    scale: Tensor | None


class Workspace:
    """Buffers of a forward of so many columns; each layer overwrites what is in them."""

    def __init__(self, spec: ModelSpec, columns: int, like: Tensor) -> None:
        self._spec, self._columns, self._like = spec, columns, like

    @cached_property
    def heads(self) -> Tensor:
        """Queries, keys and values as they are projected, [columns, heads * head dim]."""
        size = (self._spec.num_heads + 2 * self._spec.num_kv_heads) * self._spec.head_dim
        return self._like.new_empty(self._columns, size)

    @cached_property
    def gates(self) -> Tensor:
        """Gate and up as they are projected, [columns, 2 * inner]."""
        return self._like.new_empty(self._columns, 2 * self._spec.intermediate_size)

    @cached_property
    def query(self) -> Tensor:
        """Rotated queries, [columns, heads * head dim] numbers."""
        return self._like.new_empty(self._columns, self._spec.num_heads * self._spec.head_dim)

    @cached_property
    def fresh(self) -> Tensor:
        """Keys and values on their way to rows apart, [2, columns, kv heads * head dim] numbers."""
        return self._like.new_empty(2, self._columns, self._spec.num_kv_heads * self._spec.head_dim)


class AttentionBackend(ABC, Generic[At]):
    """Attention over one cache, and what else stands between the products of a forward.

    Args:
        cache: keys and values of all rows; written in place.

    Attributes:
        cache: the same.
        work: buffers of the forward at hand.
        factors: rotary factors of every position, complex, [capacity, 1, head dim / 2].
    """

    work: Workspace

    def __init__(self, cache: RowCache) -> None:
        self.cache, self.spec = cache, cache.spec
        cos, sin = rotary_table(self.spec, cache.capacity, cache.keys.device)
        half = self.spec.head_dim // 2
        self.factors = torch.complex(cos[:, :half], sin[:, :half])[:, None]
        self._kept = lru_cache(KEPT)(self._lay_out)
        self._stand([], [])

    def forward(
        self,
        compute: Compute,
        ids: Tensor,
        batch: ForwardBatch,
        plan: LayerPlan,  # noqa: ARG002 - keys what a backend records
        columns: Sequence[int],
    ) -> Tensor:
        """Hidden states of the columns that are read; a backend may replay what it has recorded.

        Args:
            compute: the forward's layers.
            ids: tokens [columns].
            batch: where they stand.
            plan: what each layer does.
            columns: those that are read.
        """
        self.prepare(batch)
        return compute(ids, columns)

    def prepare(self, batch: ForwardBatch) -> None:
        """Stand at the windows of a forward, until the next call."""
        # A prompt's mask is large, and seldom comes again.
        at = [
            self._kept(window) if window.causal_block is None else self._lay_out(window)
            for window in batch.windows
        ]
        self._stand(at, [window.num_columns for window in batch.windows])
        self.resize(sum(self._sizes))

    def _stand(self, at: list[At], sizes: list[int]) -> None:
        self._at, self._sizes = at, sizes

    @abstractmethod
    def attend(self, layer: int, heads: Tensor) -> Tensor:
        """Write a layer's keys and values, and attend, one window behind the other.

        Args:
            layer: its index.
            heads: queries, keys and values, not yet rotated, [columns, heads * head dim].

        Returns:
            What each column sees, its heads group by group, [columns, heads * head dim]; good
            until the next call.
        """

    def write_kv(self, layer: int, heads: Tensor) -> None:
        """Write a layer's keys and values, given alone or behind its queries."""
        for at, part in zip(self._at, heads.split(self._sizes), strict=True):
            self._write_kv(at, layer, part)

    def received(self, layer: int, queries: Tensor, window: Window) -> Tensor:
        """The share of a layer's attention that goes to each column of the block.

        Of all heads and of the window's computed columns, summed. The kernels of attention do not
        say, so queries meet keys once more.

        Args:
            layer: its index; keys are in the cache.
            queries: not yet rotated, [columns, heads * head dim].
            window: theirs.

        Returns:
            [rows, block, 1], in float32.
        """
        kv, dim, out = self.spec.num_kv_heads, self.spec.head_dim, list[Tensor]()
        group, rows = self.spec.num_heads // kv, len(window.rows)
        of_rows = queries.float().view(rows, -1, kv, group, dim // 2, 2)
        for i, row in enumerate(window.rows):
            at = [window.starts[i] + offset for offset in window.offsets]
            turned = torch.view_as_complex(of_rows[i]) * self.factors[at].unsqueeze(-2)
            query = torch.view_as_real(turned).transpose(0, 1).reshape(kv, -1, dim)
            keys = self.cache.keys[layer, row, :, : window.extents[i]].float()
            shares = (query @ keys.transpose(1, 2) / math.sqrt(dim)).softmax(-1).sum((0, 1))
            block = window.starts[i] - window.first_columns[i]
            out.append(shares[block : block + self.cache.block_size, None])
        return torch.stack(out)

    @abstractmethod
    def resize(self, columns: int) -> None:
        """Take buffers for so many columns as :attr:`work`."""

    @abstractmethod
    def norm(self, x: Tensor, norm: Norm) -> Tensor:
        """The norm of ``x`` [columns, hidden], good until the next."""

    @abstractmethod
    def gate(self, both: Tensor) -> Tensor:
        """``silu(gate) * up`` of both side by side, [columns, 2 * inner], good until the next."""

    @abstractmethod
    def choose(self, logits: Tensor, mask_id: int) -> tuple[list[int], list[float]]:
        """As :func:`fdllm.core.unmask.choose_greedy`, onto the host."""

    @abstractmethod
    def _lay_out(self, window: Window) -> At:
        """What every layer and every forward over a window needs."""

    @abstractmethod
    def _write_kv(self, at: At, layer: int, heads: Tensor) -> None:
        """As :meth:`write_kv`, of one window."""

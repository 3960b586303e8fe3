"""The state of a batch inside the model: keys, values and reuse slots, with one owner.

A row of the batch is a *slot*. Its keys and values lie in one buffer: the prefix cache in
positions ``0 .. length - 1`` (exact) and right behind it the block cache (approximate between
refreshes). A COMMIT therefore writes where the block cache stood and only moves ``length``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fdllm.errors import FdllmError
from fdllm.model.spec import ModelSpec
from fdllm.reuse import LayerRun


class NeverWrittenError(FdllmError):
    """A reuse step asked for a stored value that no layer has written for that row and column."""


class ReuseSlots:
    """Stored values of skipped layer runs, addressed by (row, column of the block).

    Which columns hold a value is kept beside the values as one bit mask a row, on the host, so
    that reading what was never written raises without asking the device.
    """

    def __init__(self, num_rows: int, block_size: int, hidden_size: int, like: Tensor) -> None:
        self._shape = (num_rows, block_size, hidden_size)
        self._like = like
        self._values: dict[LayerRun, Tensor] = {}
        self._written: dict[LayerRun, list[int]] = {}

    def write(self, run: LayerRun, rows: Sequence[int], starts: Sequence[int], x: Tensor) -> None:
        """Keep ``x`` [rows, columns, hidden] for the columns from each row's start on."""
        if run not in self._values:
            self._values[run] = self._like.new_empty(self._shape)
            self._written[run] = [0] * self._shape[0]
        values, written = self._values[run], self._written[run]
        width = x.shape[1]
        for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
            values[row, start : start + width] = x[i]
            written[row] |= ((1 << width) - 1) << start

    def read(self, run: LayerRun, rows: Sequence[int], starts: Sequence[int], width: int) -> Tensor:
        """Stored values [rows, width, hidden].

        Raises:
            NeverWrittenError: a column asked for was never written since its row began its block.
        """
        written = self._written.get(run)
        want = (1 << width) - 1
        for row, start in zip(rows, starts, strict=True):
            if written is None or (written[row] >> start) & want != want:
                raise NeverWrittenError(
                    f"layers {run.start}..{run.stop - 1} ({run.target}) were to be reused for "
                    f"columns {start}..{start + width - 1} of row {row}, but no step of this block "
                    "has computed them; the strategy must store a run before it reuses it"
                )
        values = self._values[run]
        if len(rows) == 1:
            return values[rows[0] : rows[0] + 1, starts[0] : starts[0] + width]
        pieces = [
            values[row, start : start + width] for row, start in zip(rows, starts, strict=True)
        ]
        return torch.stack(pieces)

    def forget(self, row: int) -> None:
        """Drop what ``row`` stored: its block is finished, or its slot changes hands."""
        for written in self._written.values():
            written[row] = 0

    def save(self, row: int) -> dict[LayerRun, tuple[Tensor, int]]:
        """What ``row`` holds: values [block, hidden] and the mask of written columns, by run."""
        return {
            run: (values[row].clone(), self._written[run][row])
            for run, values in self._values.items()
        }

    def restore(self, row: int, saved: dict[LayerRun, tuple[Tensor, int]]) -> None:
        """Make ``row`` hold what :meth:`save` returned."""
        self.forget(row)
        for run, (values, written) in saved.items():
            self._values[run][row] = values
            self._written[run][row] = written


@dataclass(frozen=True)
class Snapshot:
    """A row's current block: what has to come back before another continuation is tried.

    Attributes:
        length: tokens of the prefix.
        keys: the block cache's keys [layers, kv heads, block, head dim].
        values: its values.
        slots: what the reuse slots held.
    """

    length: int
    keys: Tensor
    values: Tensor
    slots: dict[LayerRun, tuple[Tensor, int]]


class RowCache:
    """Keys, values and reuse slots of every row, preallocated.

    Attributes:
        keys: [layers, rows, kv heads, capacity, head dim].
        values: the same shape.
        lengths: tokens in each row's prefix cache.
        slots: stored values of skipped runs.
    """

    def __init__(
        self, spec: ModelSpec, *, num_rows: int, capacity: int, block_size: int, like: Tensor
    ) -> None:
        shape = (spec.num_layers, num_rows, spec.num_kv_heads, capacity, spec.head_dim)
        # Zeros, not empty: attention multiplies masked-out positions by 0, and 0 * NaN is NaN.
        self.keys = like.new_zeros(shape)
        self.values = like.new_zeros(shape)
        self.lengths = [0] * num_rows
        self.block_size = block_size
        self.slots = ReuseSlots(num_rows, block_size, spec.hidden_size, like)

    @property
    def num_rows(self) -> int:
        """Rows this cache has room for."""
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens each row has room for."""
        return self.keys.shape[3]

    def reset(self, row: int) -> None:
        """Hand the slot to a new request."""
        self.lengths[row] = 0
        self.slots.forget(row)

    def commit(self, row: int, num_tokens: int) -> None:
        """Count ``num_tokens`` more tokens as prefix; the row's block is finished."""
        self.lengths[row] += num_tokens
        self.slots.forget(row)

    def save(self, row: int) -> Snapshot:
        """Copy a row's current block."""
        at = slice(self.lengths[row], self.lengths[row] + self.block_size)
        return Snapshot(
            self.lengths[row],
            self.keys[:, row, :, at].clone(),
            self.values[:, row, :, at].clone(),
            self.slots.save(row),
        )

    def restore(self, row: int, saved: Snapshot) -> None:
        """Put a row back to where its block was saved; later blocks are forgotten."""
        at = slice(saved.length, saved.length + self.block_size)
        self.lengths[row] = saved.length
        self.keys[:, row, :, at] = saved.keys
        self.values[:, row, :, at] = saved.values
        self.slots.restore(row, saved.slots)


@dataclass(frozen=True)
class Window:
    """Where one forward reads and writes: which rows, and which positions of each.

    Attributes:
        rows: slots of the cache.
        starts: first position written, one a row.
        width: positions written, the same for all rows.
        extents: keys visible to every query of the row: positions ``0 .. extent - 1``.
        causal_block: block size where queries see only their own and earlier blocks *within* the
            window (PREFILL of several blocks); None where they see all of it.
    """

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    extents: tuple[int, ...]
    causal_block: int | None = None
    uniform: bool = field(init=False)
    """All rows adjacent with equal starts and extents: one attention call serves them."""

    def __post_init__(self) -> None:
        adjacent = self.rows == tuple(range(self.rows[0], self.rows[0] + len(self.rows)))
        same = len(set(self.starts)) == 1 and len(set(self.extents)) == 1
        object.__setattr__(self, "uniform", adjacent and same)

"""Stored values of skipped layer runs: what a step reuses, addressed so that it cannot be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdllm.errors import FdllmError
from fdllm.layerplan import LayerRun

Slot = tuple[int, int, str, int]


class NeverWrittenError(FdllmError):
    """A reuse step asked for a stored value that no layer has written for that row and column."""


@dataclass
class _Value:
    """Values of one run, [rows, block, hidden], and which columns of each row hold one.

    The columns are one bit mask a row, on the host: reading what was never written raises without
    asking the device.
    """

    data: Tensor
    written: list[int]


SavedSlots = list[tuple[_Value, Tensor, int]]
"""What a row held: each value, a copy of the row's part, and its written columns."""


class ReuseSlots:
    """Stored values of runs, addressed by (row, column of the block); some keep the one before."""

    def __init__(self, num_rows: int, block_size: int, hidden_size: int, like: Tensor) -> None:
        self._shape = (num_rows, block_size, hidden_size)
        self._like = like
        self._new: dict[Slot, _Value] = {}
        self._old: dict[Slot, _Value] = {}

    def write(
        self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]], x: Tensor
    ) -> None:
        """Keep ``x`` [rows, columns, hidden] for each row's columns of the block."""
        new = self._value(self._new, run)
        for i, (row, at) in enumerate(zip(rows, columns, strict=True)):
            bits = _bits(at)
            span = _span(at)
            if run.keep > 1:
                old = self._value(self._old, run)
                old.data[row, span] = new.data[row, span]
                old.written[row] = (old.written[row] & ~bits) | (new.written[row] & bits)
            new.data[row, span] = x[i]
            new.written[row] |= bits

    def read(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> Tensor:
        """Stored values [rows, columns, hidden], extrapolated where the run says so.

        Raises:
            NeverWrittenError: a column asked for was never written since its row began its block.
        """
        new = self._read(self._new, run, rows, columns)
        if not run.extrapolate:
            return new
        return new + run.extrapolate * (new - self._read(self._old, run, rows, columns))

    def forget(self, row: int) -> None:
        """Drop what ``row`` stored: its block is finished, or its slot changes hands."""
        for value in (*self._new.values(), *self._old.values()):
            value.written[row] = 0

    def save(self, row: int) -> SavedSlots:
        """Copies of everything ``row`` holds."""
        values = (*self._new.values(), *self._old.values())
        return [(value, value.data[row].clone(), value.written[row]) for value in values]

    def restore(self, row: int, saved: SavedSlots) -> None:
        """Make ``row`` hold what :meth:`save` returned."""
        self.forget(row)
        for value, data, written in saved:
            value.data[row] = data
            value.written[row] = written

    def _value(self, values: dict[Slot, _Value], run: LayerRun) -> _Value:
        if run.slot not in values:
            values[run.slot] = _Value(self._like.new_zeros(self._shape), [0] * self._shape[0])
        return values[run.slot]

    def _read(
        self,
        values: dict[Slot, _Value],
        run: LayerRun,
        rows: Sequence[int],
        columns: Sequence[Sequence[int]],
    ) -> Tensor:
        value = values.get(run.slot)
        for row, at in zip(rows, columns, strict=True):
            bits = _bits(at)
            if value is None or value.written[row] & bits != bits:
                raise NeverWrittenError(
                    f"layers {run.start}..{run.stop - 1} ({run.target}) were to be reused for "
                    f"columns {at[0]}..{at[-1]} of row {row}, but no step of this block has "
                    "computed them; the strategy must store a run before it reuses it"
                )
        data = self._value(values, run).data
        if len(rows) == 1:
            return data[rows[0] : rows[0] + 1, _span(columns[0])]
        return torch.stack([data[row, _span(at)] for row, at in zip(rows, columns, strict=True)])


def _bits(columns: Sequence[int]) -> int:
    if isinstance(columns, range):
        return ((1 << len(columns)) - 1) << columns.start
    return sum(1 << c for c in columns)


def _span(columns: Sequence[int]) -> slice | list[int]:
    return slice(columns.start, columns.stop) if isinstance(columns, range) else list(columns)

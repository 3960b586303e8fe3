"""Stored values of skipped layer runs: what a step reuses, addressed so that it cannot be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdllm.core.layerplan import LayerPlan, LayerRun
from fdllm.errors import FdllmError

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
        self.unchecked = SlotData((num_rows, block_size, hidden_size), like)

    def write(
        self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]], x: Tensor
    ) -> None:
        """Keep ``x`` [rows, columns, hidden] for each row's columns of the block."""
        self.unchecked.write(run, rows, columns, x)
        self._note(run, rows, columns)

    def read(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> Tensor:
        """Stored values [rows, columns, hidden], extrapolated where the run says so.

        Raises:
            NeverWrittenError: a column asked for was never written since its row began its block.
        """
        self._check(run, rows, columns)
        return self.unchecked.read(run, rows, columns)

    def prepare(self, plan: LayerPlan) -> None:
        """Make room for what a plan keeps, so that nothing is allocated while it is recorded."""
        for run in plan.runs:
            self.unchecked.value(run)
            if run.keep > 1:
                self.unchecked.value(run, old=True)

    def book(self, plan: LayerPlan, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        """The host's part of a forward whose kernels read and write by themselves.

        Raises:
            NeverWrittenError: as :meth:`read`.
        """
        for run in plan.reuse:
            self._check(run, rows, columns)
        for run in plan.store:
            self._note(run, rows, columns)

    def forget(self, row: int) -> None:
        """Drop what ``row`` stored: its block is finished, or its slot changes hands."""
        for value in self.unchecked.all():
            value.written[row] = 0

    def save(self, row: int) -> SavedSlots:
        """Copies of everything ``row`` holds."""
        held = self.unchecked.all()
        return [(value, value.data[row].clone(), value.written[row]) for value in held]

    def restore(self, row: int, saved: SavedSlots) -> None:
        """Make ``row`` hold what :meth:`save` returned."""
        self.forget(row)
        for value, data, written in saved:
            value.data[row] = data
            value.written[row] = written

    def _note(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        new = self.unchecked.value(run)
        for row, at in zip(rows, columns, strict=True):
            bits = _bits(at)
            if run.keep > 1:
                old = self.unchecked.value(run, old=True)
                old.written[row] = (old.written[row] & ~bits) | (new.written[row] & bits)
            new.written[row] |= bits

    def _check(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        needed = [self.unchecked.value(run)]
        needed += [self.unchecked.value(run, old=True)] if run.extrapolate else []
        for row, at in zip(rows, columns, strict=True):
            bits = _bits(at)
            if any(value.written[row] & bits != bits for value in needed):
                raise NeverWrittenError(
                    f"layers {run.start}..{run.stop - 1} ({run.target}) were to be reused for "
                    f"columns {at[0]}..{at[-1]} of row {row}, but no step of this block has "
                    "computed them; the strategy must store a run before it reuses it"
                )


class SlotData:
    """The values themselves, read and written without asking whether there are any.

    Args:
        shape: rows, columns of a block, hidden size.
        like: a tensor of the weights' type and device.
    """

    def __init__(self, shape: tuple[int, int, int], like: Tensor) -> None:
        self._shape, self._like = shape, like
        self._new: dict[Slot, _Value] = {}
        self._old: dict[Slot, _Value] = {}

    def write(
        self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]], x: Tensor
    ) -> None:
        """As :meth:`ReuseSlots.write`."""
        new = self.value(run).data
        for i, (row, at) in enumerate(zip(rows, columns, strict=True)):
            span = _span(at)
            if run.keep > 1:
                self.value(run, old=True).data[row, span] = new[row, span]
            new[row, span] = x[i]

    def read(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`ReuseSlots.read`."""
        new = _gathered(self.value(run).data, rows, columns)
        if not run.extrapolate:
            return new
        old = _gathered(self.value(run, old=True).data, rows, columns)
        return new + run.extrapolate * (new - old)

    def value(self, run: LayerRun, *, old: bool = False) -> _Value:
        """Where a run's values lie; made when it is first asked for."""
        values = self._old if old else self._new
        if run.slot not in values:
            values[run.slot] = _Value(self._like.new_zeros(self._shape), [0] * self._shape[0])
        return values[run.slot]

    def all(self) -> list[_Value]:
        """Everything there is."""
        return [*self._new.values(), *self._old.values()]


def _gathered(data: Tensor, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> Tensor:
    if len(rows) == 1:
        return data[rows[0] : rows[0] + 1, _span(columns[0])]
    return torch.stack([data[row, _span(at)] for row, at in zip(rows, columns, strict=True)])


def _bits(columns: Sequence[int]) -> int:
    if isinstance(columns, range):
        return ((1 << len(columns)) - 1) << columns.start
    return sum(1 << c for c in columns)


def _span(columns: Sequence[int]) -> slice | list[int]:
    return slice(columns.start, columns.stop) if isinstance(columns, range) else list(columns)

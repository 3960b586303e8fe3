"""Stored values of skipped layer runs: what a step reuses, addressed so that it cannot be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fdllm.core.forward_batch import ForwardBatch
from fdllm.core.reuse import LayerRun, NeverWrittenError, PlanStep


@dataclass
class _Value:
    """Values of one run, [rows, block, hidden], and which columns of each row hold one.

    The columns are one bit mask a row, on the host: reading what was never written raises without
    asking the device.
    """

    data: Tensor
    written: list[int]


SavedOutputs = list[tuple[_Value, Tensor, int]]
"""What a row held: each value, a copy of the row's part, and its written columns."""


class LayerOutputCache:
    """Stored values of runs, addressed by (row, column of the block); some keep the one before.

    The host books what a forward stores and reuses (:meth:`book`) ahead of it, and its layers read
    and write without asking: so may a recorded forward.
    """

    def __init__(self, num_rows: int, block_size: int, hidden_size: int, like: Tensor) -> None:
        self._shape, self._like = (num_rows, block_size, hidden_size), like
        self._values: dict[tuple[object, ...], _Value] = {}
        # for each row, what its last forward stored of drafts, in their order
        self._drafts: dict[int, list[tuple[LayerRun, Sequence[int], Tensor]]] = {}

    def book(self, steps: Sequence[PlanStep], batch: ForwardBatch) -> None:
        """The host's part of a forward: what is reused must be there, what is stored will be.

        Raises:
            NeverWrittenError: a column that is reused was never stored since its row began its
                block.
        """
        for window in batch.windows:
            for row in window.rows:
                self._drafts.pop(row, None)
        for step in steps:
            if step.run is None:
                continue
            if step.kind == "compute":
                for window in (one for one, _ in batch.storing if not one.draft):
                    self.note(step.run, window.rows, window.columns)
                    self._note_watched(step.run, window.rows, window.columns)
                continue
            window = batch.alone
            if step.kind == "partial" and step.run.columns:
                columns = [step.run.columns] * len(window.rows)
                self.note(step.run, window.rows, columns)
                self._note_watched(step.run, window.rows, columns)
            self.check(step.run, window.rows, window.columns)

    def note(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        """Make room for a run's values, and remember which columns will hold one."""
        new = self._value(run)
        for row, at in zip(rows, columns, strict=True):
            bits = _bits(at)
            if run.keep > 1:
                old = self._value(run, old=True)
                old.written[row] = (old.written[row] & ~bits) | (new.written[row] & bits)
            new.written[row] |= bits

    def _note_watched(
        self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]
    ) -> None:
        for kept in run.watched:
            every = [range(self._shape[1])] * len(rows)
            self.note(kept, rows, every if kept.target == "received" else columns)

    def check(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> None:
        """Refuse to read what was never written.

        Raises:
            NeverWrittenError: nothing is stored for one of these columns.
        """
        needed = [self._value(run)]
        needed += [self._value(run, old=True)] if run.extrapolate else []
        for row, at in zip(rows, columns, strict=True):
            bits = _bits(at)
            if any(value.written[row] & bits != bits for value in needed):
                raise NeverWrittenError(
                    f"layers {run.start}..{run.stop - 1} ({run.target}) were to be reused for "
                    f"columns {at[0]}..{at[-1]} of row {row}, but no step of this block has "
                    "computed them; the strategy must store a run before it reuses it"
                )

    def write(
        self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]], x: Tensor
    ) -> None:
        """Keep ``x`` [rows, columns, hidden] for each row's columns of the block."""
        new = self._value(run).data
        for i, (row, at) in enumerate(zip(rows, columns, strict=True)):
            span = _span(at)
            if run.keep > 1:
                self._value(run, old=True).data[row, span] = new[row, span]
            new[row, span] = x[i]

    def draft(
        self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]], x: Tensor
    ) -> None:
        """As :meth:`write`, of a draft: it waits for :meth:`keep`, or goes with the next forward.

        Drafts of a row are given in their order, run by run.
        """
        for i, (row, at) in enumerate(zip(rows, columns, strict=True)):
            self._drafts.setdefault(row, []).append((run, at, x[i].clone()))

    def keep(self, row: int, num_drafts: int) -> None:
        """Write what the row's first drafts stored, one behind the other."""
        kept: dict[LayerRun, int] = {}
        for run, at, x in self._drafts.pop(row, ()):
            kept[run] = kept.get(run, 0) + 1
            if kept[run] <= num_drafts:
                self.note(run, (row,), (at,))
                self.write(run, (row,), (at,), x[None])

    def read(self, run: LayerRun, rows: Sequence[int], columns: Sequence[Sequence[int]]) -> Tensor:
        """Stored values [rows, columns, hidden], extrapolated where the run says so."""
        new = _gathered(self._value(run).data, rows, columns)
        if not run.extrapolate:
            return new
        old = _gathered(self._value(run, old=True).data, rows, columns)
        return new + run.extrapolate * (new - old)

    def forget(self, row: int) -> None:
        """Drop what ``row`` stored: its block is finished, or it changes hands."""
        self._drafts.pop(row, None)
        for value in self._values.values():
            value.written[row] = 0

    def save(self, row: int) -> SavedOutputs:
        """Copies of everything ``row`` holds."""
        held = self._values.values()
        return [(value, value.data[row].clone(), value.written[row]) for value in held]

    def restore(self, row: int, saved: SavedOutputs) -> None:
        """Make ``row`` hold what :meth:`save` returned."""
        self.forget(row)
        for value, data, written in saved:
            value.data[row] = data
            value.written[row] = written

    def _value(self, run: LayerRun, *, old: bool = False) -> _Value:
        """Where a run's values lie; made when it is first asked for."""
        key = (*run.key, old)
        if key not in self._values:
            shape = (*self._shape[:2], 1 if run.target == "received" else self._shape[2])
            self._values[key] = _Value(self._like.new_zeros(shape), [0] * self._shape[0])
        return self._values[key]


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

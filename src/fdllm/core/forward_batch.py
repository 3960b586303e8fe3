"""Where one forward reads and writes: rows, positions, columns of the block. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Window:
    """As many positions of each of some rows."""

    rows: tuple[int, ...]  # of the cache
    starts: tuple[int, ...]  # first position written, one a row
    width: int  # positions written, the same for all rows
    # keys visible to every query of the row: positions ``0 .. extent - 1``.
    extents: tuple[int, ...]
    # block size where queries see only their own and earlier blocks *within* the window (PREFILL of
    # several blocks); None where they see all of it
    causal_block: int | None = None
    stores: bool = True  # whether a plan's runs are stored for these columns
    # the block's column that each row's window begins at; all 0 by default
    first_columns: tuple[int, ...] = ()
    # offsets inside the window, where not all of its columns are computed
    only: tuple[int, ...] | None = None
    # which draft of its rows it is, from 1 on: what it stores waits until the draft is kept
    draft: int = 0

    def __post_init__(self) -> None:
        if not self.first_columns:
            object.__setattr__(self, "first_columns", (0,) * len(self.rows))

    @cached_property
    def adjacent(self) -> bool:
        """The rows stand side by side in the cache, so that their keys need no copy."""
        return self.rows == tuple(range(self.rows[0], self.rows[0] + len(self.rows)))

    @cached_property
    def uniform(self) -> bool:
        """And have equal starts and extents, so that they need no mask."""
        return self.adjacent and len(set(self.starts)) == 1 and len(set(self.extents)) == 1

    @cached_property
    def offsets(self) -> Sequence[int]:
        """Of the columns that are computed, inside the window."""
        return range(self.width) if self.only is None else self.only

    @property
    def num_columns(self) -> int:
        """Columns that are computed, of all rows."""
        return len(self.rows) * len(self.offsets)

    @cached_property
    def columns(self) -> list[range]:
        """The block's columns that each row's window covers, computed or not."""
        return [range(first, first + self.width) for first in self.first_columns]

    @cached_property
    def computed(self) -> Sequence[Sequence[int]]:
        """Of them, those that are computed."""
        if self.only is None:
            return self.columns
        return [[first + offset for offset in self.only] for first in self.first_columns]


@dataclass(frozen=True)
class ForwardBatch:
    """The windows of one forward, in the order of its columns.

    Several share a forward under a plan that computes every layer; a window sees what those ahead
    of it write.
    """

    windows: tuple[Window, ...]

    @property
    def alone(self) -> Window:
        """The one window of a forward that reuses something.

        Raises:
            ValueError: there are several.
        """
        if len(self.windows) > 1:
            raise ValueError("a forward over several windows computes every layer")
        return self.windows[0]

    @cached_property
    def storing(self) -> list[tuple[Window, slice]]:
        """The windows for which a plan's runs are stored, each with its columns in the forward."""
        found, at = [], 0
        for window in self.windows:
            if window.stores:
                found.append((window, slice(at, at + window.num_columns)))
            at += window.num_columns
        return found

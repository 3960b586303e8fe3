"""The table of faults: what each did to a sweep, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.checkout import LIMIT, Checkout

MOST_BLOCKS = 3  # of one sample: up to 56 new tokens behind a prompt that ends within a block
WARM_UP_BLOCKS = 1  # that a process begins before its first sample, and forgets


@dataclass(frozen=True)
class Fault:
    """One row.

    Attributes:
        name: what was done.
        happened: what came of it.
        lost: answers that had been kept and were not in the end.
        twice: samples that were computed, wholly or in part, more than once.
        of: samples of the runs in question.
    """

    name: str
    happened: str
    lost: int
    twice: int
    of: int


@dataclass
class FaultTable:
    """Collects rows, and compares with the undisturbed runs.

    Attributes:
        reference: the checkout whose sweep nothing disturbed.
        rows: of the faults so far.
    """

    reference: Checkout
    rows: list[Fault] = field(default_factory=list)

    def add(
        self, name: str, happened: str, checkout: Checkout, configs: Sequence[str], *, most: int
    ) -> None:
        """Hold the records against the undisturbed ones, count, and keep the row.

        Args:
            name: of the fault.
            happened: what came of it, for the table.
            checkout: where it struck.
            configs: the configs that it struck.
            most: samples that may have been computed twice, the batches in flight.
        """
        lost = twice = 0
        for config in configs:
            assert checkout.record(config) == self.reference.record(config), (name, config)
            lives = checkout.lives(config)
            keys = [key for life in lives for key in life]
            assert len(keys) == len(set(keys)), f"{name}: a kept answer was computed again"
            # A sample lost is an answer of the undisturbed run that is not in the journal now.
            undisturbed = {key for life in self.reference.lives(config) for key in life}
            lost += len(undisturbed - set(keys))
            twice += self._again(checkout, config)
        assert lost == 0, f"{name}: {lost} samples lost"
        assert twice <= most, f"{name}: {twice} samples computed twice, at most {most} may be"
        self.rows.append(Fault(name, happened, lost, twice, LIMIT * len(configs)))

    def _again(self, checkout: Checkout, config: str) -> int:
        """Samples computed twice: each one that was begun, not kept, and begun again.

        Blocks are counted where they begin, so work that no journal has seen counts too. A process
        decodes one sample at a time here, so what it leaves unkept is at most one sample.
        """
        (whole,) = self.reference.begun(config)
        begun = checkout.begun(config)
        interrupted = len(begun) - 1
        repeated = sum(begun) - whole - WARM_UP_BLOCKS * interrupted
        assert repeated >= 0, "fewer blocks were begun than the samples have"
        assert repeated <= MOST_BLOCKS * interrupted, "more than the samples in flight was repeated"
        return min(interrupted, repeated)

    def lines(self) -> list[str]:
        """The table, for a note."""
        table = [("fault", "what happened", "samples lost", "computed twice", "of")]
        table += [(r.name, r.happened, str(r.lost), str(r.twice), str(r.of)) for r in self.rows]
        wide = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        padded = ([cell.ljust(w) for cell, w in zip(line, wide, strict=True)] for line in table)
        return [" | ".join(line).rstrip() for line in padded]

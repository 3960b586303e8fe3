"""What verified drafts saved (docs/algorithm.md 4.10): rounds, drafts, the steps that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.record import measure
from fdllm.report.columns import Column, Table
from fdllm.report.records import Record


@dataclass(frozen=True)
class Drafts:
    """Of all documents of a run."""

    steps: int  # that were kept, those of plain decoding
    rounds: int  # forwards that verified
    drafted: int  # states that were verified in them, beside the one at hand
    drafting: int  # forwards that only drafted
    # steps by rounds and drafting forwards, these by the layers they computed: the cost model of a
    # device bound by memory, where rows of one forward cost one
    gain: float

    @classmethod
    def of(cls, record: Record) -> Drafts | None:
        """None where nothing was drafted."""
        phases = ("refresh", "denoise")
        counts = {p: record.summary.counts[p] for p in phases if p in record.summary.counts}
        forwards, drafted, drafting = (
            int(measure.total(counts, name)) for name in ("forwards", "drafted", "drafting")
        )
        if not drafted:
            return None
        shares = sum(map(measure.made, counts.values())) / record.summary.strategy.n_layers
        steps = sum(len(answer) for row in record.samples for answer in row["steps"])
        rounds = forwards - drafted - drafting
        return cls(steps, rounds, drafted, drafting, steps / (shares - drafted))


def drafts_table(records: Sequence[Record]) -> Table | None:
    """A row a config that drafted; None where none did."""
    found = {one.name: drafts for one in records if (drafts := Drafts.of(one)) is not None}
    if not found:
        return None
    every = found.values()
    return Table(
        [
            Column("Config", [*found], is_words=True),
            Column("Steps kept", [str(one.steps) for one in every]),
            Column("Rounds", [str(one.rounds) for one in every]),
            Column("Drafts verified", [str(one.drafted) for one in every]),
            Column("Drafting forwards", [str(one.drafting) for one in every]),
            Column("Gain", [f"{one.gain:.2f}" for one in every]),
        ],
        "Verified drafts. Gain: steps kept by rounds and by drafting forwards, these by the share "
        "of the layers they computed; what a device bound by memory could gain, where the rows of "
        "one forward cost as much as one row:",
    )

"""Reuse against the plain alternative: lowering the confidence threshold, at equal speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.record.paths import Layout
from fdllm.report.compare import compare
from fdllm.report.grid import mixtures, same_computation
from fdllm.report.records import Record, load_records
from fdllm.report.stats import Estimate
from fdllm.report.times import Times, read_times

EXPERIMENT = "05_threshold"


@dataclass(frozen=True)
class ThresholdCell:
    """One threshold, against that experiment's own cell without reuse."""

    name: str  # the config
    time: Estimate  # by its own k=1's, from a timing study of its own
    change: Estimate  # accuracy less its own k=1's


@dataclass(frozen=True)
class EqualTime:
    """One config against the best threshold that is as fast, as far as can be told."""

    config: str  # the config
    # the most accurate threshold that is not shown to be slower; None where every one is
    rival: str | None
    difference: Estimate | None  # the config's accuracy less the rival's, paired

    @property
    def word(self) -> str:
        """What may be said."""
        if self.difference is None:
            return "every threshold is slower"
        if self.difference.high < 0:
            return "less accurate"
        return "more accurate" if self.difference.low > 0 else "not told apart"


@dataclass(frozen=True)
class Alternative:
    """The alternative's cells."""

    cells: tuple[ThresholdCell, ...]  # that were timed, the fastest first
    against: tuple[EqualTime, ...]  # each config of the table against them
    note: str  # why nothing is compared; empty where it is
    left_out: tuple[str, ...] = ()  # records that cannot be read, each with the reason


def find_alternative(
    layout: Layout, table: Sequence[Record], baseline: Record | None, times: Times
) -> Alternative:
    """What lowering the threshold gives beside a table.

    The two experiments' times were taken apart, so each is a ratio to its own k=1, which must be
    the same computation.

    Args:
        layout: where all records lie.
        table: the cells.
        baseline: of the table.
        times: of the table.

    A record of the alternative that is broken, or of an older form, is left out and named.
    """
    first = table[0]
    if first.summary.experiment == EXPERIMENT or baseline is None or not times.pairs:
        return Alternative((), (), "")
    broken: list[str] = []
    found = [
        cell
        for cell in load_records(layout, EXPERIMENT, first.task, first.limit, left_out=broken)
        if cell.folder.parent.name == first.folder.parent.name and cell.limit == first.limit
    ]
    own = next((cell for cell in found if _decodes_alike(cell, baseline)), None)
    if own is None:
        unlike, none = (
            f"cell that decodes as {baseline.name} does",
            "records of this task and model",
        )
        note = f"{EXPERIMENT} has no {unlike if found else none}"
        return Alternative((), (), note, tuple(broken))
    theirs = read_times(found, own.name)
    if note := _apart(first, found, theirs, times):
        return Alternative((), (), note, tuple(broken))
    others = [c for c in found if c.name in theirs.pairs and not same_computation(c, own)]
    curve = [(Estimate(1, 1, 1), own)] + [(theirs.pairs[c.name].ratio, c) for c in others]
    cells = tuple(
        ThresholdCell(cell.name, time, compare(own, cell).difference)
        for time, cell in sorted(curve, key=lambda pair: pair[0].value)
    )
    noise = 1 + max(theirs.floor or 0.0, times.floor or 0.0)
    against = []
    for cell in table:
        if cell.name in times.pairs and cell.summary.strategy.reuses:
            mine = times.pairs[cell.name].ratio
            fast = [one for time, one in curve if not _slower(time, mine, noise)]
            rival = max(fast, key=lambda one: one.summary.headline.value, default=None)
            difference = None if rival is None else compare(rival, cell).difference
            name = None if rival is None else rival.name
            against.append(EqualTime(cell.name, name, difference))
    return Alternative(cells, tuple(against), "", tuple(broken))


def _apart(first: Record, found: Sequence[Record], theirs: Times, times: Times) -> str:
    """Why thresholds may not stand beside a table; empty where they may."""
    if problems := mixtures([first, *found], varying=frozenset({"experiment"})):
        return f"{EXPERIMENT} has records, yet not comparable ones: {'; '.join(problems)}"
    if not theirs.pairs:
        return f"in {EXPERIMENT}, {theirs.sentence}"
    if theirs.floor is None or times.floor is None:
        one, its = (EXPERIMENT, theirs) if theirs.floor is None else ("this experiment", times)
        return f"in the timing study of {one} {its.reach}"
    return ""


def _slower(time: Estimate, other: Estimate, noise: float) -> bool:
    """Whether a time is shown to be the longer one: off the other's interval, beyond the noise."""
    return time.low > other.high and time.value > noise * other.value


def _decodes_alike(cell: Record, baseline: Record) -> bool:
    """Whether a cell of another experiment is the baseline's computation."""
    decoding = (one.summary.fingerprint.fields.get("decoding") for one in (cell, baseline))
    return not cell.summary.strategy.reuses and len(set(decoding)) == 1

"""Reuse against plain controls: the best of what costs as little, in time or in layer calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.record.paths import Layout
from fdllm.report.compare import compare
from fdllm.report.grid import mixtures, same_computation
from fdllm.report.made import made_by
from fdllm.report.records import Record, load_records
from fdllm.report.stats import Estimate
from fdllm.report.times import Times, read_times

THRESHOLD = "05_threshold"
CONTROLS = {
    "11_random": "skipping at random",
    "04_resample": "re-sampling",
    THRESHOLD: "lowering the threshold",
}
"""Experiments that every other is held against, and what they do instead."""


@dataclass(frozen=True)
class Control:
    """An experiment that a table is held against, as its records stand."""

    experiment: str  # its name
    own: Record | None = None  # its cell that decodes as the table's baseline
    cells: tuple[Record, ...] = ()  # all of them
    note: str = ""  # why it cannot stand beside the table; empty where it can, or need not
    left_out: tuple[str, ...] = ()  # records that cannot be read, each with the reason


@dataclass(frozen=True)
class ControlCell:
    """One cell of a control, against that experiment's own cell without reuse."""

    name: str  # the config
    cost: Estimate  # its time, or its layer calls, by its own k=1's
    change: Estimate  # accuracy less its own k=1's


@dataclass(frozen=True)
class AtEqualCost:
    """One config against the best cell of a control that costs as little, as far as is known."""

    config: str  # the config
    # the most accurate cell that is not shown to cost more; None where every one is
    rival: str | None
    difference: Estimate | None  # the config's accuracy less the rival's, paired

    @property
    def word(self) -> str:
        """What may be said."""
        if self.difference is None:
            return "none costs as little"
        if self.difference.high < 0:
            return "less accurate"
        return "more accurate" if self.difference.low > 0 else "not told apart"


@dataclass(frozen=True)
class Alternative:
    """A control beside a table."""

    experiment: str  # the control
    cells: tuple[ControlCell, ...] = ()  # the cheapest first
    against: tuple[AtEqualCost, ...] = ()  # each config of the table against them
    note: str = ""  # why nothing is compared; empty where it is


def find_control(
    layout: Layout, experiment: str, table: Sequence[Record], baseline: Record | None
) -> Control:
    """The records of a control that may stand beside a table.

    A record that is broken, or of an older form, is left out and named.
    """
    first = table[0]
    if first.summary.experiment == experiment or baseline is None:
        return Control(experiment)
    broken: list[str] = []
    found = tuple(
        cell
        for cell in load_records(layout, experiment, first.task, first.limit, left_out=broken)
        if cell.folder.parent.name == first.folder.parent.name and cell.limit == first.limit
    )
    own = next((cell for cell in found if _decodes_alike(cell, baseline)), None)
    note = ""
    if own is None:
        unlike = f"cell that decodes as {baseline.name} does"
        note = f"{experiment} has no {unlike if found else 'records of this task and model'}"
    elif problems := mixtures([first, *found], varying=frozenset({"experiment"})):
        note = f"{experiment} has records, yet not comparable ones: {'; '.join(problems)}"
    return Control(experiment, own, found, note, tuple(broken))


def at_equal_time(control: Control, table: Sequence[Record], times: Times) -> Alternative:
    """A table beside what a control gives in as much time.

    The two experiments' times were taken apart, so each is a ratio to its own k=1, which must be
    the same computation.
    """
    if control.own is None or control.note or not times.pairs:
        return Alternative(control.experiment)
    theirs = read_times(control.cells, control.own.name)
    if not theirs.pairs:
        return Alternative(control.experiment, note=f"in {control.experiment}, {theirs.sentence}")
    if theirs.floor is None or times.floor is None:
        name = control.experiment if theirs.floor is None else "this experiment"
        reach = (theirs if theirs.floor is None else times).reach
        return Alternative(control.experiment, note=f"in the timing study of {name} {reach}")
    noise = 1 + max(theirs.floor, times.floor)
    return _beside(
        control,
        {name: pair.ratio for name, pair in theirs.pairs.items()},
        [
            (cell, times.pairs[cell.name].ratio)
            for cell in table
            if cell.name in times.pairs and cell.summary.strategy.reuses
        ],
        noise,
    )


def at_equal_saving(
    control: Control, table: Sequence[Record], baseline: Record | None
) -> Alternative:
    """A table beside what a control gives for as few layer calls, each by its own k=1's."""
    if control.own is None or control.note or baseline is None:
        return Alternative(control.experiment)

    def calls(cells: Sequence[Record], by: Record) -> list[tuple[Record, Estimate]]:
        ratios = [(cell, made_by(cell, by).layer_calls) for cell in cells]
        return [(cell, Estimate(one, one, one)) for cell, one in ratios if one is not None]

    theirs = {cell.name: cost for cell, cost in calls(control.cells, control.own)}
    others = [cell for cell in table if not same_computation(cell, baseline)]
    return _beside(control, theirs, calls(others, baseline), noise=1.0)


def _beside(
    control: Control,
    costs: dict[str, Estimate],
    table: Sequence[tuple[Record, Estimate]],
    noise: float,
) -> Alternative:
    """Each config of a table against the cells of a control, whose ``costs`` go by their names.

    A ratio of two costs of ``noise`` may be noise alone.
    """
    own = control.own
    assert own is not None  # noqa: S101 - whoever calls has asked
    others = [c for c in control.cells if c.name in costs and not same_computation(c, own)]
    curve = [(Estimate(1, 1, 1), own)] + [(costs[c.name], c) for c in others]
    cells = tuple(
        ControlCell(cell.name, cost, compare(own, cell).difference)
        for cost, cell in sorted(curve, key=lambda pair: pair[0].value)
    )
    against = []
    for cell, mine in table:
        cheap = [one for cost, one in curve if not _costs_more(cost, mine, noise)]
        rival = max(cheap, key=lambda one: one.summary.headline.value, default=None)
        difference = None if rival is None else compare(rival, cell).difference
        against.append(AtEqualCost(cell.name, None if rival is None else rival.name, difference))
    return Alternative(control.experiment, cells, tuple(against))


def _costs_more(cost: Estimate, other: Estimate, noise: float) -> bool:
    """Whether it is shown to be the larger: off the other's interval, beyond the noise."""
    return cost.low > other.high and cost.value > noise * other.value


def _decodes_alike(cell: Record, baseline: Record) -> bool:
    """Whether a cell of another experiment is the baseline's computation."""
    decoding = (one.summary.fingerprint.fields.get("decoding") for one in (cell, baseline))
    return not cell.summary.strategy.reuses and len(set(decoding)) == 1

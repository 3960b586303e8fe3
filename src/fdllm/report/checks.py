"""What a grid's records say about each other: may they share a table, are the twins equal.

DESIGN section 6: the cells that reuse nothing are one computation done several times. Their outputs
must agree sample by sample, and the spread of their speeds is the noise of the machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.report.agreement import agree, tolerance_of
from fdllm.report.records import Record
from fdllm.reuse import subset_overlaps

# These differ between the cells of a grid by design.
_BY_CELL = frozenset({"strategy", "decoding"})


@dataclass(frozen=True)
class Twins:
    """The A/A check of a grid.

    Attributes:
        names: the cells that reuse nothing, under equal settings.
        num_samples: documents compared.
        differing: documents whose outputs differ, at most three, as ``task 7: k1_first, k1_last``.
        num_differing: how many there are.
        speeds: tokens/s (or scored tokens/s) of each.
        tolerance: by how much log-likelihoods may differ, in nats; 0 where text is generated.
    """

    names: tuple[str, ...]
    num_samples: int
    differing: tuple[str, ...]
    num_differing: int
    speeds: tuple[float, ...]
    tolerance: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether every sample agrees."""
        return self.num_differing == 0

    @property
    def noise(self) -> float:
        """Spread of the speeds: fastest by slowest, less one. No speed-up below it is claimed."""
        return max(self.speeds) / min(self.speeds) - 1 if min(self.speeds) > 0 else 0.0


def mixtures(records: Sequence[Record]) -> list[str]:
    """Why these records must not stand in one table; empty where they may."""
    seen: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        summary = record.summary
        facts: dict[str, str | None] = {
            f"fingerprint field '{name}'": value
            for name, value in summary.fingerprint.fields.items()
            if name not in _BY_CELL and value is not None
        }
        facts["documents"] = summary.dataset
        facts["estimator"] = summary.estimator
        facts["machine"] = " then ".join(summary.machines)
        for name, value in facts.items():
            seen[name][str(value)].append(record.name)
    problems = []
    for name, values in seen.items():
        if len(values) > 1:
            parts = [f"{', '.join(cells)}: {_short(value)}" for value, cells in values.items()]
            problems.append(f"{name} differs ({'; '.join(parts)})")
    several = [r.name for r in records if len(r.summary.machines) > 1]
    if several and len(seen["machine"]) == 1:
        problems.append(f"{', '.join(several)} were computed on several machines")
    return problems


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:19]}…"  # noqa: PLR2004 - a line's worth


def twins(records: Sequence[Record]) -> list[Twins]:
    """The A/A checks of one task: cells that reuse nothing, grouped by equal decoding."""
    groups: defaultdict[str | None, list[Record]] = defaultdict(list)
    for record in records:
        if not record.summary.strategy.reuses:
            groups[record.summary.fingerprint.fields["decoding"]].append(record)
    return [_compare(group) for group in groups.values() if len(group) > 1]


def _compare(group: Sequence[Record]) -> Twins:
    first = group[0]
    tolerance = tolerance_of(record.summary for record in group)
    differing = []
    for key, one in first.by_key.items():
        others = [r.name for r in group[1:] if not agree(one, r.by_key.get(key), tolerance)]
        if others:
            differing.append(f"{key[0]} row {key[1]}: {first.name} against {', '.join(others)}")
    return Twins(
        names=tuple(record.name for record in group),
        num_samples=len(first.by_key),
        differing=tuple(differing[:3]),
        num_differing=len(differing),
        speeds=tuple(record.summary.speed for record in group),
        tolerance=tolerance,
    )


def identical(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Groups of cells that reuse differently and still agree in every output.

    Cells that reuse nothing stand in a group only beside one that reuses: then the reuse may never
    have reached the task, which is what nine identical cells once meant.
    """
    groups: list[list[Record]] = []
    for record in records:
        for group in groups:
            if _agree(group[0], record):
                group.append(record)
                break
        else:
            groups.append([record])
    return [
        tuple(record.name for record in group)
        for group in groups
        if len(group) > 1 and any(record.summary.strategy.reuses for record in group)
    ]


def _agree(one: Record, other: Record) -> bool:
    tolerance = tolerance_of((one.summary, other.summary))
    return one.by_key.keys() == other.by_key.keys() and all(
        agree(sample, other.by_key[key], tolerance) for key, sample in one.by_key.items()
    )


def warnings(records: Sequence[Record]) -> list[str]:
    """Checks that a record of a few rows did not pass, each with its cell."""
    return [f"{record.name}: {text}" for record in records for text in record.summary.warnings]


def speed_ratios(records: Sequence[Record]) -> dict[str, float]:
    """Speed of each cell by the mean speed of the cells that reuse nothing."""
    plain = [r.summary.speed for r in records if not r.summary.strategy.reuses]
    if not plain or not all(plain):
        return {}
    base = sum(plain) / len(plain)
    return {record.name: record.summary.speed / base for record in records}


def overlap_sentence(pairs: Sequence[tuple[str, str, int]], n_layers: int) -> str | None:
    """Says which subsets share layers, if any do."""
    if not pairs:
        return None
    shared = ", ".join(f"{a} and {b} share {n}" for a, b, n in pairs)
    apart = next((s for s in range(n_layers // 3, 0, -1) if not subset_overlaps(n_layers, s)), 1)
    return (
        f"subsets overlap on {n_layers} layers ({shared}); [reuse] subset_size = {apart} in "
        "experiment.toml keeps them apart"
    )

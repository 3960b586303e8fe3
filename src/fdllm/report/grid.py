"""What the records of a grid say about each other before anything is compared.

May they share a table; which of them are one computation done several times, whose outputs must
agree sample by sample; which agree and must not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fdllm.core.subsets import subset_overlaps
from fdllm.record.identity import DECIDED
from fdllm.record.measure import total
from fdllm.report.agreement import agree, stated, tolerance_of
from fdllm.report.records import NotComparableError, Record

# A cell is its strategy and its decoding: these differ between the cells of a grid by design.
_BY_CELL = frozenset({"strategy", "decoding", DECIDED})
# Between grids so does the experiment; the limit decides how many documents there are; task and
# scoring are refused with sentences of their own.
_BETWEEN = _BY_CELL | {"experiment", "limit", "task", "scoring"}

Kind = Literal["twins", "warning", "identical", "twins-differ"]

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class GridFinding:
    """Something about a grid that a reader must know ahead of its figures."""

    # ``twins`` where one computation gave one output, as it must; ``warning`` where a few rows did
    # not pass a check, ``identical`` cells that should differ, ``twins-differ`` where one
    # computation gave several outputs
    kind: Kind
    cells: tuple[str, ...]  # the cells it is about
    text: str  # the sentence

    @property
    def mark(self) -> str:
        """A sign ahead of the sentence."""
        return {"twins": "✓", "twins-differ": "✗"}.get(self.kind, "!")


def choose_baseline(cells: Sequence[Record], named: str | None) -> Record | None:
    """The cell that the others are compared with: the criteria's, else the first without reuse."""
    if named is not None:
        return next((cell for cell in cells if cell.name == named), None)
    return next((cell for cell in cells if not cell.summary.strategy.reuses), None)


def check_grid(cells: Sequence[Record]) -> None:
    """Refuse a table over records that do not belong together.

    Raises:
        NotComparableError: code, versions, model, documents, estimator or machine differ.
    """
    problems = mixtures(cells)
    if problems:
        first = cells[0].summary
        raise NotComparableError(
            f"no table for {first.experiment} / {first.task}: {'; '.join(problems)}. Compute the "
            "cells anew under one state of the code, on one machine: fdllm sweep --force"
        )


def mixtures(records: Sequence[Record], varying: frozenset[str] = frozenset()) -> list[str]:
    """Why these records must not stand in one table; empty where they may.

    Fields of the fingerprint that are ``varying`` may differ, and those of a cell.
    """
    seen: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        summary = record.summary
        facts: dict[str, str | None] = {
            f"fingerprint field '{name}'": value
            for name, value in summary.fingerprint.fields.items()
            if name not in _BY_CELL | varying and value is not None
        }
        if summary.decided is None:  # else fewer; each is compared where two records are
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


def differences(a: Record, b: Record) -> tuple[str, ...]:
    """What else differs between two records, beside the cell: code, versions, model, …."""
    changed = a.summary.fingerprint.differences(b.summary.fingerprint)
    return tuple(text for text in changed if text.split(":")[0] not in _BETWEEN)


def same_computation(a: Record, b: Record) -> bool:
    """Whether two records must agree in every output: an A/A pair.

    Either nothing at all differs, or neither reuses anything and only the name of the subset that
    is not reused differs.
    """
    one, other = a.summary.fingerprint.fields, b.summary.fingerprint.fields
    plain = not (a.summary.strategy.reuses or b.summary.strategy.reuses)
    differing = {name for name in {*one, *other} if one.get(name) != other.get(name)} - {
        "limit",
        DECIDED,
    }
    return differing <= ({"strategy"} if plain else set())


def _grouped(
    records: Sequence[Record], alike: Callable[[Record, Record], bool]
) -> list[list[Record]]:
    """Records sorted into groups, each alike with the group's first."""
    groups: list[list[Record]] = []
    for record in records:
        of = next((group for group in groups if alike(group[0], record)), None)
        if of is None:
            groups.append([record])
        else:
            of.append(record)
    return groups


@dataclass(frozen=True)
class Twins:
    """The A/A check: cells that are one computation."""

    names: tuple[str, ...]  # the cells
    num_samples: int  # documents compared
    # documents whose outputs differ, as ``task row 7: k1_first against k1_last``
    differing: tuple[str, ...]
    # by how much log-likelihoods may differ, in nats; 0 where text is generated
    tolerance: float = 0.0

    @property
    def finding(self) -> GridFinding:
        """That they agree, or what is wrong, with the first three documents."""
        if not self.differing:
            agree = f"all {self.num_samples} samples{stated(self.tolerance)}"
            return GridFinding("twins", self.names, f"A/A: {' = '.join(self.names)} in {agree}")
        text = (
            f"{', '.join(self.names)} are one computation, yet {len(self.differing)} of "
            f"{self.num_samples} samples differ{stated(self.tolerance)}: "
            f"{'; '.join(self.differing[:3])}"
        )
        return GridFinding("twins-differ", self.names, text)


def twins(records: Sequence[Record]) -> list[Twins]:
    """The A/A checks of one task, over the documents that all of its cells have."""
    found = []
    for group in _grouped(records, same_computation):
        first, *others = group
        tolerance = tolerance_of(record.summary for record in group)
        keys = [key for key in first.by_key if all(key in other.by_key for other in others)]
        odd = {
            key: [o.name for o in others if not agree(first.by_key[key], o.by_key[key], tolerance)]
            for key in keys
        }
        differing = (
            f"{key[0]} row {key[1]}: {first.name} against {', '.join(names)}"
            for key, names in odd.items()
            if names
        )
        if others:
            names = tuple(record.name for record in group)
            found.append(Twins(names, len(keys), tuple(differing), tolerance))
    return found


def identical(records: Sequence[Record]) -> list[tuple[str, ...]]:
    """Groups of cells that reuse differently and still agree in every output.

    Cells that reuse nothing stand in a group only beside one that reuses: then the reuse may never
    have reached the task, which is what nine identical cells once meant. Those that draft stand in
    none: they are meant to agree.
    """
    records = [one for one in records if not total(one.summary.counts, "drafted")]
    return [
        tuple(record.name for record in group)
        for group in _grouped(records, _agree)
        if len(group) > 1 and any(record.summary.strategy.reuses for record in group)
    ]


def _agree(one: Record, other: Record) -> bool:
    tolerance = tolerance_of((one.summary, other.summary))
    return one.by_key.keys() == other.by_key.keys() and all(
        agree(sample, other.by_key[key], tolerance) for key, sample in one.by_key.items()
    )


def checks(records: Sequence[Record]) -> list[GridFinding]:
    """What holds of a grid of one task, and what is suspicious, ahead of its figures."""
    aa = [pair.finding for pair in twins(records)]
    found = [one for one in aa if one.kind == "twins"]
    found += [
        GridFinding("warning", (cell.name,), f"{cell.name}: {text}")
        for cell in records
        for text in cell.summary.warnings
    ]
    by_name = {cell.name: cell for cell in records}
    for group in identical(records):
        cells = [by_name[name].summary for name in group]
        number = _NUMBERS[len(group)] if len(group) < len(_NUMBERS) else str(len(group))
        why = (
            "they are one result, not several"
            if all(cell.strategy.reuses for cell in cells)
            else "cells that reuse agree with cells that do not, so the reuse may never have "
            "reached this task"
        )
        text = (
            f"{number} identical cells ({', '.join(group)}): every output agrees"
            f"{stated(tolerance_of(cells))}, at {100 * cells[0].headline.value:.2f} %; {why}"
        )
        found.append(GridFinding("identical", group, text))
    return found + [one for one in aa if one.kind == "twins-differ"]


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

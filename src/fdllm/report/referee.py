"""Every config of every experiment in one table a task, and in one picture.

Nothing is computed here: each figure is one of the experiment's own report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from markupsafe import Markup

from fdllm.report.alternative import CONTROLS, THRESHOLD
from fdllm.report.bounds import Bound
from fdllm.report.build import Report, Section, TablePage
from fdllm.report.columns import Column, Table
from fdllm.report.compare_text import Comparison
from fdllm.report.figures import CellFigures
from fdllm.report.page_tables import oracle_share
from fdllm.report.scatter import Aim, Point, Scatter, timed_points
from fdllm.report.stats import Estimate
from fdllm.report.times import shown
from fdllm.spec import Spec, read_toml

CLAIMS = "claims.toml"
_SIZES = {"wide": (980.0, 680.0), "narrow": (360.0, 480.0)}
_LOSS = -12.0  # points; what loses more is named and not drawn
_TIME = 1.6  # times k = 1's; what takes longer is named and not drawn


class PublicClaim(Spec):
    """What others say of a rule that an experiment here follows."""

    who: str  # a public repository or a paper
    says: str  # the claim, and on how much it rests
    experiment: str  # whose rows answer it
    rule: str  # what that experiment has of the rule


class PublicClaims(Spec):
    """``experiments/claims.toml``."""

    claim: tuple[PublicClaim, ...] = ()


@dataclass(frozen=True)
class TaskRow:
    """A config on a task, as its experiment's report has it."""

    report: Report
    table: TablePage
    cell: CellFigures
    against: Comparison  # with its k = 1

    @property
    def name(self) -> str:
        """Experiment and config."""
        return f"{self.report.experiment} {self.cell.name}"

    @property
    def at_equal_time(self) -> str:
        """Accuracy beside the best threshold that is as fast; empty where nothing is known."""
        found = self.table.alternative.against
        return next((one.word for one in found if one.config == self.cell.name), "")

    @property
    def bound(self) -> Bound | None:
        """What its saving is worth; None of what repeats its k = 1."""
        rows = self.table.bounds.rows
        return next((one for one in rows if one.config == self.cell.name), None)

    def at_equal_calls(self, control: str) -> str:
        """Accuracy beside the best of a control that makes as few layer calls; or nothing."""
        found = [one for one in self.table.bounds.controls if one.experiment == control]
        words = [one.word for c in found for one in c.against if one.config == self.cell.name]
        return next(iter(words), "")

    @property
    def criteria(self) -> str:
        """Whether its experiment's own criteria are met; empty where it is not judged."""
        key = self.table.task, self.cell.name
        cells = self.report.verdict.cells
        return next((one.outcome for one in cells if (one.task, one.config) == key), "")


@dataclass(frozen=True)
class OneTask:
    """What all experiments say of one task, model and limit."""

    title: str
    tables: Sequence[tuple[Report, TablePage]]
    missing: Sequence[str]  # cells that are not in the table, and why

    @property
    def entries(self) -> list[TaskRow]:
        """Every config but the baselines and what repeats them."""
        return [
            TaskRow(report, table, cell, against)
            for report, table in self.tables
            for cell in table.cells
            if (against := table.against.get(cell.name)) and not against.same_computation
        ]

    @property
    def folder(self) -> str:
        """Name of its task folder."""
        return self.tables[0][1].folder

    @property
    def metric(self) -> str:
        """What is counted."""
        return self.tables[0][1].metric


def by_task(reports: Iterable[Report]) -> list[OneTask]:
    """The sections of some reports, those of one task together."""
    found: dict[tuple[str, int | None], list[tuple[Report, Section]]] = {}
    for report in reports:
        for section in report.sections:
            found.setdefault((section.title, section.limit), []).append((report, section))
    return [
        OneTask(
            title if limit is None else f"{title}, limit {limit}: SMOKE TEST",
            [(report, one.table) for report, one in sections if one.table is not None],
            [
                f"{report.experiment}: {_number(one.missing)}, the first {one.missing[0]}"
                for report, one in sections
                if one.missing
            ],
        )
        for (title, limit), sections in found.items()
    ]


def read_claims(folder: Path) -> PublicClaims:
    """What others claim; nothing where there is no such file.

    Raises:
        UsageError: it has another form.
    """
    path = folder / CLAIMS
    return PublicClaims.read(read_toml(path), str(path)) if path.exists() else PublicClaims()


def verdicts_table(reports: Sequence[Report]) -> Table:
    """Each experiment's verdict, and why."""
    return Table(
        [
            Column("Experiment", [one.experiment for one in reports], is_words=True),
            Column("Verdict", [one.verdict.word for one in reports], is_words=True),
            Column("Why", [one.verdict.sentence for one in reports], is_words=True),
            Column("Title", [one.title for one in reports], is_words=True),
        ],
        "Each experiment by the criteria that were locked before its first row.",
    )


def findings(task: OneTask) -> Iterator[str]:
    """What the table comes to."""
    plain = {
        f"{100 * base.accuracy:.1f} % of {base.num_samples}"
        for _, table in task.tables
        if (base := table.base) is not None
    }
    number = len(task.tables)
    yield f"k = 1, in {number} experiments, has {' or '.join(sorted(plain))} documents right."
    held = [
        one
        for one in task.entries
        if one.against.verdict == "same-or-better" and not one.cell.decided
    ]
    faster = [one.name for one in held if one.against.claim == "faster"]
    yield (
        f"Of {len(task.entries)} other configs {len(held)} hold accuracy; of these, shown to be "
        f"faster than k = 1: {', '.join(faster) or 'none'}."
    )
    if counts := _counts(one.at_equal_time for one in task.entries):
        yield f"Beside the best lowered threshold that is as fast ({THRESHOLD}): {counts}."
    for control, words in CONTROLS.items():
        if counts := _counts(one.at_equal_calls(control) for one in task.entries):
            yield f"Beside the best of {words} that makes as few layer calls: {counts}."
    if saved := {one.saved for _, table in task.tables if (one := table.bounds.oracle)}:
        shares = " or ".join(f"{100 * one:.1f} %" for one in sorted(saved))
        yield f"With foresight, and every text as it is, {shares} of the layer calls can be saved."
    floors = [one.times.floor for _, one in task.tables if one.times.floor is not None]
    if floors:
        yield f"Noise floors of the timing studies: {_range(floors, 100, '.1f')} %."


def _counts(words: Iterable[str]) -> str:
    return ", ".join(f"{number} {word}" for word, number in Counter(words).most_common() if word)


def rows_table(entries: Sequence[TaskRow]) -> Table:
    """A row a config."""

    def column(name: str, text: Callable[[TaskRow], str], *, words: bool = False) -> Column:
        return Column(name, [text(one) for one in entries], is_words=words)

    def share(one: TaskRow) -> str:
        return "" if one.bound is None else oracle_share(one.bound)

    def ratio(name: str) -> Callable[[TaskRow], str]:
        def text(one: TaskRow) -> str:
            value: float | None = getattr(one.against.made, name)
            return "" if value is None else f"{value:.2f}"

        return text

    return Table(
        [
            column("Config", lambda one: one.name, words=True),
            column("Right", lambda one: f"{100 * one.cell.accuracy:.1f} %"),
            column("Change [95 %]", lambda one: one.against.difference.shown(100, "+.1f")),
            column("Time by k=1 [95 %]", _time),
            column("Claim", lambda one: one.against.claim),
            column("Layer calls by k=1", ratio("layer_calls")),
            column("FLOPs by k=1", ratio("flops")),
            column("Bytes by k=1", ratio("bytes")),
            column("Answers changed", lambda one: str(one.bound.changed) if one.bound else ""),
            *([column("Of the oracle's saving", share)] if any(map(share, entries)) else []),
            *(
                column(f"Beside {words}, as few calls", partial(TaskRow.at_equal_calls, control=c))
                for c, words in CONTROLS.items()
                if any(one.at_equal_calls(c) for one in entries)
            ),
            column("Beside a threshold, as fast", lambda one: one.at_equal_time),
            column("Criteria", lambda one: one.criteria),
        ],
        "Change: accuracy less k = 1's, in points, on the same documents. Time: each experiment's "
        "own timing study, by its own k = 1. By k=1: made by the config over made by k = 1. "
        "Beside: accuracy against the best of a control that makes no more layer calls, or is not "
        "shown to be slower. The oracle's saving leaves every text as it is; in brackets where a "
        "config changes answers. Criteria: the experiment's own. What only repeats k = 1 is left "
        "out.",
    )


def _time(one: TaskRow) -> str:
    speed = one.against.speed
    return "" if speed is None else shown(speed.ratio)


def claims_table(claims: Sequence[PublicClaim], tasks: Sequence[OneTask]) -> Table:
    """Each claim beside what the same rule did here."""

    def answer(claim: PublicClaim) -> str:
        said = [
            f"{task.title}: {_spread(rows)}"
            for task in tasks
            if (rows := [one for one in task.entries if one.report.experiment == claim.experiment])
        ]
        return "; ".join(said) or "not run yet"

    return Table(
        [
            Column("Who", [one.who for one in claims], is_words=True),
            Column("Says", [one.says for one in claims], is_words=True),
            Column("Rule here", [f"{one.experiment}: {one.rule}" for one in claims], is_words=True),
            Column("What it does here", [answer(one) for one in claims], is_words=True),
        ],
        "Their figures are their own, on their models and tasks; ours are of the same rule, here.",
    )


def _spread(rows: Sequence[TaskRow]) -> str:
    """Some configs in one line, from the least to the most."""
    changes = _range([one.against.difference.value for one in rows], 100, "+.1f")
    parts = [_number(rows), f"change {changes} points"]
    flops = [one.against.made.flops for one in rows if one.against.made.flops is not None]
    times = [one.against.speed.ratio.value for one in rows if one.against.speed is not None]
    parts += [f"FLOPs by k=1 {_range(flops)}"] if flops else []
    parts += [f"time by k=1 {_range(times)}"] if times else []
    return ", ".join(parts)


def _number(configs: Sequence[object]) -> str:
    return f"{len(configs)} config{'s' if len(configs) != 1 else ''}"


def _range(values: Sequence[float], scale: float = 1.0, form: str = ".2f") -> str:
    ends = dict.fromkeys(f"{scale * end:{form}}" for end in (min(values), max(values)))
    return " to ".join(ends)


# --- the picture ----------------------------------------------------------------------------------


def draw(task: OneTask) -> dict[str, Markup] | None:
    """The picture in two widths; None where no time was measured."""
    curve = next((one.alternative.cells for _, one in task.tables if one.alternative.cells), ())
    points, _ = _points(task)
    if not points:
        return None
    floors = [one.times.floor for _, one in task.tables if one.times.floor is not None]
    drawn = Scatter(
        "",
        f"Accuracy change against time, {task.title}",
        [Point("k = 1", Estimate(1, 1, 1), Estimate(0, 0, 0), "circle", "s0"), *points],
        [Point.of(one) for one in curve],
        max(floors, default=None),
        Aim(None, None),
        "k = 1",
        "; ".join(point.words for point in points),
        0,
        0,
    )
    return {
        name: replace(
            drawn, key=f"referee-{task.folder}-{name}", width=width, height=height
        ).render()
        for name, (width, height) in _SIZES.items()
    }


def _points(task: OneTask) -> tuple[list[Point], dict[str, list[str]]]:
    """Configs that are drawn, and by experiment those that lie too far away."""
    drawn: list[Point] = []
    far: dict[str, list[str]] = {}
    for report, table in task.tables:
        if report.experiment == THRESHOLD:  # they are the curve
            continue
        for point in timed_points(table):
            if point.is_minor or point.name == table.baseline:
                continue
            near = point.y.value >= _LOSS and point.x.value <= _TIME
            if near:
                drawn.append(replace(point, name=f"{report.experiment[:2]} {point.name}"))
            else:
                far.setdefault(report.experiment, []).append(point.name)
    return drawn, far


def caption(task: OneTask) -> str:
    """How to read the picture, and what it leaves out."""
    _, far = _points(task)
    named = "; ".join(f"{name} {', '.join(configs)}" for name, configs in far.items())
    left_out = f" Too far away to be drawn: {named}." if far else ""
    return (
        "Left is faster, up is more accurate; lines are 95 % intervals, the band is the largest "
        "noise floor. Crosses, joined: the threshold lowered instead, the line to beat. Circles "
        "are k = 1, squares k = 2, triangles k = 3, diamonds others; the number is the "
        f"experiment's.{left_out}"
    )

"""``fdllm calibrate``: the setting of a strategy that saves most at a loss that is promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from fdllm.cli.options import flag, number, positive
from fdllm.cli.output import console, say_json
from fdllm.cli.recorded import Recorded
from fdllm.errors import UsageError, did_you_mean
from fdllm.experiment import load_experiment
from fdllm.report.columns import Column, Table
from fdllm.report.grid import choose_baseline
from fdllm.report.records import Record, load_record

if TYPE_CHECKING:  # scipy and statsmodels come in where something is computed
    from fdllm.calibrate.calibration import By, Calibration, Candidate, Loss

EPILOG = """\
Nothing is run: the answers are those of records that a sweep left. Four fifths
of the documents, drawn at random, choose; the others show how the promise did.
docs/calibration.md says what is promised, and of what.

examples, each with --task tiny_arithmetic --model tiny:
  fdllm calibrate --strategy 05_threshold --loss 0.02
  fdllm calibrate --strategy 01_adaptive_skip --confidence 0.95 --json
  fdllm calibrate --strategy 12_verified --by bytes
"""


@dataclass(frozen=True, kw_only=True)
class CalibrateCommand(Recorded):
    """Choose a strategy's setting that loses at most so much, with so much confidence."""

    epilog = EPILOG

    strategy: str = flag("experiment whose records choose", required=True, metavar="EXPERIMENT")
    config: tuple[str, ...] | None = flag(
        "candidates, repeatable (every config that is not the baseline)", metavar="C"
    )
    task: str = flag("task of the promise", required=True, metavar="T")
    loss: float = flag(
        "share of documents that may be lost against the baseline (0.01: one point)",
        default=0.01,
        type=number(float, "a share, 0 or more and below 1", 0, below=1),
        metavar="SHARE",
    )
    confidence: float = flag(
        "with which no more is lost (0.95)",
        default=0.95,
        type=number(float, "a probability, 0.5 or more and at most 0.999", 0.5, below=0.9990001),
        metavar="P",
    )
    documents: int | None = flag(
        "documents that choose (four fifths; the others test the promise)",
        type=positive,
        metavar="N",
    )
    by: Literal["calls", "bytes", "time"] = flag(
        "what is to be saved: layer calls, the bytes that a device bound by memory moves, or the "
        "time of the timing study (calls)",
        default="calls",
        choices=("calls", "bytes", "time"),
    )
    seed: int = flag(
        "of the draw (0); settle it before you look, as every other draw is another chance to err",
        default=0,
        type=number(int, "a whole number, 0 or more", 0),
        metavar="N",
    )
    json: bool = flag("print JSON", default=False)

    def run(self) -> int:
        """Choose, and say it; exit code 0 also where nothing can be promised.

        Raises:
            UsageError: there are no such records, or too few documents.
            NotComparableError: the records do not belong together.
        """
        from fdllm.calibrate.calibration import calibrate  # noqa: PLC0415 - as above

        criteria = load_experiment(self.strategy).settings.criteria
        cells = self._cells()
        baseline = choose_baseline(cells, None if criteria is None else criteria.baseline)
        if baseline is None:
            raise UsageError(
                f"no record of {self.strategy} / {self.task} without reuse, which a loss is "
                f"measured against: fdllm sweep --experiment {self.strategy} --task {self.task}"
            )
        found = calibrate(
            cells,
            baseline,
            self.loss,
            self.confidence,
            configs=self.config or (),
            documents=self.documents,
            by=self.by,
            seed=self.seed,
        )
        if self.json:
            say_json(found.as_dict())
        else:
            _print(found)
        return 0

    def _cells(self) -> list[Record]:
        """The strategy's records of the task."""
        found = self.fitting(self.strategy, self.task)
        if not found:
            raise UsageError(self.nothing(self.strategy, self.task, ""))
        if len(found) > 1:
            first = [load_record(next(iter(one.values()))) for one in found]
            models = ", ".join(sorted(one.summary.model for one in first))
            raise UsageError(f"several models have records of {self.task}: name one of {models}")
        for name in self.config or ():
            if name not in found[0]:
                near = did_you_mean(name, found[0])
                raise UsageError(
                    f"no record of config '{name}'{near}; there are {', '.join(found[0])}"
                )
        return [load_record(folder) for folder in found[0].values()]


def _print(found: Calibration) -> None:
    out, parts = console(120), found.parts
    out.print(Text(f"{found.task}: {found.strategy} against {found.baseline}", "bold"))
    style = "yellow" if found.chosen is None else "green"
    out.print(Text(found.sentence, style=style))
    if found.candidates:
        out.print(_table(found.candidates, found.by).terminal())
        out.print(Text("!: these documents show, at 5 %, that more is lost than is allowed."))
    pilot = f" ({len(parts.pilot)} order the candidates, {len(parts.test)} test them)"
    out.print(
        f"{len(parts.calibrating)} documents choose{pilot if len(parts.pilot) else ''}, "
        f"{len(parts.held_out)} are held out; seed {found.seed}."
    )
    out.print(Text(f"{found.times[:1].upper()}{found.times[1:]}."))
    for one in found.left_out:
        out.print(Text(f"no candidate: {one}"))


def _table(candidates: Sequence[Candidate], by: By) -> Table:
    from fdllm.report.times import shown  # noqa: PLC0415 - as above

    def flips(loss: Loss | None) -> str:
        return "" if loss is None else f"{loss.losses} / {loss.gains}"

    def lost(loss: Loss | None) -> str:
        mark = " !" if loss is not None and loss.contradicts else ""
        return "" if loss is None else loss.lost.shown(100, "+.1f") + mark

    return Table(
        [
            Column("config", [one.config for one in candidates], is_words=True),
            Column("bytes saved", [f"{100 * one.bytes_saved:+.1f} %" for one in candidates])
            if by == "bytes"
            else Column("calls saved", [f"{100 * one.saved:+.1f} %" for one in candidates]),
            Column("time", ["" if one.time is None else shown(one.time) for one in candidates]),
            Column("lost / won", [flips(one.seen) for one in candidates]),
            Column("points lost [95 %]", [lost(one.seen) for one in candidates]),
            Column(
                "p", ["" if one.p_value is None else f"{one.p_value:.4f}" for one in candidates]
            ),
            Column("", [one.standing for one in candidates], is_words=True),
            Column("documents needed", [_needs(one) for one in candidates]),
            Column("held out [95 %]", [lost(one.held_out) for one in candidates]),
        ]
    )


def _needs(one: Candidate) -> str:
    if one.is_promised:
        return ""
    return "no number" if one.needs is None else f"{one.needs}"

"""``fdllm reproduce``: each figure that the experiments' page states, computed anew."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from fdllm.cli.options import Command, Selection, flag
from fdllm.cli.output import complain, console, say, say_json
from fdllm.cli.request import read_request
from fdllm.cli.sweep import SweepCommand
from fdllm.errors import UsageError
from fdllm.experiment import load_experiment
from fdllm.record.paths import find_root

if TYPE_CHECKING:  # scipy and statsmodels come in where a report is made
    from fdllm.reproduce.found import TaskFigures
    from fdllm.reproduce.reproduction import CheckedFigure

_EPILOG = """\
exit code: 0  every figure holds
           1  one differs, or nothing says how to compute one that is stated
           2  none differs, one cannot be told: its record is absent or stale

examples:
  fdllm reproduce --experiment 00_baseline   compute what it lacks, and compare
  fdllm reproduce --from-records --exact     does the page say what they have?
  fdllm reproduce --from-records --appendix usenix > ARTIFACT.md
"""
_DIFFERS, _CANNOT_TELL = 1, 2
_STYLES = {"holds": "green", "differs": "red", "cannot tell": "yellow"}


@dataclass(frozen=True, kw_only=True)
class ReproduceCommand(Command):
    """Compute every figure of experiments/README.md anew, and say which hold."""

    epilog = _EPILOG

    experiment: str | None = flag("only figures of this one (all)", metavar="NAME")
    from_records: bool = flag("compute nothing: what the records here have", default=False)
    exact: bool = flag(
        "no tolerance but rounding, for the records that the page was written from", default=False
    )
    appendix: str | None = flag(
        "print the artifact appendix in the form of ACM or USENIX, as Markdown",
        choices=("acm", "usenix"),
    )
    json: bool = flag("print JSON", default=False)
    results: Path | None = flag("folder of the records (results/)", metavar="DIR")

    def run(self) -> int:
        """Compute, compare, print.

        Raises:
            UsageError: the experiment is unknown, or no figure is of it.
            FdllmError: a run failed, or a record is broken.
        """
        from fdllm.reproduce.reproduction import chosen, places, reproduce  # noqa: PLC0415 - as above
        from fdllm.reproduce.stated import absent, read_page, read_statements, uncovered  # noqa: PLC0415 - as above

        root = find_root()
        if self.experiment is not None:
            load_experiment(self.experiment, root)
        statements, place = read_statements(root)
        page = read_page(place)
        pairs = chosen(statements, self.experiment)
        if not pairs:
            raise UsageError(f"no figure of {place} is of {self.experiment}")
        if not self.from_records:
            for experiment, task in places(pairs):
                _compute(self._selection(experiment, task, statements.model))

        @cache
        def figures(experiment: str, task: str) -> TaskFigures:
            return _figures(self._selection(experiment, task, statements.model))

        claims = reproduce(statements, pairs, figures, exact=self.exact)
        lacking = [] if self.experiment else uncovered(page, statements)
        gone = absent(page, statements)
        if self.json:
            found = {"unclaimed": lacking, "absent": gone}
            say_json({"claims": [one.as_dict() for one in claims], **found})
        elif self.appendix is not None:
            from fdllm.reproduce.appendix import appendix  # noqa: PLC0415 - as above

            say(appendix(self.appendix, claims, places(pairs), figures, statements.model))
        else:
            _print(claims)
        unsaid = [f"{place.name} does not say: {one}" for one in gone]
        for told in (*(f"no claim: {one}" for one in lacking), *unsaid):
            complain(told)
        verdicts = {one.verdict for one in claims}
        if "differs" in verdicts or lacking or gone:
            return _DIFFERS
        return _CANNOT_TELL if "cannot tell" in verdicts else 0

    def _selection(self, experiment: str, task: str, model: str) -> SweepCommand:
        return SweepCommand(experiment=experiment, task=(task,), model=model, results=self.results)


def _compute(sweep: SweepCommand) -> None:
    """Sweep what is not done; its words are no part of the answer."""
    with redirect_stdout(sys.stderr):
        sweep.run()


def _figures(selection: Selection) -> TaskFigures:
    from fdllm.reproduce.found import TaskFigures  # noqa: PLC0415 - as above

    request = read_request(selection)
    [task] = request.sweep.tasks
    planner = request.planner
    cells = [planner.shown(one) for one in request.states()]
    return TaskFigures(selection.experiment, task, cells, request.criteria, planner.layout)


def _print(claims: Sequence[CheckedFigure]) -> None:
    """Each sentence with its figures below: as the page has them, then what was found."""
    out = console(140)
    for sentence, figures in groupby(claims, key=attrgetter("claim")):
        out.print(Text(sentence, "bold"))
        for one in figures:
            found = f", found {one.words}" if one.words not in ("", one.figure) else ""
            verdict = (f"  {one.verdict:<11}", _STYLES[one.verdict])
            out.print(Text.assemble(verdict, f"  {one.of}: {one.figure}{found}"))
    for why in dict.fromkeys(one.why for one in claims if one.why):
        out.print(Text(why))
    told = [str(one.verdict) for one in claims]
    say(f"{len(told)} figures: " + ", ".join(f"{told.count(v)} {v}" for v in _STYLES))

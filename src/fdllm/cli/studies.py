"""Takes timing studies for the commands, and says what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from fdllm.cli.output import complain, console, say
from fdllm.cli.request import SweepRequest
from fdllm.cluster.exit_reason import TERMINATED
from fdllm.cluster.signals import Terminated
from fdllm.errors import FdllmError
from fdllm.plan import ENDED, RECORDED, CellState, Planner
from fdllm.record.journal import write_failure
from fdllm.record.lock import LockedError, locked
from fdllm.record.study import Study
from fdllm.report.columns import Fitted
from fdllm.runs import ModelChoice
from fdllm.timing.wanted import (
    WantedStudy,
    is_due,
    keep_study,
    study_paths,
    study_state,
    want_studies,
)

if TYPE_CHECKING:  # scipy and statsmodels come in where a study is judged
    from fdllm.evaluate.adapter import LoadedModel
    from fdllm.report.times import TimedPair

_TOLD = {  # of a study, as it is kept
    *("experiment", "task", "limit", "baseline", "repeats", "seconds", "device", "dtype"),
    *("threads", "conditions", "warnings"),
}
Load = Callable[[ModelChoice], "LoadedModel"]


def take(planner: Planner, wanted: WantedStudy, load: Load, log: str | None = None) -> Study:
    """Take a study and keep it; why that did not work is kept for :func:`study_state`.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; nothing was kept, which is said.
        FdllmError: it cannot be taken, somebody else takes it, or an answer is not the record's.
    """
    from fdllm.timing.take_study import take_study  # noqa: PLC0415 - torch, the harness

    paths, out = study_paths(planner, wanted), console(stderr=True)
    told = wanted.baseline.cell.name
    complain(
        f"{wanted}: {len(wanted.runs)} configs in turn, {wanted.repeats} times a document; minutes"
        + (f". Nothing repeats {told} in this grid, so it is timed twice" if wanted.again else "")
    )
    try:
        with (
            locked(paths),
            Progress(console=out, transient=True, disable=not out.is_terminal) as bars,
        ):
            paths.failed.unlink(missing_ok=True)
            bar = bars.add_task("documents", total=None)
            model = load(wanted.baseline.model)
            planner.forget_model(wanted.baseline.model)  # a Hub id's commit is known now
            study = take_study(
                planner,
                model,
                wanted,
                watch=lambda done, total: bars.update(bar, completed=done, total=total),
            )
            aside = keep_study(planner, wanted, study)
    except LockedError as error:
        raise FdllmError(f"{wanted} is being taken by {error}; wait for it") from None
    except KeyboardInterrupt as error:
        complain(f"{wanted}: interrupted, and nothing was kept: a study is whole or none")
        if isinstance(error, Terminated):
            write_failure(paths, TERMINATED, log)
        raise
    except FdllmError as error:
        write_failure(paths, str(error), log)
        raise
    if aside is not None:
        complain(f"note: the study that stood was moved to {aside}")
    return study


def of_sweep(request: SweepRequest, number: int | None) -> list[WantedStudy]:
    """The studies at the end of a sweep: of its configs and of those that have records already.

    ``number`` is that of documents, of each; None is the default, 0 is no study.
    """
    if number == 0:
        return []
    planner, sweep = request.planner, request.sweep
    if sweep.configs:
        whole = planner.runs(sweep.model_copy(update={"configs": ()}))
        done = [run.cell.name for run in whole if planner.state(run).state in RECORDED]
        sweep = sweep.model_copy(update={"configs": tuple(dict.fromkeys([*sweep.configs, *done]))})
    return want_studies(planner, sweep, number)


def take_missing(
    request: SweepRequest, wanted: Sequence[WantedStudy], load: Load, *, quiet: bool
) -> list[CellState]:
    """Take those that do not stand yet, of tasks whose cells are done; all of their states."""
    planner = request.planner
    open_tasks = {cell.run.task for cell in request.states() if cell.state not in ENDED}
    for one in wanted:
        if not is_due(study_state(planner, one)):
            continue
        if one.baseline.task in open_tasks:
            complain(f"{one}: not taken, as not all of the task's cells are done")
            continue
        try:
            study = take(planner, one, load)
        except FdllmError as error:
            complain(f"{one}: {error}")
        else:
            if not quiet:
                print_study(study)
    return [study_state(planner, one) for one in wanted]


def as_dict(studies: Sequence[Study]) -> dict[str, Any]:
    """JSON form: pairs of all studies, the largest floor, the fewest documents."""
    from fdllm.report.times import judge_pairs  # noqa: PLC0415 - as above

    judged = [(study, judge_pairs(study)) for study in studies]
    floors = [found.floor for _, found in judged if found.floor is not None]
    return {
        "version": 1,
        "pairs": [pair.as_dict(study.task) for study, found in judged for pair in found.pairs],
        "floor": max(floors, default=None),
        "docs": min(len(study.documents) for study in studies),
        "repeats": min(study.repeats for study in studies),
        "studies": [
            study.model_dump(mode="json", include=_TOLD)
            | {
                "floor": found.floor,
                "docs": len(study.documents),
                "agrees": {
                    name: None if one.agrees is None else one.agrees.model_dump()
                    for name, one in study.configs.items()
                },
            }
            for study, found in judged
        ],
    }


def print_study(study: Study) -> None:
    """What a study found: twins first, then how much noise there was, and what may be claimed."""
    from fdllm.report.times import (  # noqa: PLC0415 - as above
        judge_pairs,
        noise_words,
        shown,
    )

    found = judge_pairs(study)
    where = study.device if study.threads is None else f"{study.device}, {study.threads} threads"
    say(f"{study.experiment} / {study.task}, times on {where}, {study.dtype}")
    say(f"{len(study.documents)} documents, {study.repeats} times each, {study.seconds:.0f} s")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("config", no_wrap=True)
    table.add_column(Text(f"time by {study.baseline}'s [95 % interval]"), justify="right")
    table.add_column("claim")
    for pair in sorted(found.pairs, key=lambda pair: not pair.twins):
        table.add_row(pair.b, Text(shown(pair.ratio)), _claim(pair))
    console(at_least=80).print(Fitted(table))
    say(noise_words(found))
    agreed = [one.agrees for one in study.configs.values() if one.agrees is not None]
    compared, equal = sum(one.compared for one in agreed), sum(one.equal for one in agreed)
    say(
        f"answers: {equal} of {compared} equal those of the records"
        if compared
        else "answers: there is no record to compare them with"
    )
    for warning in sorted({*study.warnings} - {noise_words(found)}):
        complain(f"warning: {warning}")


def _claim(pair: TimedPair) -> str:
    return "same computation" if pair.twins else pair.claim.replace("none", "-")

"""Takes timing studies for the commands, and says what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fdllm.cli.output import complain, console, say
from fdllm.plan import Planner
from fdllm.record.study import Study
from fdllm.report.speed import TimedPair, judge_pairs, noise_words
from fdllm.report.times import shown
from fdllm.runs import ModelChoice
from fdllm.timing.wanted import WantedStudy

if TYPE_CHECKING:
    from fdllm.evaluate.adapter import LoadedModel

Load = Callable[[ModelChoice], "LoadedModel"]


def take(planner: Planner, wanted: WantedStudy, load: Load) -> Study:
    """Take a study and keep it.

    Raises:
        KeyboardInterrupt: Ctrl-C; nothing was kept, which is said.
        FdllmError: it cannot be taken, or an answer is not the record's.
    """
    from fdllm.timing.take_study import keep_study, take_study  # noqa: PLC0415 - torch, the harness

    out = Console(stderr=True)
    num = len(wanted.runs)
    complain(f"{wanted}: {num} configs in turn, {wanted.repeats} times a document; minutes")
    if wanted.again is not None:
        told = wanted.baseline.cell.name
        complain(f"note: nothing repeats {told} in this grid, so it is timed twice")
    model = load(wanted.baseline.model)
    planner.forget_model(wanted.baseline.model)  # a Hub id's commit is known now
    try:
        with Progress(console=out, transient=True, disable=not out.is_terminal) as bars:
            bar = bars.add_task("documents", total=None)
            study = take_study(
                planner,
                model,
                wanted,
                watch=lambda done, total: bars.update(bar, completed=done, total=total),
            )
    except KeyboardInterrupt:
        complain(f"{wanted}: interrupted, and nothing was kept: a study is whole or none")
        raise
    keep_study(planner, wanted, study)
    return study


def as_dict(studies: Sequence[Study]) -> dict[str, Any]:
    """JSON form: pairs of all studies, the largest floor, the fewest documents."""
    judged = [(study, judge_pairs(study)) for study in studies]
    floors = [found.floor for _, found in judged if found.floor is not None]
    return {
        "version": 1,
        "pairs": [pair.as_dict(study.task) for study, found in judged for pair in found.pairs],
        "floor": max(floors, default=None),
        "docs": min(len(study.documents) for study in studies),
        "repeats": min(study.repeats for study in studies),
        "studies": [
            {
                "experiment": study.experiment,
                "task": study.task,
                "limit": study.limit,
                "baseline": study.baseline,
                "floor": found.floor,
                "docs": len(study.documents),
                "repeats": study.repeats,
                "seconds": study.seconds,
                "device": study.device,
                "dtype": study.dtype,
                "threads": study.threads,
                "conditions": [moment.model_dump() for moment in study.conditions],
                "agrees": {
                    name: None if one.agrees is None else one.agrees.model_dump()
                    for name, one in study.configs.items()
                },
                "warnings": list(study.warnings),
            }
            for study, found in judged
        ],
    }


def print_study(study: Study) -> None:
    """What a study found: twins first, then how much noise there was, and what may be claimed."""
    found = judge_pairs(study)
    where = study.device if study.threads is None else f"{study.device}, {study.threads} threads"
    say(
        f"{study.experiment} / {study.task}: {len(study.documents)} documents, {study.repeats} "
        f"times each, {study.seconds:.0f} s on {where}"
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("config", overflow="fold")
    table.add_column(f"time by {study.baseline}'s [95 % interval]", justify="right")
    table.add_column("claim")
    for pair in sorted(found.pairs, key=lambda pair: not pair.twins):
        table.add_row(pair.b, shown(pair.ratio, form=".3f"), _claim(pair))
    console(at_least=80).print(table)
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

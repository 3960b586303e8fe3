"""The timing study beside a task's records: the one source of whatever is said of speed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fdllm.record.paths import TIMING, TaskFolder
from fdllm.record.study import Study, read_study
from fdllm.record.summary import InvalidRecordError
from fdllm.report.records import Record
from fdllm.report.speed import LEAST_DOCUMENTS, TimedPair, judge_pairs
from fdllm.report.stats import Estimate


@dataclass(frozen=True)
class Times:
    """What a task's timing study says, by config; or why nothing is said of speed."""

    pairs: Mapping[str, TimedPair] = field(default_factory=dict)  # each against the baseline
    floor: float | None = None  # what noise alone may look like, a ratio less one
    sentence: str = ""  # how it was measured, or why nothing was

    @property
    def reach(self) -> str:
        """The noise floor in words."""
        if self.floor is None:
            return "no two of its configs are one computation, so the noise is unknown"
        return f"noise floor {100 * self.floor:.1f} %"


def shown(time: Estimate, form: str = ".3f") -> str:
    """A time ratio with its interval; fewer than six documents have none."""
    if time.high > 1e6:  # noqa: PLR2004 - stands for any ratio
        return f"{time.value:{form}} [too few documents]"
    return time.shown(form=form)


def read_times(cells: Sequence[Record], baseline: str | None) -> Times:
    """The study that lies beside records of one task, set against ``baseline``.

    It is used where it was measured with the source and settings of every record that it shares a
    config with, and says why where it was not.
    """
    first = cells[0]
    again = command(first, "timing")
    try:
        study = read_study(first.folder.parent / TIMING / "study.json")
    except InvalidRecordError as error:
        return Times(sentence=f"the timing study cannot be used ({error}): run {again}")
    if study is None:
        return Times(sentence=f"speed was not measured: {again}")
    for cell in cells:
        if another := changed(study, cell):
            return Times(sentence=f"the timing study is of another {another}: run {again}")
    if len(study.documents) < LEAST_DOCUMENTS:
        few = f"the timing study has {len(study.documents)} documents, an interval needs"
        return Times(sentence=f"{few} {LEAST_DOCUMENTS}: run {again}")
    if baseline not in study.configs:
        return Times(sentence=f"the timing study lacks {baseline or 'a baseline'}: run {again}")
    found = judge_pairs(study, baseline)
    return Times({pair.b: pair for pair in found.pairs}, found.floor, _how(study))


def command(record: Record, verb: str) -> str:
    """The command that measures what a record's task and model still lack."""
    place, summary = TaskFolder.parse(record.folder.parent.name), record.summary
    words = ["fdllm", verb, "--task", summary.task, "--experiment", summary.experiment]
    if summary.limit is not None:
        words += ["--limit", str(summary.limit)]
    if place is not None and place.preset is not None:
        words += ["--preset", place.preset]
    return shlex.join([*words, "--model", summary.model])


def changed(study: Study, record: Record) -> str:
    """In what the study's run of a config is another one than the record's; empty where in none."""
    timed = study.configs.get(record.name)
    own = record.summary.fingerprint.fields
    fields = () if timed is None else timed.fingerprint.items()
    names = [name for name, value in fields if own.get(name) not in (value, None)]
    return f"{' and '.join(names)} than the record of {record.name}" if names else ""


def _how(study: Study) -> str:
    """How it was measured, and whether its answers were the records'."""
    told = [one.agrees for one in study.configs.values() if one.agrees is not None]
    compared, equal = sum(one.compared for one in told), sum(one.equal for one in told)
    agrees = f"; {equal} of {compared} answers equal the records'" if compared else ""
    return (
        f"timing study of {len(study.documents)} documents, {study.repeats} rounds of "
        f"{len(study.configs)} configs in random order, on {study.device} ({study.dtype}){agrees}"
    )

"""The timing study beside a task's records: the one source of whatever is said of speed.

Times of runs that were not taken in turn are compared nowhere (docs/running.md section 8): every
claim of a speed in this project is one of :func:`judge_pairs`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.stats.mstats import median_cihs

from fdllm.record.paths import TIMING, TaskFolder
from fdllm.record.study import Study, read_study
from fdllm.record.summary import InvalidRecordError
from fdllm.report.records import Record
from fdllm.report.stats import ALPHA, Estimate, Floats

Claim = Literal["faster", "slower", "none"]

LEAST_DOCUMENTS = 6  # values whose median has a 95 % interval: 2 / 2**6 is less than 5 %


@dataclass(frozen=True)
class TimedPair:
    """One config's time by the baseline's, on the same documents in turn."""

    a: str  # the baseline
    b: str  # the config
    ratio: Estimate  # time of ``b`` by time of ``a``, below 1 where ``b`` is faster
    twins: bool  # whether both are one computation
    claim: Claim

    def as_dict(self, task: str) -> dict[str, Any]:
        """JSON form."""
        return {"task": task, "a": self.a, "b": self.b} | {
            "ratio": self.ratio.value, "low": self.ratio.low, "high": self.ratio.high,
            "claim": self.claim,
        }  # fmt: skip


@dataclass(frozen=True)
class TimedPairs:
    """What a timing study shows. Every claim of a speed in this project is one of these."""

    # what noise alone may look like, as a ratio less one: as far as any twin's interval reaches.
    # None where the study has no twins, and nothing is claimed then.
    floor: float | None
    pairs: tuple[TimedPair, ...]

    def __getitem__(self, config: str) -> TimedPair:
        return next(pair for pair in self.pairs if pair.b == config)


def judge_pairs(study: Study, baseline: str | None = None) -> TimedPairs:
    """Compare every config of a study with one of them.

    Of each document the median over repeats counts, of the documents the median of the logarithms
    of their ratios: one stalled document moves nothing. A claim needs an interval off 1 and a ratio
    beyond the floor, which is that of the study's own baseline and its twins.

    Args:
        study: the times.
        baseline: the config to compare with; None is the study's own.
    """
    times = {
        name: np.log(np.median(np.array(one.seconds), axis=1))
        for name, one in study.configs.items()
    }
    a = study.baseline if baseline is None else baseline
    again = [
        median_of(times[n] - times[study.baseline]) for n in study.twins if n != study.baseline
    ]
    floor = max((abs(end) for one in again for end in (one.low, one.high)), default=None)
    twins = study.twins if a in study.twins else ()
    found = {name: median_of(time - times[a]) for name, time in times.items() if name != a}
    pairs = tuple(
        TimedPair(
            a,
            name,
            Estimate(*(math.exp(min(x, 700.0)) for x in (log.value, log.low, log.high))),
            name in twins,
            claim_of(log, floor),
        )
        for name, log in found.items()
    )
    return TimedPairs(None if floor is None else math.expm1(min(floor, 700.0)), pairs)


def noise_words(found: TimedPairs) -> str:
    """How much noise a study shows, and so what is not claimed."""
    if found.floor is None:
        return "no config repeats the baseline, so the noise is unknown and nothing is claimed"
    if found.floor > 1:
        return "too few documents, or too much noise, to claim anything"
    return (
        f"noise floor {found.floor:.1%}, as far as one computation done twice may lie apart: "
        "nothing below is claimed"
    )


def median_of(values: Floats) -> Estimate:
    """A median with its 95 % interval, by interpolated order statistics.

    Hettmansperger and Sheather (1986): no form of noise is assumed, and the interval holds the
    median in 94-96 % of cases from six values on, where the exact order statistics hold it in up to
    99 %. Fewer than six have no such interval; it is everything then.
    """
    known = len(values) >= LEAST_DOCUMENTS
    low, high = median_cihs(values, ALPHA) if known else (-math.inf, math.inf)
    return Estimate(float(np.median(values)), float(low), float(high))


def claim_of(log: Estimate, floor: float | None) -> Claim:
    """What may be said of a logarithm of a ratio: nothing without a floor, nothing within it."""
    if floor is None or abs(log.value) <= floor or log.low <= 0 <= log.high:
        return "none"
    return "faster" if log.value < 0 else "slower"


# --- beside records -------------------------------------------------------------------------------


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

"""A strategy's setting chosen from its records, with a promise of what it loses at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from fdllm.calibrate.loss_test import p_value
from fdllm.calibrate.promise import Places, Split, Standing, Tested, choose_safe, split
from fdllm.errors import UsageError
from fdllm.record.measure import total
from fdllm.report.compare import Pair, join
from fdllm.report.grid import check_grid, same_computation
from fdllm.report.made import made_on
from fdllm.report.records import Record
from fdllm.report.stats import ALPHA, Estimate, find_difference
from fdllm.report.times import Times, read_times

By = Literal["calls", "bytes", "time"]
CALIBRATING = 0.8
"""Share of the documents that choose, where nothing is said; the others test the promise."""
_WORDS: Mapping[By, str] = {"calls": "layer calls", "bytes": "bytes moved", "time": "time"}
_NOTHING: Mapping[By, str] = {
    "calls": "saves no layer calls",
    "bytes": "moves no fewer bytes",
    "time": "the timing study does not show it to be faster",
}


@dataclass(frozen=True)
class Loss:
    """What a candidate loses against the baseline on some documents."""

    documents: int  # how many
    lost: Estimate  # mean figure of the baseline less the candidate's
    losses: int  # documents on which the candidate's figure is the lower one
    gains: int  # the higher one
    # whether they show, at 5 %, that more is lost than was allowed
    contradicts: bool


@dataclass(frozen=True)
class Candidate:
    """One setting, as the calibrating documents and those held out show it."""

    config: str
    saved: float  # share of the baseline's layer calls that it does not make; below 0 it makes more
    # the same of the bytes moved: what a device bound by memory saves
    bytes_saved: float
    held_out_bytes_saved: float | None  # on the documents held out; None where there are none
    time: Estimate | None  # by the baseline's, of the timing study; None where there is none
    is_faster: bool  # by that study's claim
    seen: Loss  # on the calibrating documents
    # of "so much is lost, or more"; None where nothing can be lost, as it only drafts
    p_value: float | None
    standing: Standing | Literal["lossless"]
    needs: int | None  # calibrating documents that would promise it with 80 % probability
    held_out: Loss | None  # on the others; None where there are none

    @property
    def is_promised(self) -> bool:
        """Whether the promise is made."""
        return self.standing in ("promised", "lossless")

    def gain(self, by: By) -> float:
        """What it saves; 0 where it is not shown to save anything."""
        if by != "time":
            return max(0.0, self.saved if by == "calls" else self.bytes_saved)
        return 1 - self.time.value if self.time is not None and self.is_faster else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        found = asdict(self)
        names = ("config", "saved", "p_value", "standing", "needs", "seen", "held_out")
        time = found["time"] and found["time"] | {"faster": self.is_faster}
        return {n: found[n] for n in names} | {"promised": self.is_promised, "time": time}


@dataclass(frozen=True)
class Calibration:
    """What was asked and what was found."""

    strategy: str  # the experiment
    task: str
    baseline: str  # the config that reuses nothing
    loss: float  # that is allowed
    confidence: float
    by: By  # what is saved
    seed: int  # of the draw
    parts: Split  # the documents' parts
    candidates: tuple[Candidate, ...]  # in the order of what they save
    left_out: tuple[str, ...]  # cells that are no candidates, with the reason
    times: str  # how time was measured, or why nothing was

    @property
    def chosen(self) -> Candidate | None:
        """The promised candidate that saves most; None where none is promised or none saves."""
        kept = [one for one in self.candidates if one.is_promised and one.gain(self.by) > 0]
        return max(kept, key=lambda one: one.gain(self.by), default=None)

    @property
    def nearest(self) -> Candidate | None:
        """The candidate that the fewest further documents would promise."""
        kept = [one for one in self.candidates if one.needs is not None and one.gain(self.by) > 0]
        return min(kept, key=lambda one: one.needs or 0, default=None)

    @property
    def sentence(self) -> str:
        """What is promised, or what it would take, and what the documents held out say of it."""
        promise = f"loses at most {self._points}, with {100 * self.confidence:g} % confidence"
        one = self.chosen
        if one is None:
            return f"NONE: {self._why_none}"
        if one.standing == "lossless":
            sentence = f"{one.config} {_saves(one, self.by)} and loses nothing: it only drafts"
            share, number = one.held_out_bytes_saved, len(self.parts.held_out)
            if self.by != "bytes" or share is None:
                return sentence
            return f"{sentence}; on the {number} documents held out {100 * share:.1f} %"
        sentence = f"{one.config} {_saves(one, self.by)} and {promise}"
        held = one.held_out
        if held is None:
            return f"{sentence}; no document was held out to test it"
        word = "contradict it" if held.contradicts else "do not contradict it"
        return f"{sentence}; the {held.documents} documents held out {word}"

    @property
    def _points(self) -> str:
        number = 100 * self.loss
        return f"{number:g} point{'s' * (number != 1)}"

    @property
    def _why_none(self) -> str:
        promise = f"a loss of at most {self._points}"
        if not any(one.gain(self.by) > 0 for one in self.candidates):
            return f"no candidate is shown to save {_WORDS[self.by]}"
        one = self.nearest
        if one is None:
            return (
                f"no number of documents would promise {promise}: here every candidate that saves "
                f"{_WORDS[self.by]} loses more"
            )
        return (
            f"{len(self.parts.calibrating)} documents cannot promise {promise} of any candidate; "
            f"of {one.config} alone, which {_saves(one, self.by)}, {one.needs} would if it goes on "
            "losing as here"
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        chosen, parts = self.chosen, self.parts
        return {
            "chosen": None if chosen is None else chosen.config,
            "promised": [one.config for one in self.candidates if one.is_promised],
            "documents": len(parts.calibrating),
            "pilot": len(parts.pilot),
            "held_out": len(parts.held_out),
            "candidates": [one.as_dict() for one in self.candidates],
            "left_out": list(self.left_out),
            **{
                name: getattr(self, name)
                for name in ("strategy", "task", "baseline", "loss", "confidence", "by", "seed")
            },
            "times": self.times,
            "sentence": self.sentence,
        }


def _saves(one: Candidate, by: By) -> str:
    return f"saves {100 * one.gain(by):.1f} % of {_WORDS[by]}"


def calibrate(
    cells: Sequence[Record],
    baseline: Record,
    loss: float,
    confidence: float,
    *,
    configs: Sequence[str] = (),
    documents: int | None = None,
    by: By = "calls",
    seed: int = 0,
) -> Calibration:
    """Choose among the cells of one task.

    Args:
        cells: records of one strategy on one task, and the baseline's.
        baseline: the record that reuses nothing.
        loss: mean figure that may be lost, in [0, 1].
        confidence: with which no more is, in (0, 1).
        configs: the candidates; empty is every cell that is not the baseline's computation.
        documents: how many calibrate; None is :data:`CALIBRATING` of all.
        by: what is to be saved.
        seed: of the draw.

    Raises:
        UsageError: there are fewer documents than asked for, or no timing study to choose by.
        NotComparableError: the records do not belong together.
    """
    check_grid(cells)
    num = len(baseline.samples)
    calibrating = round(CALIBRATING * num) if documents is None else documents
    if not 1 < calibrating <= num:
        raise UsageError(
            f"{calibrating} documents cannot calibrate: {baseline.name} answered {num} of "
            f"{baseline.task}; ask for 2 to {num}"
        )
    pairs, left_out = _pairs(cells, baseline, configs)
    times = read_times([baseline, *(pair.b for pair in pairs)], baseline.name)
    if by == "time" and not times.pairs:
        raise UsageError(f"{times.sentence}; or choose by the layer calls that are saved")
    asked = [pair for pair in pairs if not _only_drafts(pair)]
    parts = split(num, calibrating, several=len(asked) > 1, seed=seed)
    order_by = {
        pair.b.name: _saved(pair, parts.pilot if len(asked) > 1 else parts.test, by)
        if by != "time"
        else _time_saved(times, pair.b.name)
        for pair in asked
    }
    for pair in asked:
        if order_by[pair.b.name] <= 0:
            left_out.append(f"{pair.b.name}: {_NOTHING[by]}")
    pairs = [pair for pair in pairs if order_by.get(pair.b.name, 1) > 0]
    asked = [pair for pair in asked if pair in pairs]
    found = choose_safe(
        [pair.values[0] - pair.values[1] for pair in asked],
        [order_by[pair.b.name] for pair in asked],
        parts,
        loss,
        confidence,
    )
    tested = {pair.b.name: one for pair, one in zip(asked, found, strict=True)}
    candidates = [_candidate(pair, tested.get(pair.b.name), parts, loss, times) for pair in pairs]
    candidates.sort(key=lambda one: (one.gain(by), one.saved), reverse=True)
    return Calibration(
        strategy=baseline.summary.experiment,
        task=baseline.task,
        baseline=baseline.name,
        loss=loss,
        confidence=confidence,
        by=by,
        seed=seed,
        parts=parts,
        candidates=tuple(candidates),
        left_out=tuple(left_out),
        times=times.sentence,
    )


def _pairs(
    cells: Sequence[Record], baseline: Record, configs: Sequence[str]
) -> tuple[list[Pair], list[str]]:
    """Each candidate beside the baseline; what is none, with the reason."""
    pairs, left_out = [], []
    for cell in cells:
        if cell is baseline or (configs and cell.name not in configs):
            if cell.name in configs:
                left_out.append(f"{cell.name}: the baseline itself")
        elif same_computation(cell, baseline):
            left_out.append(f"{cell.name}: the baseline's own computation")
        elif cell.by_key.keys() != baseline.by_key.keys():
            left_out.append(
                f"{cell.name}: {len(cell.samples)} of {len(baseline.samples)} documents; a record "
                "that ended early chose where, so sweep it whole"
            )
        else:
            pairs.append(join(baseline, cell))
    return pairs, left_out


def _only_drafts(pair: Pair) -> bool:
    """Whether a candidate is the baseline in fewer rounds: verified drafts, the same answers."""
    decoding = {one.summary.fingerprint.fields.get("decoding") for one in (pair.a, pair.b)}
    drafts = total(pair.b.summary.counts, "drafted") > 0
    return pair.identical and drafts and len(decoding) == 1


def _saved(pair: Pair, places: Places, by: Literal["calls", "bytes"] = "calls") -> float:
    """Share of the baseline's layer calls or bytes that is saved, on some documents."""
    made = made_on(pair.b, pair.a, [pair.keys[place] for place in places])
    share = made.layer_calls if by == "calls" else made.bytes
    return 0.0 if share is None else 1 - share


def _time_saved(times: Times, config: str) -> float:
    """Share of the baseline's time that a study shows to be saved; 0 where it shows none."""
    pair = times.pairs.get(config)
    return 1 - pair.ratio.value if pair is not None and pair.claim == "faster" else 0.0


def _candidate(
    pair: Pair, tested: Tested | None, parts: Split, loss: float, times: Times
) -> Candidate:
    timed = times.pairs.get(pair.b.name)
    return Candidate(
        config=pair.b.name,
        saved=_saved(pair, parts.calibrating),
        bytes_saved=_saved(pair, parts.calibrating, "bytes"),
        held_out_bytes_saved=_saved(pair, parts.held_out, "bytes") if len(parts.held_out) else None,
        time=None if timed is None else timed.ratio,
        is_faster=timed is not None and timed.claim == "faster",
        seen=_loss(pair, parts.calibrating, loss),
        p_value=None if tested is None else tested.p_value,
        standing="lossless" if tested is None else tested.standing,
        needs=None if tested is None else tested.needs,
        held_out=_loss(pair, parts.held_out, loss) if len(parts.held_out) > 1 else None,
    )


def _loss(pair: Pair, places: Places, allowed: float) -> Loss:
    then, now = pair.values[:, places]
    groups = None if pair.groups is None else pair.groups[places]
    return Loss(
        documents=len(places),
        lost=find_difference(now, then, groups).difference,
        losses=int(np.sum(now < then)),
        gains=int(np.sum(now > then)),
        contradicts=p_value(now - then, -allowed) < ALPHA,
    )

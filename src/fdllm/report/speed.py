"""How much faster: paired times, and what the machine's own noise could have made of them.

The ratio is one of times, not of tokens/s: a cell whose answers grow, or turn to gibberish, can
raise its tokens/s and still take longer. Two sources of error are kept apart. Documents differ:
a paired bootstrap gives the interval. Runs differ, because a machine is not equally fast all day:
only cells that are one computation done several times can show it, and they give the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.stats import quantile_test

from fdllm.record import measure
from fdllm.record.study import Study
from fdllm.report.grid import GridFinding, batch_sizes, find_twins, findings, twins
from fdllm.report.records import Record
from fdllm.report.stats import ALPHA, LEVEL, Estimate, Floats, bootstrap_t, log_ratio

Claim = Literal["faster", "slower", "none"]

_DRAWS = 200_000
_SPREAD_ALLOWED = 0.1  # twins further apart than this are an accident, no noise


@dataclass(frozen=True)
class Floor:
    """What a machine's noise can look like, from cells that are one computation."""

    names: tuple[str, ...]  # those cells
    speeds: tuple[float, ...]  # tokens/s (or scored tokens/s) of each
    spread: float  # fastest by slowest, less one
    # the ratio, less one, that noise alone exceeds in 5 % of grids; never below the spread. Between
    # the two stands the fact that three runs show little of a noise.
    floor: float
    odd: str | None  # the cell that is far from its twins, if there is one

    @property
    def finding(self) -> GridFinding | None:
        """Which cell is far from its twins, and what that means."""
        if self.odd is None:
            return None
        of = dict(zip(self.names, self.speeds, strict=True))
        mine = of.pop(self.odd)
        text = (
            f"{self.odd} ran at {mine:.2f} tokens/s, its twins ({', '.join(of)}) at "
            f"{' and '.join(f'{s:.2f}' for s in of.values())}: one computation, so the machine was "
            "busy or a path was slow. Compute it anew before any speed is compared with it"
        )
        return GridFinding("twins-speed", (self.odd,), text)


def agreement_sentence(names: Sequence[str], where: str, floor: Floor | None) -> str:
    """The A/A check of cells that agree in ``where``, and the noise that their speeds show."""
    text = f"A/A: {' = '.join(names)} in {where}"
    if floor is None or not {*floor.names} <= {*names}:
        return text
    text += f"; speeds {', '.join(f'{speed:.1f}' for speed in floor.speeds)}"
    if floor.floor > 1:
        return f"{text}, so far apart that nothing can be said about speed here"
    return f"{text}: noise floor {100 * floor.floor:.1f} %, no speed-up below it is claimed"


def checks(records: Sequence[Record]) -> list[GridFinding]:
    """What holds of a grid of one task, and what is suspicious, ahead of its figures."""
    pairs = twins(records)
    floor = noise_floor(records) if pairs else None
    good = [
        GridFinding("twins", one.names, agreement_sentence(one.names, one.agreement, floor))
        for one in pairs
        if not one.differing
    ]
    return good + findings(records, None if floor is None else floor.finding)


@dataclass(frozen=True)
class Speed:
    """Time of A by time of B on the same documents."""

    ratio: Estimate  # above 1 where B is faster, with its 95 % interval over documents
    tokens_per_second: float  # tokens/s of B by tokens/s of A
    tokens: float  # tokens of B by tokens of A
    floor: Floor | None  # the noise floor; None where no two cells are one computation
    # what may be said: ``faster`` or ``slower`` only where the whole interval is beyond the floor
    claim: Claim

    @property
    def measured(self) -> str:
        """The ratio in words."""
        return f"{self.ratio.shown(unit='x the speed')}, by time on the same documents"

    def sentence(self, price: str = "") -> str:
        """What is claimed, at which ``price`` if it is a gain; what was measured; the noise."""
        claimed = {"faster": f"It is faster{price}", "slower": "It is slower"}
        text = f"{claimed.get(self.claim, 'No difference in speed is claimed')}: {self.measured}"
        if self.floor is None:
            text += "; there are no A/A cells beside it, so the noise of the machine is unknown"
        else:
            text += f"; noise floor {self.floor.floor:.1%} (A/A spread {self.floor.spread:.1%})"
        if (self.tokens_per_second - 1) * (self.ratio.value - 1) >= 0:
            return text
        grown = "grew" if self.tokens > 1 else "shrank"  # tokens/s and time disagree
        return (
            f"{text}; its tokens/s are {self.tokens_per_second:.2f}x, but its answers {grown} to "
            f"{self.tokens:.2f}x the tokens"
        )


def noise_floor(cells: Sequence[Record], num_compared: int | None = None) -> Floor | None:
    """The noise floor of a grid.

    Args:
        cells: the grid; its A/A cells are found by their settings.
        num_compared: how many other cells are compared with one of them; the more there are, the
            further the luckiest of them gets by noise alone. None counts all beside the twins.

    Returns:
        The floor, or None where no two comparable cells are one computation.
    """
    twins = find_twins(cells)
    speeds = [cell.summary.speed for cell in twins]
    if len(twins) < 2 or min(speeds) <= 0:  # noqa: PLR2004 - a pair
        return None
    others = len(cells) - len(twins) if num_compared is None else num_compared
    return floor_of([cell.name for cell in twins], speeds, others)


def floor_of(names: Sequence[str], speeds: Sequence[float], num_compared: int) -> Floor:
    """The noise floor by the speeds, above 0, of two twins or more; 0 compared counts as 1."""
    logs = np.log(speeds)
    spread = float(np.exp(np.ptp(logs)) - 1)
    factor = floor_factor(len(names), max(1, num_compared))
    floor = float(np.exp(min(factor * logs.std(ddof=1), 50.0)) - 1)
    odd = None
    if spread > _SPREAD_ALLOWED:
        odd = names[int(np.argmax(np.abs(logs - np.median(logs))))]
    return Floor(tuple(names), tuple(speeds), spread, max(floor, spread), odd)


@cache
def floor_factor(num_twins: int, num_compared: int) -> float:
    """How many standard deviations of the twins noise stays below in 95 % of grids.

    Logarithms of speeds are taken as normal: the twins' deviation s is of ``num_twins`` runs, and
    the fastest of ``num_compared`` others is compared with one of the twins.
    """
    draw = np.random.default_rng(0)
    twins = draw.standard_normal((_DRAWS, num_twins))
    others = draw.standard_normal((_DRAWS, num_compared))
    furthest = np.abs(others - twins[:, :1]).max(axis=1) / twins.std(axis=1, ddof=1)
    return float(np.quantile(furthest, 1 - ALPHA))


def measure_speed(seconds: Floats, tokens: Floats, floor: Floor | None) -> Speed | None:
    """The speed of B by that of A; None where a side took no time at all, or there is one document.

    Times are summed: one document may be free because another one had the same input.

    Args:
        seconds: model time of A and of B for each document, shape (2, n).
        tokens: tokens written or scored, shape (2, n).
        floor: of their grid.
    """
    if seconds.shape[1] < 2 or not seconds.sum(axis=1).all():  # noqa: PLR2004 - one has no spread
        return None
    logs = bootstrap_t(seconds[0], seconds[1], log_ratio)
    ratio = Estimate(*(float(np.exp(x)) for x in (logs.value, logs.low, logs.high)))
    of_a, of_b = (float(total) for total in tokens.sum(axis=1))
    more = of_b / of_a if of_a else 1.0
    return Speed(ratio, more * ratio.value, more, floor, claim_speed(ratio, floor))


def claim_speed(ratio: Estimate, floor: Floor | None) -> Claim:
    """What may be said of a ratio: nothing without a floor, and nothing that touches it."""
    if floor is None:
        return "none"
    if ratio.low > 1 + floor.floor:
        return "faster"
    return "slower" if ratio.high < 1 / (1 + floor.floor) else "none"


def doubt_speed(a: Record, b: Record, speed: Speed) -> str | None:
    """Why a claim that B is faster cannot be due to B; None where it can.

    B can be faster by what its layer calls saved, as if all of its time were spent in the phase
    where it saved most. What is faster still was not made so by its config: a machine that sped up
    between two runs looks like that, and twins that ran side by side do not show it. The calls
    cannot tell where a record has none, a phase is gone, or rows shared forwards, so that a call's
    cost depends on neighbours.
    """
    counted = all("counts" in sample for cell in (a, b) for sample in cell.samples)
    alone = all(batch_sizes(cell) in (["1"], []) for cell in (a, b))
    if speed.floor is None or speed.claim != "faster" or not (counted and alone):
        return None
    before, after = (measure.add_counts(cell.samples) for cell in (a, b))
    both = [(measure.made(before[phase]), measure.made(after.get(phase, {}))) for phase in before]
    most = max((one / other if other else math.inf for one, other in both if one), default=math.inf)
    if speed.ratio.low <= most * (1 + speed.floor.floor):
        return None
    return (
        f"it ran faster than its layer calls allow (at most {most:.2f}x): the machine sped up "
        "between the two; compute both anew, one right after the other"
    )


# --- timing studies -------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimedPair:
    """One config's time by the baseline's, on the same documents in turn."""

    a: str  # the baseline
    b: str  # the config
    ratio: Estimate  # time of ``b`` by time of ``a``, below 1 where ``b`` is faster
    twins: bool  # whether both are one computation
    claim: Claim


@dataclass(frozen=True)
class TimedPairs:
    """What a timing study shows. Every claim of a speed in this project is one of these."""

    # what noise alone may look like, as a ratio less one: as far as any twin's interval reaches.
    # None where the study has no twins, and nothing is claimed then.
    floor: float | None
    pairs: tuple[TimedPair, ...]

    def __getitem__(self, config: str) -> TimedPair:
        return next(pair for pair in self.pairs if pair.b == config)


def judge_pairs(study: Study) -> TimedPairs:
    """Compare every config of a study with its baseline.

    Of each document the median over repeats counts, of the documents the median of the logarithms
    of their ratios: one stalled document moves nothing. A claim needs an interval off 1 and a ratio
    beyond the floor.
    """
    times = {
        name: np.log(np.median(np.array(one.seconds), axis=1))
        for name, one in study.configs.items()
    }
    base, twins = times[study.baseline], study.twins
    found = {n: median_of(t - base) for n, t in times.items() if n != study.baseline}
    reach = [abs(end) for n in twins if n in found for end in (found[n].low, found[n].high)]
    floor = max(reach, default=None)
    pairs = tuple(
        TimedPair(
            study.baseline,
            name,
            Estimate(*(math.exp(min(x, 700.0)) for x in (log.value, log.low, log.high))),
            name in twins,
            claim_of(log, floor),
        )
        for name, log in found.items()
    )
    return TimedPairs(None if floor is None else math.expm1(min(floor, 700.0)), pairs)


def median_of(values: Floats) -> Estimate:
    """A median with its exact 95 % interval, by order statistics: no form of noise is assumed.

    Fewer than six values have no such interval; it is everything then.
    """
    found = quantile_test(values, q=0, p=0.5).confidence_interval(LEVEL)
    low, high = (float(end) for end in found)
    return Estimate(
        float(np.median(values)),
        -math.inf if math.isnan(low) else low,
        math.inf if math.isnan(high) else high,
    )


def claim_of(log: Estimate, floor: float | None) -> Claim:
    """What may be said of a logarithm of a ratio: nothing without a floor, nothing within it."""
    if floor is None or abs(log.value) <= floor or log.low <= 0 <= log.high:
        return "none"
    return "faster" if log.value < 0 else "slower"

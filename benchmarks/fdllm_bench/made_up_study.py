"""Studies of a made-up machine, whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fdllm.record.study import ConfigTimes, Study

_LENGTHS = 0.5  # standard deviation of the documents' logarithms
_NOISE = 0.01  # of one answer's
_STALLS = 0.03  # share of answers that something else delays
_MINUTE_S = 60.0


def make_study(
    ratios: Mapping[str, float],
    draw: np.random.Generator,
    *,
    documents: int = 100,
    repeats: int = 3,
    drift: float = 1.5,
    answer_s: float = 0.1,
) -> Study:
    """A study on a machine that drifts, jumps and stalls.

    Args:
        ratios: what time each config takes by the first one's; those of 1 are its twins where
            their name begins with ``k1``.
        draw: the chance.
        documents: how many.
        repeats: times that each config answers a document.
        drift: the machine slows down and speeds up again by this factor within minutes, once
            smoothly and once in jumps.
        answer_s: mean seconds of an answer.
    """
    num, names = len(ratios), list(ratios)
    at = np.arange(documents * repeats * num) * answer_s
    wave = np.sin(2 * np.pi * (at / draw.uniform(1, 5) / _MINUTE_S + draw.random()))
    jumps = draw.random(len(at)) < answer_s / _MINUTE_S * 4
    level = draw.uniform(0, 1, len(at))[np.cumsum(jumps)]
    log = np.log(drift) * ((1 + wave) / 2 + level) + _NOISE * draw.standard_normal(len(at))
    log += np.where(draw.random(len(at)) < _STALLS, draw.uniform(0.2, 1.5, len(at)), 0)
    orders = draw.permuted(np.tile(np.arange(num), (documents * repeats, 1)), axis=1)
    taken = np.empty((documents * repeats, num))
    np.put_along_axis(taken, orders, np.exp(log).reshape(-1, num), axis=1)
    length = answer_s * draw.lognormal(0, _LENGTHS, (documents, 1, 1))
    seconds = length * taken.reshape(documents, repeats, num) * list(ratios.values())
    return Study(
        experiment="made_up",
        task="made_up",
        limit=None,
        model="made_up",
        baseline=names[0],
        repeats=repeats,
        documents=tuple(("made_up", number) for number in range(documents)),
        configs={
            name: ConfigTimes(
                fingerprint={"decoding": "one"},
                k=1 if name.startswith("k1") else 2,
                reuses=not name.startswith("k1"),
                seconds=tuple(map(tuple, seconds[:, :, at_config].tolist())),
                answers=("",) * documents,
            )
            for at_config, name in enumerate(names)
        },
        device="made up",
        dtype="float32",
        threads=1,
        started="2026-01-01T00:00:00+00:00",
        seconds=float(seconds.sum()),
    )

"""What follows from a profile: figures of each layer, the choice, and how it stood the test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from fdllm.profiling.record import CHOSEN, GradedAnswers, Half, Means, PhaseMap, Profile
from fdllm.report.stats import Difference, find_difference

JSON_VERSION = 1


@dataclass(frozen=True)
class LayerFigures:
    """One layer, over all documents."""

    layer: int
    # as :class:`~fdllm.profiling.record.PhaseMap` has them, over the forwards in which layers may
    # be reused: DENOISE, or REFRESH where there is none
    similarity: float | None
    change: float | None
    accuracy: float  # the headline figure where this layer alone is reused
    same: float  # share of the answers that stay as they are without reuse
    oracle_skip: float | None  # share of the denoising steps in which the oracle spares it
    chosen: bool


@dataclass(frozen=True)
class ComparedSet:
    """A set of layers, reused, on the half that nothing was chosen on."""

    name: str
    layers: tuple[int, ...]
    accuracy: float  # the headline figure
    saved: float  # share of the layer calls without reuse
    than_plain: Difference  # its accuracy against no reuse
    than_chosen: Difference | None  # the chosen layers' against its; None for the chosen ones

    @property
    def verdict(self) -> str:
        """Whether the chosen layers are better than these, in a word."""
        if self.than_chosen is None:
            return ""
        gain = self.than_chosen.difference
        return "better" if gain.low > 0 else "worse" if gain.high < 0 else "no difference shown"


def whole_map(profile: Profile) -> dict[str, PhaseMap]:
    """Both halves together, by phase."""
    a, b = profile.choosing.map, profile.testing.map
    return {phase: _joined(a[phase], b[phase]) for phase in a}


def _joined(a: PhaseMap, b: PhaseMap) -> PhaseMap:
    def means(x: Means, y: Means, counts: Sequence[tuple[int, ...]]) -> Means:
        rows = (zip(u, v, *counts, strict=True) for u, v in zip(x, y, strict=True))
        return tuple(tuple(_mean([(u, n), (v, m)]) for u, v, n, m in row) for row in rows)

    forwards, compared = (a.forwards, b.forwards), (a.compared, b.compared)
    return PhaseMap(
        forwards=tuple(map(sum, zip(*forwards, strict=True))),
        compared=tuple(map(sum, zip(*compared, strict=True))),
        similarity=means(a.similarity, b.similarity, forwards),
        change=means(a.change, b.change, compared),
    )


def _mean(pairs: Sequence[tuple[float | None, int]]) -> float | None:
    """Of values and how often each counts; None where none does."""
    known = [(value, n) for value, n in pairs if value is not None and n]
    total = sum(n for _, n in known)
    return sum(value * n for value, n in known) / total if total else None


def _over(maps: dict[str, PhaseMap], name: str, layer: int) -> float | None:
    """A layer's mean over the forwards in which layers may be reused."""
    for phase in ("denoise", "refresh"):
        found = maps[phase]
        counts = found.compared if name == "change" else found.forwards
        mean = _mean(list(zip(getattr(found, name)[layer], counts, strict=True)))
        if mean is not None:
            return mean
    return None


def choose(half: Half, size: int) -> tuple[int, ...]:
    """The layers whose reuse does least harm, so many; never layer 0, as in a named subset.

    First those whose reuse, alone, leaves most answers as they are; among equals those whose
    residual changes least from step to step.

    Args:
        half: the documents to go by.
        size: how many.
    """

    def harm(layer: int) -> tuple[int, float]:
        change = _over(half.map, "change", layer)
        return half.layers[layer].same.count(False), 0.0 if change is None else change

    return tuple(sorted(sorted(range(1, len(half.layers)), key=harm)[:size]))


def layer_figures(profile: Profile) -> list[LayerFigures]:
    """Every layer, over both halves."""
    maps, oracle = whole_map(profile), profile.oracle
    found = []
    for layer in range(profile.n_layers):
        halves = [half.layers[layer] for half in (profile.choosing, profile.testing)]
        found.append(
            LayerFigures(
                layer=layer,
                similarity=_over(maps, "similarity", layer),
                change=_over(maps, "change", layer),
                accuracy=fmean(value for one in halves for value in one.values),
                same=fmean(same for one in halves for same in one.same),
                oracle_skip=oracle.by_layer[layer] if oracle and oracle.by_layer else None,
                chosen=layer in profile.tested[CHOSEN].layers,
            )
        )
    return found


def compared_sets(profile: Profile) -> list[ComparedSet]:
    """The chosen layers and then the named subsets, on the half that nothing was chosen on."""
    half, chosen = profile.testing, profile.tested[CHOSEN]
    leaves = [leaf for leaf, _ in half.documents]
    groups = np.unique(leaves, return_inverse=True)[1]

    def differ(a: GradedAnswers, b: GradedAnswers) -> Difference:
        return find_difference(np.array(a.values), np.array(b.values), groups)

    return [
        ComparedSet(
            name=name,
            layers=one.layers,
            accuracy=fmean(one.values),
            saved=1 - sum(one.calls) / sum(half.plain.calls),
            than_plain=differ(half.plain, one),
            than_chosen=None if name == CHOSEN else differ(one, chosen),
        )
        for name, one in profile.tested.items()
    ]


def verdict(profile: Profile) -> str:
    """How the chosen layers stood the test, in a sentence."""
    chosen, *others = compared_sets(profile)
    found = {
        word: [one.name for one in others if one.verdict == word]
        for word in ("better", "worse", "no difference shown")
    }
    said = [f"{word} than {_listed(found[word])}" for word in ("better", "worse") if found[word]]
    if found["no difference shown"]:
        said.append(f"no difference from {_listed(found['no difference shown'])} is shown")
    subject, verb = ("Layer", "is") if len(chosen.layers) == 1 else ("Layers", "are")
    return (
        f"{subject} {_listed([*map(str, chosen.layers)])}, chosen on "
        f"{len(profile.choosing.documents)} documents and reused at k = {profile.k}, {verb} right "
        f"in {100 * chosen.accuracy:.1f} % of {len(profile.testing.documents)} others (without "
        f"reuse {100 * fmean(profile.testing.plain.values):.1f} %): {'; '.join(said)}."
    )


def _listed(words: Sequence[str]) -> str:
    *ahead, last = words
    return f"{', '.join(ahead)} and {last}" if ahead else last


def as_dict(profile: Profile) -> dict[str, Any]:
    """JSON form of everything that is shown."""
    about = ("experiment", "task", "limit", "model", "preset", "decoding", "metric", "n_layers",
             "k", "target", "device", "dtype", "started", "seconds")  # fmt: skip
    chosen, *others = compared_sets(profile)
    oracle = profile.oracle
    return {
        "version": JSON_VERSION,
        **{name: getattr(profile, name) for name in about},
        "docs": profile.num_documents,
        "accuracy": fmean((*profile.choosing.plain.values, *profile.testing.plain.values)),
        "layers": [asdict(one) for one in layer_figures(profile)],
        "map": {phase: found.model_dump() for phase, found in whole_map(profile).items()},
        "oracle": None if oracle is None else oracle.model_dump(exclude={"by_layer"}),
        "subset": {
            "layers": chosen.layers,
            "chosen_on": len(profile.choosing.documents),
            "tested_on": len(profile.testing.documents),
            "plain": fmean(profile.testing.plain.values),
            "accuracy": chosen.accuracy,
            "saved": chosen.saved,
            "against": [
                {
                    "subset": one.name,
                    "layers": one.layers,
                    "accuracy": one.accuracy,
                    "saved": one.saved,
                    "difference": one.than_chosen.difference.value,
                    "low": one.than_chosen.difference.low,
                    "high": one.than_chosen.difference.high,
                    "verdict": one.verdict,
                }
                for one in others
                if one.than_chosen is not None
            ],
        },
        "verdict": verdict(profile),
    }

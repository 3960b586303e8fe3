"""Every strategy of the presets, and kinds of each, for models of six layers."""

from __future__ import annotations

from typing import Any

import pytest

import fdllm
from fdllm.core.reuse import NoReuse, PeriodicReuse, ReuseStrategy


def of(experiment: str, **params: Any) -> ReuseStrategy[Any]:
    return fdllm.load_strategy(experiment, k=2, subset="middle", n_layers=6, **params)


FEW: list[ReuseStrategy[Any]] = [
    NoReuse(),
    PeriodicReuse(2, 2, 4),
    PeriodicReuse(3, 1, 4, "residual"),
]
STRATEGIES: dict[str, ReuseStrategy[Any]] = {
    "none": NoReuse(),
    "k1": PeriodicReuse(1, 2, 4),
    "k2-output": PeriodicReuse(2, 2, 4),
    "k3-output-first": PeriodicReuse(3, 1, 3),
    "k3-output-last": PeriodicReuse(3, 4, 6),
    "k2-residual": PeriodicReuse(2, 2, 5, "residual"),
    "k2-identity": PeriodicReuse(2, 2, 5, "identity"),
    "k3-identity-last": PeriodicReuse(3, 3, 6, "identity"),
    "k2-output-refresh": PeriodicReuse(2, 1, 4, refresh_reuse=True),
    "k3-residual-refresh": PeriodicReuse(3, 2, 6, "residual", refresh_reuse=True),
    "whole-model": of("04_resample"),
    "calm-tokens": of("01_adaptive_skip", most_unmasked=1),
    "calm-confidence": of("01_adaptive_skip", least_confidence=0.5),
    "calm-probe": of("01_adaptive_skip", probe_change=0.9),
    "residual-line": of("02_residual", extrapolate=True),
    "trim": of("03_trim"),
    "trim-refresh": of("03_trim", refresh_reuse=True),
    "salient": of("09_salient", threshold=0.9),
    "salient-refresh": of("09_salient", threshold=0.5, period=3, refresh_reuse=True),
    "salient-none": of("09_salient", threshold=-1.1),
    "drift": of("13_drift", threshold=0.9, window=4),
    "drift-late": of("13_drift", threshold=0.5, window=2),
    "drift-never": of("13_drift", threshold=-1.1, window=4),
    "gate": of("07_cosine_layer", threshold=0.85),
    "gate-last": of("07_cosine_layer", threshold=0.7, first=3, most=9),
    "score": of("08_early_skip"),
    "score-by-change": of("08_early_skip", eighth=0.75, quarter=0.5, weight=0.0),
    "drop": of("10_static_drop", layers=[2, 5]),
    "random": of("11_random"),
    "random-run": of("11_random", adjacent=True, target="output"),
}


def every_strategy(test: Any) -> Any:
    return pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())(test)

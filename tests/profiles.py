"""A profile made up by hand: three layers, six documents, nothing decoded."""

from __future__ import annotations

from typing import Any

from fdllm.profiling.record import GradedAnswers, Half, OracleSaving, PhaseMap, Profile

FINGERPRINT = {"source": "s", "model": "m", "decoding": "threshold=0.97", "limit": "all"}
SIMILARITY = ((0.5, 0.6, None, 0.8), (0.9, 0.9, None, 0.9), (0.7, 0.8, None, 0.9))
CHANGE = ((0.5, 0.4, None, 0.2), (0.1, 0.1, None, None), (0.3, 0.2, None, 0.2))


def answers(values: str, same: str, calls: float, *layers: int) -> GradedAnswers:
    """Figures as digits: ``answers("101", "111", 30)``."""
    return GradedAnswers(
        layers=layers,
        values=tuple(map(float, values)),
        same=tuple(one == "1" for one in same),
        calls=(calls,) * len(values),
    )


def made_up_half(first: int, *, shift: float = 0.0) -> Half:
    """Three documents; reusing layer 1 changes none of their answers, layers 0 and 2 do."""
    similarity = tuple(
        tuple(None if one is None else one + shift for one in row) for row in SIMILARITY
    )
    denoise = PhaseMap(
        forwards=(4, 2, 0, 2), compared=(4, 2, 0, 1), similarity=similarity, change=CHANGE
    )
    refresh = PhaseMap(
        forwards=(0, 0, 0, 2),
        compared=(0, 0, 0, 0),
        similarity=((None, None, None, 0.4),) * 3,
        change=((None,) * 4,) * 3,
    )
    return Half(
        documents=tuple(("made_up", first + i) for i in range(3)),
        prompts=tuple(f"p{first + i}" for i in range(3)),
        plain=answers("110", "111", 30),
        layers=(
            answers("010", "011", 27, 0),
            answers("110", "111", 27, 1),
            answers("100", "101", 27, 2),
        ),
        map={"refresh": refresh, "denoise": denoise},
    )


def made_up_profile(**changes: Any) -> Profile:
    """One whose choice of a single layer is layer 1."""
    values: dict[str, Any] = {
        "experiment": "00_baseline",
        "task": "made_up",
        "limit": None,
        "model": "tiny",
        "decoding": "threshold=0.97",
        "metric": "exact_match,none",
        "fingerprint": FINGERPRINT,
        "n_layers": 3,
        "k": 2,
        "target": "residual",
        "choosing": made_up_half(0),
        "testing": made_up_half(3, shift=0.05),
        "tested": {
            "chosen": answers("110", "111", 27, 1),
            "first": answers("110", "111", 27, 1),
            "middle": answers("110", "111", 27, 1),
            "last": answers("000", "001", 27, 2),
        },
        "oracle": OracleSaving(
            layer_calls_whole=180,
            layer_calls_saved=45,
            denoise_share=0.8,
            equal_texts=6,
            by_layer=(0.2, 0.5, 0.3),
        ),
        "device": "a processor",
        "dtype": "float32",
        "started": "2026-01-01T00:00:00Z",
        "seconds": 1.0,
    }
    return Profile(**(values | changes))

"""The parts of a bench by name. No torch: names are checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from fdllm.errors import UsageError, did_you_mean

TOPICS = {
    "step": "a DENOISE, a REFRESH and a whole generation, against the floor and the plain sampler",
    "reuse": "what skipping layers saves: ideal, possible, measured",
    "batch": "continuous batches against fixed ones and against one row at a time",
    "growth": "time against prompt length and batch size, memory against the formula",
    "dtype": "bfloat16 next to float32",
}
"""What each topic measures."""

SHAPE_NAMES = ("tiny", "12x256", "28x512", "28x1024", "1.5B", "7B")
"""The shapes, smallest first."""


def check_topics(names: Sequence[str]) -> tuple[str, ...]:
    """The topics asked for, each once, in the order of :data:`TOPICS`.

    Raises:
        UsageError: a name is no topic.
    """
    _check("topic", names, (*TOPICS, "all"))
    return tuple(topic for topic in TOPICS if topic in names or "all" in names)


def check_shapes(names: Sequence[str]) -> tuple[str, ...]:
    """The shapes asked for, each once.

    Raises:
        UsageError: a name is no shape.
    """
    stray = next((name for name in names if name in TOPICS), None)
    if stray is not None and stray not in SHAPE_NAMES:
        raise UsageError(
            f"'{stray}' is a topic, and stands where --shape expects a shape; topics come first: "
            f"fdllm bench {stray} --shape {SHAPE_NAMES[0]}"
        )
    _check("shape", names, SHAPE_NAMES)
    return tuple(dict.fromkeys(names))


def _check(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"unknown {kind} '{name}'{hint}; choose from {', '.join(known)}")

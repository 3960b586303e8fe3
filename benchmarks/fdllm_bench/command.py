"""``fdllm bench`` in a checkout: what is checked before anything is measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fdllm.cli.output import complain
from fdllm.errors import UsageError, did_you_mean
from fdllm_bench.options import DEFAULT_SHAPES, SHAPE_NAMES, TOPICS, BenchOptions

_BUSY = 0.5  # of the cores: more load than that disturbs what runs on all of them
_DEFAULT_TOPICS = ("step",)


@dataclass(frozen=True, kw_only=True)
class BenchCommand(BenchOptions):
    """How fast decoding is here, against its floor and its limits."""

    def run(self) -> int:
        """Measure what was asked for, shape by shape."""
        topics = self.topics or (() if self.profile else _DEFAULT_TOPICS)
        _check("topic", topics, (*TOPICS, "all"))
        chosen = [topic for topic in TOPICS if topic in topics or "all" in topics]
        shapes = tuple(dict.fromkeys(self.shape or DEFAULT_SHAPES))
        if stray := next((name for name in shapes if name in TOPICS), None):
            raise UsageError(
                f"'{stray}' is a topic, and stands where --shape expects a shape; topics come "
                f"first: fdllm bench {stray} --shape {SHAPE_NAMES[0]}"
            )
        _check("shape", shapes, SHAPE_NAMES)
        trace = self.profile
        if trace is not None and (trace.is_dir() or not trace.parent.is_dir()):
            raise UsageError(f"--profile names a file in a folder that exists; got '{trace}'")
        if told := busy_words(os.getloadavg()[0], os.cpu_count() or 1):
            complain(told)
        from fdllm_bench.run import run  # noqa: PLC0415 - torch

        run(self, chosen, shapes, trace)
        return 0


def _check(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(f"unknown {kind} '{name}'{hint}; choose from {', '.join(known)}")


def busy_words(load: float, cores: int) -> str | None:
    """A warning where other programs take part of the machine; None where it is idle."""
    if load < _BUSY * cores:
        return None
    return (
        f"bench: other programs are running (load {load:.1f} on {cores} cores): times will be "
        "too long and ratios noisy; look at the ranges, and measure again on an idle machine"
    )

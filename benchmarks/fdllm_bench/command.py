"""``fdllm bench`` in a checkout: its flags, and what is checked before anything is measured."""

from __future__ import annotations

import os
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdllm.cli.options import DTYPES, Command, flag
from fdllm.cli.output import complain
from fdllm.errors import UsageError, did_you_mean

TOPICS = {
    "step": "a DENOISE, a REFRESH and a whole generation, against the floor",
    "reuse": "what skipping layers saves: ideal, possible, measured",
    "batch": "continuous batches against fixed ones and against one row at a time",
    "growth": "time against prompt length and batch size, memory against the formula",
}
"""What each topic measures."""
SHAPE_NAMES = ("tiny", "12x256", "28x512", "28x1024", "1.5B", "7B")
"""The shapes, smallest first."""
DEFAULT_SHAPES = ("tiny", "28x512")
_BUSY = 0.5  # of the cores: more load than that disturbs what runs on all of them
_DEFAULT_TOPICS = ("step",)


def _amount(text: str, usual: int) -> Any:  # noqa: ANN401 - as ``flag``
    return flag(f"{text} ({usual})", default=usual, group="how much", metavar="N")


@dataclass(frozen=True, kw_only=True)
class BenchCommand(Command):
    """How fast decoding is here, against its floor and its limits."""

    topics: tuple[str, ...] = flag(
        "what to measure (step), or all. "
        + "; ".join(f"{name}: {text}" for name, text in TOPICS.items()),
        default=(),
        flags=("topics",),
        nargs="*",
        metavar="TOPIC",
    )
    shape: tuple[str, ...] | None = flag(
        f"repeatable ({', '.join(DEFAULT_SHAPES)}): {', '.join(SHAPE_NAMES)}. tiny is the "
        "embedded model, the others have random weights; 1.5B and 7B are meant for a GPU",
        group="what",
        metavar="S",
    )
    dtype: str = flag(
        "type of the weights (by device)", default="auto", group="what", choices=DTYPES
    )
    profile: Path | None = flag(
        "where a step's time goes, as a table, and a trace for Chrome or Perfetto in FILE",
        group="what",
        metavar="FILE",
    )
    repeats: int = _amount("times each figure is measured", 5)
    prompt_blocks: int = _amount("blocks of prompt", 4)
    new_tokens: int = _amount("tokens that a whole generation makes", 64)
    tokens_per_step: int = _amount("columns unmasked a step, whatever the confidence", 2)
    requests: int = _amount("requests of the batch topic", 64)
    batch_size: int = _amount("rows at once of the batch topic", 8)
    max_blocks: int = _amount("blocks of the longest answer of the batch topic", 8)
    stretch_ms: int = _amount("how long a step is repeated before its floor's turn", 40)
    device: str = flag("cpu, cuda or cuda:N (a GPU if there is)", default="auto", group="where")
    threads: int | None = flag("threads on CPU (torch's)", group="where", metavar="N")
    compile: bool | None = flag(
        "with C kernels on a CPU (default, where there is a C compiler), with CUDA graphs on a "
        "GPU (default: no)",
        group="where",
        action=BooleanOptionalAction,
    )
    json: bool = flag("print the figures as JSON", default=False, group="where")

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

"""A plan, cut into what the layer loop does: one entry a run and none a layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Literal

from fdllm.core.layerplan import LayerPlan, LayerRun

Kind = Literal["compute", "reuse", "partial"]


@dataclass(frozen=True)
class Segment:
    """A stretch of the layer loop.

    Attributes:
        kind: layers to compute, one run to take from the slots, or one to compute in part.
        start: its first layer.
        stop: one past its last.
        run: the run that is stored, reused or computed in part; None where nothing is kept.
        kv_only: the output of the last layer reaches nothing; only its keys and values are owed.
    """

    kind: Kind
    start: int
    stop: int
    run: LayerRun | None = None
    kv_only: bool = False


@lru_cache(maxsize=4096)
def segments(plan: LayerPlan, first: int = 0) -> tuple[Segment, ...]:
    """The stretches of a plan from layer ``first`` on.

    Nothing ahead of a reused *output* reaches the logits: a run that stands right ahead of one is
    not read at all, and of computed layers right ahead of one the last gives only its keys and
    values.
    """
    stretches: list[Segment] = []
    at = first
    for run in plan.runs:
        if at < run.start:
            stretches.append(Segment("compute", at, run.start))
        kind: Kind = "reuse" if run in plan.reuse else "compute"
        stretches.append(
            Segment("partial" if run in plan.partial else kind, run.start, run.stop, run)
        )
        at = run.stop
    if at < plan.n_layers:
        stretches.append(Segment("compute", at, plan.n_layers))
    out: list[Segment] = []
    for piece, after in zip_longest(stretches, stretches[1:]):
        replaced = (
            after is not None
            and after.kind == "reuse"
            and after.run is not None
            and after.run.target == "output"
        )
        if replaced and piece.kind == "reuse":
            continue
        kv_only = replaced and piece.run is None
        out.append(Segment(piece.kind, piece.start, piece.stop, piece.run, kv_only))
    return tuple(out)

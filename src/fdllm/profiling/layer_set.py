"""Reuse of any set of layers. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from fdllm.core.reuse import LayerPlan, LayerRun, ReuseStrategy, Target
from fdllm.core.schedule import Phase, Step


@dataclass(frozen=True)
class LayerSetReuse(ReuseStrategy[int]):
    """:class:`~fdllm.core.reuse.PeriodicReuse` of layers that need not be adjacent.

    Attributes:
        k: reuse period.
        layers: ascending.
        target: what is stored of each stretch of adjacent ones.
    """

    k: int
    layers: tuple[int, ...]
    target: Target = "residual"

    def init(self, n_layers: int) -> int:
        """The state is the number of layers."""
        return n_layers

    def plan(self, step: Step, state: int) -> LayerPlan:
        """Reuse them in every DENOISE that is not a multiple of ``k``; else store them."""
        runs = tuple(LayerRun(*ends, self.target) for ends in stretches(self.layers))
        if step.phase is Phase.DENOISE and step.index % self.k:
            return LayerPlan(state, reuse=runs)
        return LayerPlan(state, store=runs)

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """The layers."""
        return self.layers


def stretches(layers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending numbers as stretches of adjacent ones: the first, and one past the last."""
    if not layers:
        return []
    gaps = [(a + 1, b) for a, b in pairwise(layers) if b > a + 1]
    starts, stops = [layers[0], *(b for _, b in gaps)], [*(a for a, _ in gaps), layers[-1] + 1]
    return list(zip(starts, stops, strict=True))

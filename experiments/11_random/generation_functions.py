"""Control: skip as many layer calls as 00_baseline and 02_residual do, at random.

Each layer's value is stored for itself on every k-th step. On the others layers are drawn, as many
as the cell's subset has, and their stored values take their place. What choosing a subset well is
worth is what its rival has ahead of this (a control of DIALS, a submission to TMLR).
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import LayerPlan, LayerRun, NoReuse, Observation, ReuseStrategy, Target
from fdllm.core.schedule import Phase, Step


@dataclass(frozen=True)
class Drawn:
    """The model's layers, and the course that the block has taken, which seeds the next draw."""

    n_layers: int
    course: str = ""


@dataclass(frozen=True)
class RandomReuse(ReuseStrategy[Drawn]):
    """Reuse random layers where the step counter is no multiple of ``k``.

    A draw depends on the seed and on the row's own course through its block alone, so it is the
    same in any batch; two blocks that take one course get one draw.

    Attributes:
        k: reuse period.
        size: layers that are skipped; layer 0 never is.
        seed: of all draws.
        adjacent: whether they are a run, drawn as one.
        target: what is stored of each layer.
    """

    k: int
    size: int
    seed: int = 0
    adjacent: bool = False
    target: Target = "residual"

    def init(self, n_layers: int) -> Drawn:
        """No course is taken yet."""
        return Drawn(n_layers)

    def plan(self, step: Step, state: Drawn) -> LayerPlan:
        """Store every layer, or reuse those that are drawn."""
        n_layers, count = state.n_layers, self.size
        if step.phase is Phase.REFRESH or step.index % self.k == 0:
            return LayerPlan(n_layers, reuse=self._runs(range(1, n_layers))).whole
        rng = random.Random(f"{self.seed} {state.course}{step}")
        if self.adjacent:
            start = rng.randint(1, n_layers - count)
            return LayerPlan(n_layers, reuse=self._runs(range(start, start + count)))
        return LayerPlan(n_layers, reuse=self._runs(rng.sample(range(1, n_layers), count)))

    def _runs(self, layers: Iterable[int]) -> tuple[LayerRun, ...]:
        return tuple(LayerRun(layer, layer + 1, self.target) for layer in sorted(layers))

    def observe(self, step: Step, seen: Observation, state: Drawn) -> Drawn:
        """Add what the step unmasked to the course."""
        return Drawn(state.n_layers, f"{state.course}{step.index}:{seen.unmasked} ")

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:
        """Any but the first."""
        return tuple(range(1, n_layers))


def strategy(config: StrategyConfig) -> RandomReuse | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline."""
    start, stop = config.bounds
    return NoReuse() if config.k == 1 else RandomReuse(config.k, stop - start, **config.params)

"""Leave a layer out of a DENOISE where its input is nearly that of the layer before.

The idea of several public copies of Fast-dLLM v2: what two layers in a row are given points in one
direction, so the second would change little. Nothing is stored; what comes in goes on.
"""

from dataclasses import dataclass

from fdllm.core.config import StrategyConfig
from fdllm.core.guided_plans import GatePlan
from fdllm.core.reuse import AnyPlan, LayerPlan, NoReuse, ReuseStrategy
from fdllm.core.schedule import Phase, Step


@dataclass(frozen=True)
class CosineLayer(ReuseStrategy[int]):
    """A gate ahead of each layer, see :class:`fdllm.core.guided_plans.GatePlan`.

    A REFRESH computes every layer: its keys and values are what later steps see.

    Attributes:
        threshold: mean cosine of the columns above which a layer is left out.
        first: layers at the beginning that never are.
        most: layers that are left out in a row, at most; then one is computed.
    """

    threshold: float = 0.95
    first: int = 2
    most: int = 3

    def init(self, n_layers: int) -> int:
        """The state is the number of layers."""
        return n_layers

    def plan(self, step: Step, state: int) -> AnyPlan:
        """A gate on each DENOISE."""
        if step.phase is Phase.REFRESH:
            return LayerPlan(state)
        return GatePlan(state, self.threshold, self.first, self.most)

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:
        """Every layer that has a gate."""
        return tuple(range(self.first, n_layers))


def strategy(config: StrategyConfig) -> CosineLayer | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline. The subset only names it."""
    return NoReuse() if config.k == 1 else CosineLayer(**config.params)

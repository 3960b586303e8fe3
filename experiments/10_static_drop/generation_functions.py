"""Leave the same few layers out of every DENOISE: those that a similarity profile calls idle.

After arXiv 2603.07475, where a diffusion model trained from scratch loses layers at little cost,
and one that began autoregressive collapses. Nothing is stored; what comes in goes on.
"""

from dataclasses import dataclass

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import LayerPlan, LayerRun, NoReuse, ReuseStrategy
from fdllm.core.schedule import Phase, Step
from fdllm.errors import UsageError


@dataclass(frozen=True)
class StaticDrop(ReuseStrategy[int]):
    """Drop some layers.

    A REFRESH computes every layer: its keys and values are what later steps see.

    Attributes:
        layers: which; chosen for a model ahead of its run (proposal.md).
    """

    layers: tuple[int, ...]

    def init(self, n_layers: int) -> int:
        """The state is the number of layers.

        Raises:
            UsageError: a layer is 0, or the model has no such layer.
        """
        if not self.layers or not all(0 < layer < n_layers for layer in self.layers):
            raise UsageError(
                f"layers {list(self.layers)} cannot be dropped from a model of {n_layers} layers; "
                f"give some of 1 to {n_layers - 1} in params"
            )
        return n_layers

    def plan(self, step: Step, state: int) -> LayerPlan:
        """The layers are left out of a DENOISE."""
        dropped = tuple(LayerRun(layer, layer + 1, "identity") for layer in self.layers)
        plan = LayerPlan(state, reuse=dropped)
        return plan.whole if step.phase is Phase.REFRESH else plan

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """The layers that are dropped."""
        return self.layers


def strategy(config: StrategyConfig) -> StaticDrop | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline. The subset only names it."""
    if config.k == 1:
        return NoReuse()
    params = dict(config.params)
    return StaticDrop(tuple(params.pop("layers", ())), **params)

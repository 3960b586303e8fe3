"""Salient columns (DyLLM): where attention is nearly what it was, the feed-forward is not run.

Attention is computed for every column of the forward. A column whose attention output has a cosine
above ``threshold`` with that of the last step adds what its feed-forward added then. Every
``period``-th step is whole.
"""

from dataclasses import dataclass

from fdllm.core.attention_plans import SalientPlan
from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import AnyPlan, NoReuse, ReuseStrategy
from fdllm.core.schedule import Phase, Step


@dataclass(frozen=True)
class Salient(ReuseStrategy[int]):
    """Run the feed-forward of salient columns alone, in all layers but the first and the last.

    Attributes:
        threshold: cosine above which a column is not salient.
        period: every so many steps one is whole, by the step counter; a REFRESH begins it anew.
        refresh_reuse: whether a REFRESH that is not a block's first takes part too.
    """

    threshold: float = 0.99
    period: int = 8
    refresh_reuse: bool = False

    def init(self, n_layers: int) -> int:
        """The state is the number of layers."""
        return n_layers

    def plan(self, step: Step, state: int) -> AnyPlan:
        """Whole every ``period``-th step, else by what is salient."""
        plan = SalientPlan(state, 1, state - 1, self.threshold)
        may = step.phase is Phase.DENOISE or (self.refresh_reuse and not step.first)
        return plan if may and step.index % self.period else plan.whole

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:
        """All but the first and the last."""
        return tuple(range(1, n_layers - 1))


def strategy(config: StrategyConfig) -> Salient | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline."""
    return NoReuse() if config.k == 1 else Salient(**config.params)

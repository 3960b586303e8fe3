"""Periodic reuse of a subset's residual, so that what the layers ahead of it computed gets through.

What is stored is the difference between the hidden state behind the subset and the one ahead of
it. ``extrapolate`` carries the last two computed differences on in a straight line.
"""

from dataclasses import dataclass, replace

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import LayerPlan, LayerRun, PeriodicReuse
from fdllm.core.schedule import Step
from fdllm.errors import UsageError


@dataclass(frozen=True)
class ResidualReuse(PeriodicReuse):
    """Periodic residual reuse, optionally extrapolated to first order.

    Attributes:
        extrapolate: on a step r behind a computed one (0 < r < k), add r / k of the difference
            between the last two computed residuals, where the same columns have been computed
            twice since the last REFRESH.
    """

    extrapolate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extrapolate and self.refresh_reuse:
            raise UsageError("extrapolate needs a REFRESH that computes: leave refresh_reuse out")

    def plan(self, step: Step, state: int) -> LayerPlan:
        """As the period says; the stored value is carried on where two of them are known."""
        plan = super().plan(step, state)
        if not self.extrapolate or not plan.runs:
            return plan
        period, behind = divmod(step.index, self.k)
        run = LayerRun(self.start, self.stop, self.target, keep=2)
        if plan.store:
            return LayerPlan(state, store=(run,))
        return LayerPlan(state, reuse=(replace(run, extrapolate=behind / self.k * (period > 0)),))


def strategy(config: StrategyConfig) -> ResidualReuse:
    """The strategy of one config of the grid."""
    start, stop = config.bounds
    return ResidualReuse(config.k, start, stop, target="residual", **config.params)

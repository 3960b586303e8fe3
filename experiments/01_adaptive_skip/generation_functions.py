"""Skip the subset only while decoding is calm, and compute it as soon as it is not.

After a step that computed the subset, a step skips it where what is cheap to know says that little
has moved: the step before unmasked few tokens, or was sure of those it did unmask, or (a look in
mid-forward) the layer ahead of the subset changed its residual by little since the subset was last
computed.
"""

from dataclasses import dataclass

from fdllm.core.config import StrategyConfig
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.reuse import (
    AnyPlan,
    LayerPlan,
    LayerRun,
    NoReuse,
    Observation,
    ReuseStrategy,
)
from fdllm.core.schedule import Phase, Step
from fdllm.errors import UsageError


@dataclass(frozen=True)
class Calm:
    """What a row shows: the model's layers, and whether its last step was calm."""

    n_layers: int
    calm: bool = False


@dataclass(frozen=True)
class AdaptiveSkip(ReuseStrategy[Calm]):
    """Skip layers ``start .. stop - 1`` on calm steps; exactly one measure of calm is given.

    Attributes:
        start: first layer of the subset.
        stop: one past its last.
        most_unmasked: calm where the last step unmasked at most this many tokens.
        least_confidence: calm where each of them had at least this confidence.
        probe_change: calm where the layer ahead of the subset changed its residual by less than
            this share since the subset was last computed.
        refresh_reuse: whether a REFRESH that is not a block's first may skip too.
    """

    start: int
    stop: int
    most_unmasked: int | None = None
    least_confidence: float | None = None
    probe_change: float | None = None
    refresh_reuse: bool = False

    def __post_init__(self) -> None:
        given = (self.most_unmasked, self.least_confidence, self.probe_change)
        if sum(value is not None for value in given) != 1:
            raise UsageError(
                "give exactly one of most_unmasked, least_confidence and probe_change in params"
            )

    def init(self, n_layers: int) -> Calm:
        """Nothing is known yet, so the first step is not calm."""
        return Calm(n_layers)

    def plan(self, step: Step, state: Calm) -> AnyPlan:
        """Reuse on a calm step; a REFRESH computes and stores, unless it may skip too."""
        may_skip = step.phase is Phase.DENOISE or (self.refresh_reuse and not step.first)
        run = LayerRun(self.start, self.stop)
        store = LayerPlan(state.n_layers, store=(run,))
        skip = LayerPlan(state.n_layers, reuse=(run,))
        if self.probe_change is not None:
            probe = ProbePlan(self.start - 1, self.probe_change, calm=skip, otherwise=store)
            return probe if may_skip else LayerPlan(state.n_layers, store=(probe.run, run))
        return skip if may_skip and state.calm else store

    def observe(self, step: Step, seen: Observation, state: Calm) -> Calm:  # noqa: ARG002
        """Judge the step that was; one that skipped is followed by one that computes."""
        if seen.plan.reuse:
            return Calm(state.n_layers)
        if self.most_unmasked is not None:
            return Calm(state.n_layers, seen.num_unmasked <= self.most_unmasked)
        least = min(seen.confidence, default=0.0)
        return Calm(state.n_layers, least >= (self.least_confidence or 0.0))

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """The layers that calm steps skip."""
        return tuple(range(self.start, self.stop))


def strategy(config: StrategyConfig) -> AdaptiveSkip | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline."""
    start, stop = config.bounds
    return NoReuse() if config.k == 1 else AdaptiveSkip(start, stop, **config.params)

"""Token-level reuse (TRIM): inside the subset, only the columns that may have moved are computed.

A column is clean once the subset has been computed for it while its token was already known; it
then takes its stored value. Columns that are still masked, and those unmasked since they were
stored, are computed.
"""

from dataclasses import dataclass

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import LayerPlan, LayerRun, NoReuse, Observation, ReuseStrategy
from fdllm.core.schedule import Phase, Step


@dataclass(frozen=True)
class Clean:
    """The model's layers, and the block's columns whose stored values fit their tokens."""

    n_layers: int
    columns: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Trim(ReuseStrategy[Clean]):
    """Compute layers ``start .. stop - 1`` for dirty columns only.

    Attributes:
        start: first layer of the subset.
        stop: one past its last.
        refresh_reuse: whether a REFRESH that is not a block's first trims too.
    """

    start: int
    stop: int
    refresh_reuse: bool = False

    def init(self, n_layers: int) -> Clean:
        """Nothing is stored yet."""
        return Clean(n_layers)

    def plan(self, step: Step, state: Clean) -> LayerPlan:
        """Compute everything on a REFRESH (unless it may trim), else the dirty columns."""
        if step.phase is Phase.REFRESH and (step.first or not self.refresh_reuse):
            return LayerPlan(state.n_layers, store=(LayerRun(self.start, self.stop),))
        dirty = tuple(c for c in range(*step.columns) if c not in state.columns)
        run = LayerRun(self.start, self.stop, columns=dirty)
        return LayerPlan(state.n_layers, partial=(run,))

    def observe(self, step: Step, seen: Observation, state: Clean) -> Clean:  # noqa: ARG002
        """Known columns of this step are clean now: all of them were computed, or were before."""
        known = frozenset(range(*step.columns)) - frozenset(step.masked)
        return Clean(state.n_layers, state.columns | known)

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """The layers that are trimmed."""
        return tuple(range(self.start, self.stop))


def strategy(config: StrategyConfig) -> Trim | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline."""
    start, stop = config.bounds
    return NoReuse() if config.k == 1 else Trim(start, stop, **config.params)

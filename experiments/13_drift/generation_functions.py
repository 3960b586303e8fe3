"""Attention drift (Elastic-Cache): keys and values anew from the layer on where attention changed.

A step computes the columns that may have changed. Where a layer's most attended known column
attends to the others as it did, their keys and values stay; from the first layer on where it does
not (cosine below ``threshold``), all columns are computed again.
"""

from dataclasses import dataclass

from fdllm.core.attention_plans import DriftPlan
from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import AnyPlan, NoReuse, Observation, ReuseStrategy
from fdllm.core.schedule import Step


@dataclass(frozen=True)
class Clean:
    """The model's layers, and the block's columns that were computed since they are known."""

    n_layers: int
    columns: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Drift(ReuseStrategy[Clean]):
    """Compute a window of masked columns and those just unmasked; all, behind a drift.

    Attributes:
        threshold: cosine below which attention has drifted; the paper's gamma.
        window: leftmost masked columns of the forward that are computed; the paper's beta.
    """

    threshold: float = 0.9
    window: int = 8
    refresh_reuse = True

    def init(self, n_layers: int) -> Clean:
        """Nothing is stored yet."""
        return Clean(n_layers)

    def plan(self, step: Step, state: Clean) -> AnyPlan:
        """Whole where a block begins, or no column is left that has not changed."""
        known = frozenset(range(*step.columns)) - frozenset(step.masked)
        clean = tuple(sorted(known & state.columns))
        columns = tuple(sorted((*step.masked[: self.window], *(known - state.columns))))
        if step.first or not clean or not columns:
            return DriftPlan(state.n_layers, self.threshold, (), (0,)).whole
        return DriftPlan(state.n_layers, self.threshold, columns, clean)

    def observe(self, step: Step, seen: Observation, state: Clean) -> Clean:  # noqa: ARG002
        """Known columns of this step are computed now."""
        known = frozenset(range(*step.columns)) - frozenset(step.masked)
        return Clean(state.n_layers, state.columns | known)

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:
        """All but the first and the last."""
        return tuple(range(1, n_layers - 1))


def strategy(config: StrategyConfig) -> Drift | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline."""
    return NoReuse() if config.k == 1 else Drift(**config.params)

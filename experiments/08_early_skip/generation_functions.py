"""Go on with ever fewer columns the deeper the layers, those that tell most (ES-dLLM, 2603.10088).

Behind an eighth and a quarter of the layers each column is scored by how sure it was last and how
much its hidden state has changed since. The others take what their last computation left.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fdllm.core.config import StrategyConfig
from fdllm.core.guided_plans import ScorePlan
from fdllm.core.reuse import AnyPlan, NoReuse, Observation, ReuseStrategy
from fdllm.core.schedule import Phase, Step


@dataclass(frozen=True)
class Told:
    """The model's layers, and the last confidence of each masked column that was read."""

    n_layers: int
    confidences: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EarlySkip(ReuseStrategy[Told]):
    """Two scores on each DENOISE, see :class:`fdllm.core.guided_plans.ScorePlan`.

    Attributes:
        eighth: share of the columns that goes on behind an eighth of the layers.
        quarter: share of them behind a quarter.
        always: the most confident columns, which always go on.
        weight: of confidence in a score; the rest is that of change.
    """

    eighth: float = 0.5
    quarter: float = 0.25
    always: int = 2
    weight: float = 0.5

    def init(self, n_layers: int) -> Told:
        """Nothing is told yet."""
        return Told(n_layers)

    def plan(self, step: Step, state: Told) -> AnyPlan:
        """Store on a REFRESH, score on a DENOISE; a column's logits predict the next one."""
        told = tuple(state.confidences.get(c + 1, 0.0) for c in range(*step.columns))
        shares = (self.eighth, self.quarter)
        plan = ScorePlan(
            state.n_layers, _stops(state.n_layers), shares, told, self.always, self.weight
        )
        return plan.whole if step.phase is Phase.REFRESH else plan

    def observe(self, step: Step, seen: Observation, state: Told) -> Told:  # noqa: ARG002
        """Keep what was told of columns that are still masked."""
        told = {**state.confidences, **seen.confidences}
        return Told(state.n_layers, {c: p for c, p in told.items() if c not in seen.unmasked})

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:
        """The layers behind the first score."""
        return tuple(range(_stops(n_layers)[0], n_layers))


def _stops(n_layers: int) -> tuple[int, int]:
    eighth = max(1, round(n_layers / 8))
    return eighth, max(eighth + 1, round(n_layers / 4))


def strategy(config: StrategyConfig) -> EarlySkip | NoReuse:
    """The strategy of one config; k = 1 is the exact baseline. The subset only names it."""
    return NoReuse() if config.k == 1 else EarlySkip(**config.params)

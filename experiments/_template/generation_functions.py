"""What this experiment does differently, in one sentence.

``strategy(config)`` returns the frozen strategy of one config. It may be one of fdllm.core.reuse,
or a ReuseStrategy written here: frozen parameters, `init` -> state, `plan` -> which layers a step
computes, reuses and stores, `observe` -> next state. A function ``unmask(confidence, threshold)``
beside it replaces the rule of unmasking. The sampler itself is never copied.
docs/extending.md writes one, and explains every field of what it sees and answers.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import PeriodicReuse


def strategy(config: StrategyConfig) -> PeriodicReuse:
    """The strategy of one config of the grid."""
    start, stop = config.bounds
    return PeriodicReuse(config.k, start, stop, target="output", **config.params)

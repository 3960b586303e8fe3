"""Periodic output reuse: a run of layers is computed on every k-th step and reused in between.

What is stored is the hidden state behind the run (its absolute output). k = 1 never reuses.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import PeriodicReuse


def strategy(config: StrategyConfig) -> PeriodicReuse:
    """The strategy of one config of the grid."""
    start, stop = config.bounds
    return PeriodicReuse(config.k, start, stop, target="output", **config.params)

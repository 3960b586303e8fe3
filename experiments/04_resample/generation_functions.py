"""The control arm: on all but every k-th step, sample again from the last computed logits.

Every layer but the first is reused, and of that one only keys and values are computed: a skipped
step costs little more than the head and sees nothing new. A method that skips only some layers must
beat this at equal accuracy to have shown anything.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import PeriodicReuse


def strategy(config: StrategyConfig) -> PeriodicReuse:
    """The strategy of one config of the grid; the subset only names it."""
    return PeriodicReuse(config.k, 1, config.n_layers, target="output", **config.params)

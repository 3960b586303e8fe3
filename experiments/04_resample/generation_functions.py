"""The control arm: on all but every k-th step, sample again from the last computed logits.

Every layer is reused, so a skipped step costs the head alone and sees nothing new. A method that
skips only some layers must beat this at equal accuracy to have shown anything.
"""

from fdllm.config import StrategyConfig
from fdllm.reuse import PeriodicReuse


def strategy(config: StrategyConfig) -> PeriodicReuse:
    """The strategy of one config of the grid; the subset only names it."""
    return PeriodicReuse(config.k, 0, config.n_layers, target="output", **config.params)

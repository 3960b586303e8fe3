"""Verified drafts from the logits at hand: the texts of k = 1, several of its steps in a forward.

The next states are what the sampler would make of the last whole logits, as in 04_resample. Here
they are computed whole, in one forward, and kept only as far as that forward agrees. With
``overhead``, those are computed whose chance of being kept is worth their columns.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.drafting import Drafting
from fdllm.core.reuse import NoReuse


def strategy(config: StrategyConfig) -> Drafting[int] | NoReuse:
    """The strategy of one config: without ``drafts`` the exact baseline."""
    return Drafting(drafter=NoReuse(), **config.params) if config.params else NoReuse()

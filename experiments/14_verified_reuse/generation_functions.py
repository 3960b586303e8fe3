"""Verified drafts by reuse: the texts of k = 1, drafted by forwards that skip most of the layers.

A draft takes the residual of all layers but the first and the last from the last whole forward that
was kept. What it drafts is verified as in 12_verified, its rival, whose drafts take no forward.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.drafting import Drafting
from fdllm.core.reuse import NoReuse, PeriodicReuse


def strategy(config: StrategyConfig) -> Drafting[int] | NoReuse:
    """The strategy of one config: without ``drafts`` the exact baseline."""
    if not config.params:
        return NoReuse()
    drafts, stop = config.params["drafts"], config.n_layers - 1
    layers = PeriodicReuse(drafts + 1, 1, stop, target="residual", refresh_reuse=True)
    return Drafting(drafter=layers, **config.params)

"""Periodic reuse that a REFRESH takes part in, so that nearly every step may skip.

A REFRESH other than a block's first may reuse like any DENOISE, and the step counter runs on
through it; the skipped layers keep their block-cache K/V. ``target`` is ``output`` or ``residual``.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import PeriodicReuse


def strategy(config: StrategyConfig) -> PeriodicReuse:
    """The strategy of one config of the grid."""
    start, stop = config.bounds
    return PeriodicReuse(config.k, start, stop, refresh_reuse=True, **config.params)

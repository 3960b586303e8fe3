"""No reuse at all: the confidence threshold alone trades accuracy for speed.

The other way to the same speed: a lower threshold unmasks more tokens in a step.
"""

from fdllm.core.config import StrategyConfig
from fdllm.core.reuse import NoReuse


def strategy(config: StrategyConfig) -> NoReuse:  # noqa: ARG001 - the decoding differs, see the toml
    """Every layer of every forward is computed."""
    return NoReuse()

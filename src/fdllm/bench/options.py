"""How long and how much a bench measures."""

from __future__ import annotations

from dataclasses import dataclass

from fdllm.errors import UsageError


@dataclass(frozen=True)
class Options:
    """Settings that every topic shares.

    Attributes:
        repeats: times each figure is measured; the median counts and the range is shown.
        prompt_blocks: blocks of prompt ahead of what is measured.
        new_tokens: tokens that a whole generation makes.
        tokens_per_step: columns unmasked a step.
        requests: requests of the batching load.
        batch_size: rows at once there.
        max_blocks: the longest answer there, in blocks.
        stretch_ms: how long a step is repeated before its floor's turn, at the least once. A
            repeat has several turns, so that a disturbance meets both.
    """

    repeats: int = 5
    prompt_blocks: int = 4
    new_tokens: int = 64
    tokens_per_step: int = 2
    requests: int = 64
    batch_size: int = 8
    max_blocks: int = 8
    stretch_ms: int = 40

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                flag = f"--{name.replace('_', '-')}"
                raise UsageError(f"{flag} must be a whole number, 1 or more; got {value}")

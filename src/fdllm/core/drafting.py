"""Verified decoding (docs/algorithm.md 4.10): states are drafted, and computed whole together.

No torch here: what a strategy says of drafts, and the states of a block that drafts are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic

from fdllm.core.reuse import AnyPlan, LayerPlan, Observation, ReuseStrategy, S
from fdllm.core.schedule import Step
from fdllm.errors import UsageError

_ROUNDING = 1e-7  # of a float32 just below 1


@dataclass(frozen=True)
class Drafting(ReuseStrategy[S], Generic[S]):
    """Texts of plain decoding, several of its steps in one forward.

    States of a row's block are drafted, one behind the other. Then the state at hand and all drafts
    are computed whole, in one forward; as many are kept as the whole model's own unmasking leads
    from one to the next. So nothing that a drafter does can change a text.

    Attributes:
        drafts: states drafted ahead of one forward, at most.
        overhead: what a forward costs ahead of its columns, in columns. A draft is computed where
            that much saved, times the chance that the draft is kept (:func:`chance`), is worth its
            columns; inf where columns are free, as on a device bound by memory: all drafts are.
        drafter: how. Where it never reuses (``NoReuse()``), each next state comes of the last
            whole logits and takes no forward. Else it comes of a forward under the drafter's plan,
            which sees the step counter at 1 for the first draft behind a whole forward, 2 for the
            next, and so on; a plan that computes every layer ends the drafts.

    Raises:
        UsageError: less than one draft is asked for, or the overhead is below 0.
    """

    drafts: int
    drafter: ReuseStrategy[S]
    overhead: float = math.inf
    refresh_reuse: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.drafts < 1:
            raise UsageError(
                f"drafts must be 1 or more; got {self.drafts} (NoReuse() decodes without any)"
            )
        if not self.overhead >= 0:
            raise UsageError(
                f"overhead must be 0 or more columns, inf where columns are free; "
                f"got {self.overhead}"
            )

    @property
    def frees_columns(self) -> bool:
        """Whether columns cost nothing."""
        return math.isinf(self.overhead)

    def pays(self, likely: float, columns: int) -> bool:
        """Whether a draft of so many columns is worth them.

        Args:
            likely: the chance that it is kept, which saves a forward of its own.
            columns: that it feeds.
        """
        return likely >= columns / (columns + self.overhead)

    def init(self, n_layers: int) -> S:
        """The drafter's state."""
        return self.drafter.init(n_layers)

    def plan(self, step: Step, state: S) -> LayerPlan:
        """All layers, always; what the drafter would reuse is stored."""
        return self.drafter.plan(step, state).whole

    def observe(self, step: Step, seen: Observation, state: S) -> S:
        """The drafter sees the steps that were kept."""
        return self.drafter.observe(step, seen, state)

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:
        """The layers that drafts may skip."""
        return self.drafter.layer_subset(n_layers)


def chance(confidence: Sequence[float], threshold: float) -> float:
    """How likely the next step unmasks the columns that the last logits say.

    With u = 1 - confidence and t = 1 - threshold, a column stays on its side of the threshold with
    odds of the larger of u and t to the smaller; where none is above it, the surest column stays so
    with the odds of its 1 / u to the others'. Held against what was kept: tests/test_drafting.py.

    Args:
        confidence: of the masked columns of a sub-block.
        threshold: the decoding's.
    """
    unsure = [max(1.0 - one, _ROUNDING) for one in confidence]
    line = max(1.0 - threshold, 0.0)
    likely = math.prod(max(u, line) / (u + line) for u in unsure)
    surest = min(unsure)
    return likely if surest < line else likely / sum(surest / u for u in unsure)


def saves(plan: AnyPlan) -> bool:
    """Whether a forward under the plan may cost less than a whole one."""
    return not isinstance(plan, LayerPlan) or bool(plan.reuse or plan.partial)


@dataclass(frozen=True)
class BlockState:
    """A block between two steps.

    Attributes:
        tokens: of its columns, the mask token where a column is masked.
        masked: columns that are, ascending.
        width: columns of a sub-block.
    """

    tokens: tuple[int, ...]
    masked: tuple[int, ...]
    width: int

    @cached_property
    def sub_block(self) -> range:
        """Columns of the first sub-block that holds a mask."""
        start = self.masked[0] // self.width * self.width
        return range(start, start + self.width)

    @cached_property
    def todo(self) -> tuple[int, ...]:
        """Its masked columns."""
        return tuple(c for c in self.masked if c in self.sub_block)

    def filled(self, columns: Sequence[int], tokens: Sequence[int]) -> BlockState:
        """The state after some columns were unmasked."""
        new = list(self.tokens)
        for column, token in zip(columns, tokens, strict=True):
            new[column] = token
        masked = tuple(c for c in self.masked if c not in columns)
        return BlockState(tuple(new), masked, self.width)

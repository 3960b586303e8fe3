"""What may be skipped in a forward, and the strategies that decide it.

A strategy is frozen parameters plus a state that goes in and comes out (one state per row of a
batch); the mechanism that skips stands once, in the model's layer loop. No torch here: the same
plans are made on a login node, in the tests' plain reference, and in the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

from fdllm.core.layerplan import AnyPlan, LayerPlan, LayerRun, ProbePlan, Target
from fdllm.core.schedule import Phase, Step
from fdllm.errors import UsageError

__all__ = [
    "SUBSETS",
    "AnyPlan",
    "LayerPlan",
    "LayerRun",
    "NoReuse",
    "Observation",
    "PeriodicReuse",
    "ProbePlan",
    "ReuseStrategy",
    "Target",
    "subset_bounds",
    "subset_overlaps",
]

S = TypeVar("S")
SUBSETS = ("first", "middle", "last")
DEFAULT_SUBSET_SIZE = 12


@dataclass(frozen=True)
class Observation:
    """What a forward and the unmasking after it showed of one row.

    Attributes:
        plan: the layer plan that was carried out; where a probe chose, the one it chose.
        num_masked: masked columns of the sub-block before unmasking.
        num_unmasked: how many of them were unmasked.
        confidence: the confidences of those just unmasked, each in (0, 1].
        change: what a probe measured; None where there was none.
    """

    plan: LayerPlan
    num_masked: int
    num_unmasked: int
    confidence: tuple[float, ...] = ()
    change: float | None = None


class ReuseStrategy(ABC, Generic[S]):
    """Decides, step by step and row by row, which layers are not computed.

    A subclass is a frozen dataclass: its fields are the parameters that go into a run's
    fingerprint. It keeps nothing between calls; what evolves is the state.
    """

    refresh_reuse: bool = False
    """Whether a REFRESH other than a block's first may reuse too."""

    @abstractmethod
    def init(self, n_layers: int) -> S:
        """The state of a row before the first step of a block."""

    @abstractmethod
    def plan(self, step: Step, state: S) -> AnyPlan:
        """The layers that ``step`` computes, reuses and stores.

        A strategy that must look at activations in mid-forward returns a
        :class:`~fdllm.core.layerplan.ProbePlan`.
        """

    def observe(self, step: Step, seen: Observation, state: S) -> S:  # noqa: ARG002
        """The state after ``step``; unchanged unless a subclass looks at what was seen."""
        return state

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """Layers this strategy may ever skip; recorded with every run."""
        return ()

    @property
    def reuses(self) -> bool:
        """Whether a run with these parameters is meant to skip anything at all.

        The guard of docs/algorithm.md 4 compares it with what was counted.
        """
        return True


@dataclass(frozen=True)
class NoReuse(ReuseStrategy[int]):
    """Every layer of every forward is computed."""

    def init(self, n_layers: int) -> int:
        """The state is the number of layers, which is all a plan needs."""
        return n_layers

    def plan(self, step: Step, state: int) -> LayerPlan:  # noqa: ARG002
        """All layers, always."""
        return LayerPlan(state)

    @property
    def reuses(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class PeriodicReuse(ReuseStrategy[int]):
    """Recompute a run of layers every ``k``-th step and reuse it in between (docs/algorithm.md 4).

    Attributes:
        k: reuse period; a step recomputes where ``step.index % k == 0``, so 1 never reuses.
        start: first layer of the subset.
        stop: one past its last layer.
        target: what is stored, see :class:`LayerRun`.
        refresh_reuse: whether the steps of a REFRESH that is not a block's first may reuse too.
    """

    k: int
    start: int
    stop: int
    target: Target = "output"
    refresh_reuse: bool = False

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"reuse period k must be 1 or more; got {self.k}")

    def init(self, n_layers: int) -> int:
        """The state is the number of layers.

        Raises:
            UsageError: the subset does not fit the model.
        """
        if not 0 <= self.start < self.stop <= n_layers:
            raise UsageError(
                f"layers {self.start}..{self.stop - 1} do not fit a model of {n_layers} layers; "
                "set subset_size in experiment.toml"
            )
        return n_layers

    def plan(self, step: Step, state: int) -> LayerPlan:
        """Reuse the subset on every step that is not a multiple of ``k``; else store it."""
        if self.k == 1:
            return LayerPlan(state)
        run = (LayerRun(self.start, self.stop, self.target),)
        may_reuse = step.phase is Phase.DENOISE or (self.refresh_reuse and not step.first)
        if may_reuse and step.index % self.k != 0:
            return LayerPlan(state, reuse=run)
        return LayerPlan(state, store=run)

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """The layers of the run, also at k = 1, where they name the cell."""
        return tuple(range(self.start, self.stop))

    @property
    def reuses(self) -> bool:
        """Whether k asks for any reuse."""
        return self.k > 1


def subset_bounds(subset: str, n_layers: int, size: int | None = None) -> tuple[int, int]:
    """Layers ``start, stop`` of a named subset (docs/algorithm.md 4).

    ``first`` starts at layer 1, because layer 0 is never reused; ``middle`` at
    ``n_layers // 2 - size // 2``; ``last`` ends with the last layer.

    Args:
        subset: ``first``, ``middle`` or ``last``.
        n_layers: layers of the model.
        size: layers in the subset; 12 where None, a third of the model where that has fewer than
            24 layers.

    Raises:
        UsageError: the name is unknown, or the size leaves no room beside layer 0.
    """
    if subset not in SUBSETS:
        raise UsageError(f"unknown layer subset '{subset}'; choose one of {', '.join(SUBSETS)}")
    if size is None:
        size = DEFAULT_SUBSET_SIZE if n_layers >= 2 * DEFAULT_SUBSET_SIZE else n_layers // 3
    if not 1 <= size < n_layers:
        raise UsageError(
            f"subset_size must be between 1 and {n_layers - 1} for a model of {n_layers} layers; "
            f"got {size}"
        )
    start = {"first": 1, "middle": n_layers // 2 - size // 2, "last": n_layers - size}[subset]
    return start, start + size


def subset_overlaps(n_layers: int, size: int | None = None) -> list[tuple[str, str, int]]:
    """Pairs of subsets that share layers, with how many they share.

    The three subsets of 28 layers overlap at the default size; status and report say so.
    """
    bounds = {name: subset_bounds(name, n_layers, size) for name in SUBSETS}
    pairs = []
    for i, left in enumerate(SUBSETS):
        for right in SUBSETS[i + 1 :]:
            start = max(bounds[left][0], bounds[right][0])
            stop = min(bounds[left][1], bounds[right][1])
            if stop > start:
                pairs.append((left, right, stop - start))
    return pairs

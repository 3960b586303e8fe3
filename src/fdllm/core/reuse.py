"""What may be skipped in a forward, and the strategies that decide it.

A plan says what one forward does with each layer: plain, hashable data. A strategy is frozen
parameters plus a state that goes in and comes out (one state per row of a batch); the mechanism
that skips stands once, in the model's layer loop. No torch here: the same plans are made on a login
node, in the tests' plain reference, and in the engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import zip_longest
from typing import Generic, Literal, TypeVar

from fdllm.core.schedule import Phase, Step
from fdllm.errors import UsageError

S = TypeVar("S")
SUBSETS = ("first", "middle", "last")
DEFAULT_SUBSET_SIZE = 12
Target = Literal["output", "residual"]


@dataclass(frozen=True, order=True)
class LayerRun:
    """Adjacent layers ``start .. stop - 1`` that are skipped, or stored, as one.

    Attributes:
        start: first layer of the run.
        stop: one past its last layer.
        target: ``output`` stores the hidden state behind the run; ``residual`` stores the hidden
            state behind it minus the one ahead of it, and adds that to what comes in.
        keep: computed values that are kept, 1 or 2; the older one is for extrapolation.
        extrapolate: where the run is reused, how far to go on in a straight line: the value is
            ``new + extrapolate * (new - old)``. Needs ``keep=2``.
        columns: where the run is computed in part, the block's columns that are; the others take
            what is stored for them.
    """

    start: int
    stop: int
    target: Target = "output"
    keep: int = 1
    extrapolate: float = 0.0
    columns: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.keep not in (1, 2) or (self.extrapolate and self.keep == 1):
            raise ValueError(f"extrapolation keeps two values; got keep={self.keep} in {self}")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def key(self) -> tuple[int, int, Target, int]:
        """Where its values are kept: runs that differ in what they ask for share it."""
        return self.start, self.stop, self.target, self.keep


@dataclass(frozen=True)
class LayerPlan:
    """What one forward does with each layer. Hashable: it may key a compiled graph.

    Attributes:
        n_layers: layers of the model.
        reuse: runs that are not computed; their stored values take their place.
        store: runs that are computed and whose value is kept for later steps.
        partial: runs that are computed for some columns only, see :attr:`LayerRun.columns`; what
            is computed is kept.

    Raises:
        ValueError: runs overlap, are empty, or leave the model.
    """

    n_layers: int
    reuse: tuple[LayerRun, ...] = ()
    store: tuple[LayerRun, ...] = ()
    partial: tuple[LayerRun, ...] = ()

    def __post_init__(self) -> None:
        end = 0
        for run in self.runs:
            if not end <= run.start < run.stop <= self.n_layers:
                raise ValueError(
                    f"layer runs must be disjoint, non-empty and inside 0..{self.n_layers - 1}; "
                    f"got reuse={self.reuse}, store={self.store}, partial={self.partial}"
                )
            end = run.stop

    @cached_property
    def runs(self) -> tuple[LayerRun, ...]:
        """All runs, in the order of the layers."""
        return tuple(sorted((*self.reuse, *self.store, *self.partial)))

    @cached_property
    def num_reused(self) -> int:
        """Layer calls this plan saves."""
        return sum(len(run) for run in self.reuse)

    @cached_property
    def num_computed(self) -> int:
        """Layer calls this plan makes, in whole or in part."""
        return self.n_layers - self.num_reused

    def trimmed(self, width: int) -> float:
        """Layer calls that partial runs save of a forward of ``width`` columns, as a fraction."""
        return sum(len(run) * (width - len(run.columns)) / width for run in self.partial)


@dataclass(frozen=True)
class ProbePlan:
    """A plan that is chosen in mid-forward, by how much one layer's residual has changed.

    Layers up to and including ``layer`` are computed. Then the residual of that layer is compared
    with the one stored when the skipped layers were last computed: where it changed by less than
    ``threshold`` (the norm of the difference by the norm of the stored one, over the forward's
    columns), ``calm`` goes on, else ``otherwise``, and the residual is stored anew.

    Attributes:
        layer: the probe.
        threshold: relative change below which the step is calm.
        calm: the plan of a calm step; its runs lie behind the probe.
        otherwise: the plan of any other step; its runs lie behind the probe too.

    Raises:
        ValueError: a run lies ahead of the probe, or the plans are of different models.
    """

    layer: int
    threshold: float
    calm: LayerPlan
    otherwise: LayerPlan

    def __post_init__(self) -> None:
        ahead = [r for r in (*self.calm.runs, *self.otherwise.runs) if r.start <= self.layer]
        if ahead or self.calm.n_layers != self.otherwise.n_layers:
            raise ValueError(f"runs must lie behind the probe at layer {self.layer}; got {self}")

    @property
    def run(self) -> LayerRun:
        """The probe's own run; a step that stores the skipped layers must store it too."""
        return LayerRun(self.layer, self.layer + 1, "residual")


AnyPlan = LayerPlan | ProbePlan


StepKind = Literal["compute", "reuse", "partial"]


@dataclass(frozen=True)
class PlanStep:
    """A stretch of the layer loop.

    Attributes:
        kind: layers to compute, one run to take from what is stored, or one to compute in part.
        start: its first layer.
        stop: one past its last.
        run: the run that is stored, reused or computed in part; None where nothing is kept.
        kv_only: the output of the last layer reaches nothing; only its keys and values are owed.
    """

    kind: StepKind
    start: int
    stop: int
    run: LayerRun | None = None
    kv_only: bool = False


@lru_cache(maxsize=4096)
def plan_steps(plan: LayerPlan, first: int = 0) -> tuple[PlanStep, ...]:
    """A plan from layer ``first`` on, cut into the steps of the layer loop: one a run, not a layer.

    Nothing ahead of a reused *output* reaches the logits: a run that stands right ahead of one is
    not read at all, and of computed layers right ahead of one the last gives only its keys and
    values.
    """
    steps: list[PlanStep] = []
    at = first
    for run in plan.runs:
        if at < run.start:
            steps.append(PlanStep("compute", at, run.start))
        kind: StepKind = "reuse" if run in plan.reuse else "compute"
        kind = "partial" if run in plan.partial else kind
        steps.append(PlanStep(kind, run.start, run.stop, run))
        at = run.stop
    if at < plan.n_layers:
        steps.append(PlanStep("compute", at, plan.n_layers))
    out: list[PlanStep] = []
    for step, after in zip_longest(steps, steps[1:]):
        reused = None if after is None or after.kind != "reuse" else after.run
        replaced = reused is not None and reused.target == "output"
        if not (replaced and step.kind == "reuse"):
            out.append(replace(step, kv_only=replaced and step.run is None))
    return tuple(out)


@dataclass(frozen=True)
class Observation:
    """What a forward and the unmasking after it showed of one row.

    Attributes:
        plan: the layer plan that was carried out; where a probe chose, the one it chose.
        confidences: for each of the block's columns that was masked and read (where text is
            generated, those of the sub-block), left to right, the confidence in (0, 1].
        unmasked: those of the columns that were unmasked then, ascending.
        change: what a probe measured; None where there was none.
    """

    plan: LayerPlan
    confidences: Mapping[int, float]
    unmasked: tuple[int, ...]
    change: float | None = None

    @property
    def num_masked(self) -> int:
        """Masked columns that were read."""
        return len(self.confidences)

    @property
    def num_unmasked(self) -> int:
        """How many of them were unmasked."""
        return len(self.unmasked)

    @property
    def confidence(self) -> tuple[float, ...]:
        """The confidences of those that were unmasked, left to right."""
        return tuple(self.confidences[column] for column in self.unmasked)


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
        :class:`~fdllm.core.reuse.ProbePlan`.
        """

    def observe(self, step: Step, seen: Observation, state: S) -> S:  # noqa: ARG002
        """The state after ``step``; unchanged unless a subclass looks at what was seen."""
        return state

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """Layers this strategy may ever skip; recorded with every run."""
        return ()

    @property
    def reuses(self) -> bool:
        """Whether a run with these parameters is meant to skip, or to draft, anything at all.

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

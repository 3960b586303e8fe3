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
from typing import Generic, Literal, TypeVar, get_args

from fdllm.core.schedule import Phase, Step
from fdllm.errors import FdllmError, UsageError

S = TypeVar("S")
Target = Literal["output", "residual", "identity"]
LayerPart = Literal["feed_forward", "attention", "received"]
"""What is kept of the inside of one layer."""


class NeverWrittenError(FdllmError):
    """A step asked for stored values, or keys and values, that no step of the block has made."""


@dataclass(frozen=True, order=True)
class LayerRun:
    """Adjacent layers ``start .. stop - 1`` that are skipped, or stored, as one.

    Attributes:
        start: first layer of the run.
        stop: one past its last layer.
        target: ``output`` stores the hidden state behind the run; ``residual`` stores the hidden
            state behind it minus the one ahead of it, and adds that to what comes in. ``identity``
            stores nothing: where such a run is reused its layers are left out, and what comes in
            goes on. ``feed_forward`` stores what the feed-forward of one layer adds; computed in
            part, attention is whole and the feed-forward of the other columns is left out.
        keep: computed values that are kept, 1 or 2; the older one is for extrapolation.
        extrapolate: where the run is reused, how far to go on in a straight line: the value is
            ``new + extrapolate * (new - old)``. Needs ``keep=2``.
        columns: where the run is computed in part, the block's columns that are; the others take
            what is stored for them.
        watch: what is kept besides of a run of one layer, so that a later step can tell how much
            attention has changed: its ``output``, ahead of the projection; or that and the
            ``share`` of attention that each column of the block received.
    """

    start: int
    stop: int
    target: Target | LayerPart = "output"
    keep: int = 1
    extrapolate: float = 0.0
    columns: tuple[int, ...] = ()
    watch: Literal["", "output", "share"] = ""

    def __post_init__(self) -> None:
        if self.keep not in (1, 2) or (self.extrapolate and self.keep == 1):
            raise ValueError(f"extrapolation keeps two values; got keep={self.keep} in {self}")
        if (self.watch or self.target in get_args(LayerPart)) and len(self) != 1:
            raise ValueError(f"the inside of a layer is that of one; got {self}")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def watched(self) -> tuple[LayerRun, ...]:
        """Where attention's output is kept, and the shares that columns received."""
        parts: tuple[LayerPart, ...] = ("attention", "received")
        count = ("", "output", "share").index(self.watch)
        return tuple(LayerRun(self.start, self.stop, part) for part in parts[:count])

    @property
    def key(self) -> tuple[int, int, str, int]:
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
        ValueError: runs overlap, are empty, or leave the model; a run of target ``identity`` is to
            be stored.
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
        if any(run.target == "identity" for run in (*self.store, *self.partial)):
            raise ValueError(f"an identity stores nothing, so it can only be reused; got {self}")
        if any(run.target == "feed_forward" for run in self.reuse):
            raise ValueError(f"a feed-forward is left out in part; got {self}")

    @property
    def leaves_out(self) -> bool:
        """Whether layers may be left out, so that they owe keys and values."""
        return any(run.target == "identity" for run in self.reuse)

    @property
    def whole(self) -> LayerPlan:
        """The plan that computes every layer and stores all that this one reuses or stores."""
        runs = (run for run in self.runs if run.target != "identity")
        kept = tuple(replace(run, columns=(), extrapolate=0.0) for run in runs)
        return LayerPlan(self.n_layers, store=kept)

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

    def trimmed(self, width: int, feed_forward: float = 1.0) -> float:
        """Layer calls that partial runs save of a forward of ``width`` columns, as a fraction.

        ``feed_forward`` is what a layer without its feed-forward saves of a call.
        """
        deep = {r: feed_forward if r.target == "feed_forward" else len(r) for r in self.partial}
        return sum(layers * (width - len(run.columns)) / width for run, layers in deep.items())


class GuidedPlan(ABC):
    """A plan that is decided in mid-forward, by activations; frozen and hashable like any other.

    A forward under it holds one row. The kinds stand in :mod:`fdllm.core.guided_plans`;
    :mod:`fdllm.core.guided` carries them out, and says to which :class:`LayerPlan` each came.
    """

    @property
    def ahead(self) -> int:
        """Layers that are computed for all columns ahead of the decision, whatever it is."""
        return 0

    @property
    def leaves_out(self) -> bool:
        """Whether layers may be left out, as :attr:`LayerPlan.leaves_out`."""
        return False

    @property
    @abstractmethod
    def whole(self) -> LayerPlan:
        """The plan of a forward that computes every layer and stores what this one reads."""

    @abstractmethod
    def moved(self, carried: LayerPlan, columns: int) -> int:
        """Hidden states that deciding reads and writes, beyond those that ``carried`` moves.

        Args:
            carried: the plan that it came to.
            columns: of the forward.
        """


AnyPlan = LayerPlan | GuidedPlan


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

    A run that is left out is no step: what comes in goes on to the next.
    Nothing ahead of a reused *output* reaches the logits: a run that stands right ahead of one is
    not read at all, and of computed layers right ahead of one the last gives only its keys and
    values.
    """
    steps: list[PlanStep] = []
    at = first
    for run in (run for run in plan.runs if run.start >= first):
        if at < run.start:
            steps.append(PlanStep("compute", at, run.start))
        at = run.stop
        if run.target == "identity":
            continue
        kind: StepKind = "reuse" if run in plan.reuse else "compute"
        kind = "partial" if run in plan.partial else kind
        steps.append(PlanStep(kind, run.start, run.stop, run))
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
        plan: the layer plan that was carried out; where one was guided, what it came to.
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
        :class:`~fdllm.core.reuse.GuidedPlan`.
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


def plan_step(strategy: ReuseStrategy[S], step: Step, state: S) -> AnyPlan:
    """A strategy's plan for a step.

    Raises:
        NeverWrittenError: it leaves layers out of a block's first forward. Every other one finds
            the keys and values of all layers and columns, as that one has made them.
    """
    plan = strategy.plan(step, state)
    if step.first and plan.leaves_out:
        raise NeverWrittenError(
            "layers were to be left out of a block's first forward, and their keys and values "
            "would never be written; the strategy must compute every layer there (step.first)"
        )
    return plan


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
        reuse = LayerPlan(state, reuse=(LayerRun(self.start, self.stop, self.target),))
        may_reuse = step.phase is Phase.DENOISE or (self.refresh_reuse and not step.first)
        return reuse if may_reuse and step.index % self.k != 0 else reuse.whole

    def layer_subset(self, n_layers: int) -> tuple[int, ...]:  # noqa: ARG002
        """The layers of the run, also at k = 1, where they name the cell."""
        return tuple(range(self.start, self.stop))

    @property
    def reuses(self) -> bool:
        """Whether k asks for any reuse."""
        return self.k > 1

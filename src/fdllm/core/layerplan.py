"""What one forward does with each layer. Plain, hashable data: no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import zip_longest
from typing import Literal

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

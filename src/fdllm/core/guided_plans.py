"""Plans that are decided in mid-forward (docs/algorithm.md 4.7): what each looks at. No torch.

:mod:`fdllm.core.guided` carries them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fdllm.core.reuse import GuidedPlan, LayerPlan, LayerRun


@dataclass(frozen=True)
class ProbePlan(GuidedPlan):
    """A plan that is chosen by how much one layer's residual has changed.

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

    @property
    def ahead(self) -> int:
        """Layers up to the probe."""
        return self.layer + 1

    @property
    def leaves_out(self) -> bool:
        """Whether either plan may."""
        return self.calm.leaves_out or self.otherwise.leaves_out

    @property
    def whole(self) -> LayerPlan:
        """The probe's run is stored beside those of the plan of a step that is not calm."""
        then = self.otherwise.whole
        return replace(then, store=(self.run, *then.store))

    def moved(self, carried: LayerPlan, columns: int) -> int:
        """The probe's residual is read, and stored on a step that is not calm."""
        return columns * (1 + (carried == self.otherwise))


@dataclass(frozen=True)
class GatePlan(GuidedPlan):
    """A plan that leaves a layer out where its input is nearly that of the layer before.

    Nearly is a cosine above ``threshold``: of each of the forward's columns, averaged over them. A
    layer that is left out hands its input on, so that the next one's cosine is 1 and ``most``
    alone ends a row of them. What is skipped is known once the forward is done, and it changes
    what later layers see: a lower threshold may skip less.

    Attributes:
        n_layers: layers of the model.
        threshold: cosine above which a layer is left out, at least 1 for none.
        first: layers at the beginning that never are.
        most: layers that are left out in a row, at most; then one is computed.

    Raises:
        ValueError: ``first`` or ``most`` is below 1.
    """

    n_layers: int
    threshold: float
    first: int = 2
    most: int = 3

    def __post_init__(self) -> None:
        if min(self.first, self.most) < 1:
            raise ValueError(f"first and most must be 1 or more; got {self}")

    @property
    def leaves_out(self) -> bool:
        """It may."""
        return True

    @property
    def whole(self) -> LayerPlan:
        """Nothing is stored."""
        return LayerPlan(self.n_layers)

    def moved(self, carried: LayerPlan, columns: int) -> int:  # noqa: ARG002
        """Nothing: what is compared is at hand."""
        return 0


@dataclass(frozen=True)
class ScorePlan(GuidedPlan):
    """A plan that goes on with ever fewer columns, the highest scores of each stage.

    Layers are cut into stages. Behind each but the last every column that was computed in it is
    scored: ``weight`` times its confidence, and the rest times the change of its hidden state since
    the last step that computed it (mean absolute difference by the root mean square of the old one,
    by the largest of the columns where that is above 1). As large a share of the forward's columns
    as ``shares`` says goes on, at least one; the ``always`` most confident ones go on ahead of the
    others. A column that is dropped takes the hidden state behind the last layer from the last step
    that computed it, and its keys and values stay what they were.

    Attributes:
        n_layers: layers of the model.
        stops: for each stage but the last, one past its last layer, ascending.
        shares: for each of them, the share of the forward's columns that goes on.
        confidence: for each of the forward's columns, what it told last, 0 where it told nothing.
        always: columns that always go on.
        weight: of confidence, in [0, 1].

    Raises:
        ValueError: stages are empty, out of order or leave the model, or a share is not in (0, 1].
    """

    n_layers: int
    stops: tuple[int, ...]
    shares: tuple[float, ...]
    confidence: tuple[float, ...]
    always: int = 2
    weight: float = 0.5

    def __post_init__(self) -> None:
        ends = (0, *self.stops, self.n_layers)
        if len(self.shares) != len(self.stops) or any(b <= a for a, b in pairwise(ends)):
            raise ValueError(f"each stage has layers, and all but the last a share; got {self}")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares must be above 0 and at most 1; got {self.shares}")

    @property
    def runs(self) -> tuple[LayerRun, ...]:
        """The stages; the hidden state behind each is stored."""
        return tuple(LayerRun(a, b) for a, b in pairwise((0, *self.stops, self.n_layers)))

    @property
    def whole(self) -> LayerPlan:
        """Every stage is stored."""
        return LayerPlan(self.n_layers, store=self.runs)

    def kept(self, stage: int, columns: Sequence[int], change: Sequence[float]) -> tuple[int, ...]:
        """Where in ``columns`` those stand that go on behind a stage, ascending.

        Args:
            stage: its number.
            columns: computed in it, counted from the forward's first.
            change: of each the change of its hidden state, as above but for the largest.
        """
        sure, most = [self.confidence[c] for c in columns], max(*change, 1.0)
        everywhere = range(len(columns))
        told = [i for i in everywhere if sure[i] > 0]
        always = sorted(told, key=lambda i: -sure[i])[: self.always]

        def score(i: int) -> tuple[bool, float]:
            return i in always, self.weight * sure[i] + (1 - self.weight) * change[i] / most

        count = max(1, round(self.shares[stage] * len(self.confidence)))
        return tuple(sorted(sorted(everywhere, key=score, reverse=True)[:count]))

    def moved(self, carried: LayerPlan, columns: int) -> int:
        """Behind a stage old states are read of the columns that it computed, and of no others."""
        more = columns
        for run, after in pairwise(carried.partial):
            # A plan that is no guided one reads all columns, unless the same ones go on.
            more += len(run.columns) - columns * (run.columns != after.columns)
        return more

"""Plans that are decided in mid-forward (docs/algorithm.md 4.7): what each looks at. No torch.

:mod:`fdllm.core.guided` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

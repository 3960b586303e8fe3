"""Plans that look behind a layer's attention, and decide there what is computed. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from fdllm.core.reuse import GuidedPlan, LayerPlan, LayerRun


@dataclass(frozen=True)
class SalientPlan(GuidedPlan):
    """A column whose attention is nearly what it was takes its stored feed-forward.

    In layers ``start .. stop - 1`` attention is computed for all columns. Where the cosine between
    a column's output of it, ahead of the projection, and that of the last step exceeds
    ``threshold``, what its feed-forward last added is added again. (DyLLM, arXiv 2603.08026.)

    Attributes:
        n_layers: layers of the model.
        start: first of these layers.
        stop: one past the last.
        threshold: the cosine.
    """

    n_layers: int
    start: int
    stop: int
    threshold: float

    @cached_property
    def runs(self) -> tuple[LayerRun, ...]:
        """The layers, one by one."""
        return tuple(
            LayerRun(layer, layer + 1, "feed_forward", watch="output")
            for layer in range(self.start, self.stop)
        )

    @property
    def ahead(self) -> int:
        """Layers ahead of the first."""
        return self.start

    @property
    def whole(self) -> LayerPlan:
        """Every feed-forward is computed, and kept with attention's output."""
        return LayerPlan(self.n_layers, store=self.runs)

    def moved(self, carried: LayerPlan, columns: int) -> int:
        """Attention's last output of every column, in each layer."""
        return columns * len(carried.partial)


@dataclass(frozen=True)
class DriftPlan(GuidedPlan):
    """Few columns are computed, and all of them from the layer on at which attention has drifted.

    Layer 0 is computed for all columns. Then ``columns``, those that are read and each layer's most
    attended one of ``candidates`` go on alone; the others' keys and values stay as they are. At the
    first layer where the most attended column's attention (its output, ahead of the projection)
    has a cosine below ``threshold`` with the last that was computed, all columns take up again, the
    others from what is stored. The last layer is computed for all of them, whatever happens.
    (Elastic-Cache, arXiv 2510.14973.)

    Attributes:
        n_layers: layers of the model.
        threshold: the cosine; the paper's gamma.
        columns: the block's columns that may have changed.
        candidates: those that have not, at least one; of them a layer's most attended column is
            the one that received most of its attention when that layer was last computed.

    Raises:
        ValueError: there is no candidate.
    """

    n_layers: int
    threshold: float
    columns: tuple[int, ...]
    candidates: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError(f"drift is measured on a column that has not changed; got {self}")

    @cached_property
    def runs(self) -> tuple[LayerRun, ...]:
        """The layers between the first and the last, one by one."""
        return tuple(
            LayerRun(layer, layer + 1, watch="share") for layer in range(1, self.n_layers - 1)
        )

    @property
    def ahead(self) -> int:
        """The first layer."""
        return 1

    @property
    def whole(self) -> LayerPlan:
        """Every layer's output is kept, with its attention's."""
        return LayerPlan(self.n_layers, store=self.runs)

    def moved(self, carried: LayerPlan, columns: int) -> int:  # noqa: ARG002
        """One column's attention in each layer that was tested."""
        return len(carried.partial)

    def carried(self, columns: tuple[int, ...], tested: int) -> LayerPlan:
        """The plan that it came to, where ``tested`` layers were computed for ``columns`` alone."""
        few = tuple(replace(run, columns=columns) for run in self.runs[:tested])
        return LayerPlan(self.n_layers, partial=few, store=self.runs[tested:])

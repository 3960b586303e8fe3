"""Plans that are decided in mid-forward, carried out on one row (docs/algorithm.md 4.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

from torch import Tensor

from fdllm.core.decoder_layer import Backend
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.layer_loop import Forwarded, LayerLoop
from fdllm.core.layer_output_cache import LayerOutputCache
from fdllm.core.reuse import GuidedPlan, plan_steps


@dataclass(frozen=True)
class RowForward:
    """A forward of one row, ahead of its first layer."""

    loop: LayerLoop
    ids: Tensor  # the row's tokens, [columns]
    backend: Backend  # of the cache
    batch: ForwardBatch  # one window of one row
    read: Sequence[int]  # columns whose hidden states are wanted, as indices into ``ids``

    @property
    def window(self) -> Window:
        """Its window."""
        return self.batch.alone

    @property
    def outputs(self) -> LayerOutputCache:
        """What runs have stored."""
        return self.backend.cache.outputs


@singledispatch
def carry_out(plan: GuidedPlan, _: RowForward) -> Forwarded:
    """A forward under a plan that is decided on the way, on the host; each kind stands below.

    Returns:
        Hidden states, and the layer plan that it came to: counts, cost and trace follow from that.

    Raises:
        NeverWrittenError: a value is read that was never stored.
    """
    raise TypeError(f"nothing carries out {plan}")


@carry_out.register
def _probe(plan: ProbePlan, at: RowForward) -> Forwarded:
    loop, outputs, window = at.loop, at.outputs, at.window
    outputs.check(plan.run, window.rows, window.columns)
    at.backend.prepare(at.batch)
    before = loop.compute(loop.embed(at.ids), 0, plan.layer, at.backend)
    x = loop.layers[plan.layer](before, at.backend)
    fresh = (x - before)[None]  # [rows, columns, hidden]
    stored = outputs.read(plan.run, window.rows, window.columns)
    change = float((fresh - stored).norm() / stored.norm())
    chosen = plan.calm if change < plan.threshold else plan.otherwise
    if chosen is plan.otherwise:
        outputs.note(plan.run, window.rows, window.columns)
        outputs.write(plan.run, window.rows, window.columns, fresh)
    steps = plan_steps(chosen, plan.ahead)
    outputs.book(steps, at.batch)
    hidden = loop.run(x, steps, at.backend, at.batch, at.read)
    return Forwarded(loop.norm(hidden), chosen, change)

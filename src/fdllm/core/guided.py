"""Plans that are decided in mid-forward, carried out on one row (docs/algorithm.md 4.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.attention_plans import DriftPlan, SalientPlan
from fdllm.core.decoder_layer import Backend
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.guided_plans import GatePlan, ProbePlan, ScorePlan
from fdllm.core.layer_loop import Forwarded, LayerLoop, chosen_columns
from fdllm.core.layer_output_cache import LayerOutputCache
from fdllm.core.reuse import GuidedPlan, LayerPlan, LayerRun, PlanStep, plan_steps


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

    def begin(self, layers: int = 0) -> Tensor:
        """Hidden states behind the first ``layers``, [columns, hidden]."""
        self.backend.prepare(self.batch)
        return self.loop.compute(self.loop.embed(self.ids), 0, layers, self.backend)

    def finish(
        self, x: Tensor, carried: LayerPlan, layer: int, change: float | None = None
    ) -> Forwarded:
        """Carry out what is left of ``carried`` from ``layer`` on, at all columns."""
        steps = plan_steps(carried, layer)
        self.outputs.book(steps, self.batch)
        hidden = self.loop.run(x, steps, self.backend, self.batch, self.read)
        return Forwarded(self.loop.norm(hidden), carried, change)


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
    outputs, window = at.outputs, at.window
    outputs.check(plan.run, window.rows, window.columns)
    before = at.begin(plan.layer)
    x = at.loop.layers[plan.layer](before, at.backend)
    fresh = (x - before)[None]  # [rows, columns, hidden]
    stored = outputs.read(plan.run, window.rows, window.columns)
    change = float((fresh - stored).norm() / stored.norm())
    chosen = plan.calm if change < plan.threshold else plan.otherwise
    if chosen is plan.otherwise:
        outputs.note(plan.run, window.rows, window.columns)
        outputs.write(plan.run, window.rows, window.columns, fresh)
    return at.finish(x, chosen, plan.ahead, change)


@carry_out.register
def _salient(plan: SalientPlan, at: RowForward) -> Forwarded:
    outputs, window, part = at.outputs, at.window, list[LayerRun]()
    x = at.begin(plan.ahead)
    for run in plan.runs:
        [attention] = run.watched
        outputs.check(attention, window.rows, window.columns)
        last = outputs.read(attention, window.rows, window.columns)[0].clone()

        def choose(mixed: Tensor, last: Tensor = last, run: LayerRun = run) -> tuple[int, ...]:
            likeness = F.cosine_similarity(mixed.float(), last.float(), dim=-1).tolist()
            told = zip(window.columns[0], likeness, strict=True)
            columns = tuple(column for column, like in told if not like > plan.threshold)
            part.append(replace(run, columns=columns))
            outputs.book([PlanStep("partial", run.start, run.stop, part[-1])], at.batch)
            return columns

        x = at.loop.feed_in_part(x, run, at.backend, at.batch, choose)
    return at.finish(x, LayerPlan(plan.n_layers, partial=tuple(part)), plan.stop)


@carry_out.register
def _drift(plan: DriftPlan, at: RowForward) -> Forwarded:
    outputs, window, tested = at.outputs, at.window, 0
    rows, first = window.rows, window.first_columns[0]
    x = at.begin(plan.ahead)
    attended = [plan.candidates[i] for i in _most_attended(plan, at)]
    columns = tuple(sorted({*plan.columns, *attended, *(first + i for i in at.read)}))
    few = x[[column - first for column in columns]]
    narrow = replace(window, only=tuple(column - first for column in columns))
    part = ForwardBatch((narrow,))
    at.backend.prepare(part)
    for run, column in zip(plan.runs, attended, strict=True):
        attention = run.watched[0]
        last = outputs.read(attention, rows, [[column]])  # a copy, as of any list of columns
        step = PlanStep("partial", run.start, run.stop, replace(run, columns=columns))
        outputs.book([step], at.batch)
        _, few = at.loop.compute_run(few, run, at.backend, part)
        outputs.write(run, rows, [columns], few[None])
        tested += 1
        now = outputs.read(attention, rows, [[column]])
        if F.cosine_similarity(now.float(), last.float(), dim=-1).item() < plan.threshold:
            break
    at.backend.prepare(at.batch)
    if tested:
        x = outputs.read(plan.runs[tested - 1], rows, window.columns)[0]
    return at.finish(x, plan.carried(columns, tested), plan.ahead + tested)


def _most_attended(plan: DriftPlan, at: RowForward) -> list[int]:
    """Of each layer that may be tested, the place of its most attended candidate."""
    rows, found = at.window.rows, list[Tensor]()
    for run in plan.runs:
        received = run.watched[1]
        at.outputs.check(received, rows, [plan.candidates])
        found.append(at.outputs.read(received, rows, [plan.candidates])[0, :, 0])
    return torch.stack(found).argmax(1).tolist() if found else []


@carry_out.register
def _gate(plan: GatePlan, at: RowForward) -> Forwarded:
    x = before = at.begin()
    skipped, in_a_row, read = list[LayerRun](), 0, at.read
    for layer in range(plan.n_layers):
        gated = layer >= plan.first and in_a_row < plan.most
        if gated and _cosine(x, before) > plan.threshold:
            skipped.append(LayerRun(layer, layer + 1, "identity"))
            before, in_a_row = x, in_a_row + 1
            continue
        in_a_row = 0
        if layer + 1 == plan.n_layers:  # only for the columns that are read
            x, read = at.loop.read(x, layer, at.backend, read), range(len(read))
        else:
            before, x = x, at.loop.layers[layer](x, at.backend)
    hidden = at.loop.norm(chosen_columns(x, read))
    return Forwarded(hidden, LayerPlan(plan.n_layers, reuse=tuple(skipped)))


def _cosine(x: Tensor, y: Tensor) -> float:
    """Of two states of the same columns [columns, hidden], the mean of each column's cosine."""
    return float(F.cosine_similarity(x.float(), y.float(), dim=-1).mean())


@carry_out.register
def _score(plan: ScorePlan, at: RowForward) -> Forwarded:
    outputs, window, runs = at.outputs, at.window, plan.runs
    for run in runs:
        outputs.check(run, window.rows, window.columns)
    x, here, done = at.begin(), tuple(range(window.width)), list[LayerRun]()
    for stage, run in enumerate(runs):
        if stage:
            at.backend.prepare(ForwardBatch((replace(window, only=here),)))
        x = at.loop.compute(x, run.start, run.stop, at.backend)
        columns = tuple(window.first_columns[0] + offset for offset in here)
        old = outputs.read(run, window.rows, [columns])[0].float()  # a copy
        outputs.note(run, window.rows, [columns])
        outputs.write(run, window.rows, [columns], x[None])
        done.append(replace(run, columns=columns))
        if run is not runs[-1]:
            change = (x.float() - old).abs().mean(-1) / old.square().mean(-1).sqrt()
            kept = plan.kept(stage, here, change.tolist())
            here, x = tuple(here[i] for i in kept), x[list(kept)]
    hidden = outputs.read(runs[-1], window.rows, window.columns)[0]
    carried = LayerPlan(plan.n_layers, store=runs[:1], partial=tuple(done[1:]))
    return Forwarded(at.loop.norm(chosen_columns(hidden, at.read)), carried)

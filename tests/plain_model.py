"""One sequence's forward, position by position, for the oracle (reference.py) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fdllm
from fdllm.core.attention_plans import DriftPlan, SalientPlan
from fdllm.core.guided_plans import GatePlan, ProbePlan, ScorePlan
from fdllm.core.reuse import AnyPlan, LayerPlan, LayerRun


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def _rope(x: Tensor, positions: Sequence[int], theta: float) -> Tensor:
    """Rotate-half RoPE of x [tokens, heads, dim]."""
    half = x.shape[-1] // 2
    speed = torch.tensor([theta ** (-j / half) for j in range(half)])
    angle = torch.tensor(list(positions))[:, None, None] * speed
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


@dataclass
class PlainModel:
    """One sequence's forward, position by position; remembers each layer's keys and values."""

    model: fdllm.Model
    block_size: int
    keys: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    values: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    stored: dict[tuple[Any, int], Tensor] = field(default_factory=dict)
    older: dict[tuple[Any, int], Tensor] = field(default_factory=dict)
    # of each layer: attention's last output of a position, and the share a position last received
    attention: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    received: dict[tuple[int, int], float] = field(default_factory=dict)
    carried: LayerPlan | None = None
    change: float | None = None

    def forward(
        self,
        ids: Sequence[int],
        at: int,
        plan: AnyPlan,
        visible: int,
        asked: Sequence[int] = (),
    ) -> Tensor:
        """Logits [len(ids), vocabulary] of tokens at positions ``at ..``; see ``visible`` keys.

        A query sees keys of its own and earlier blocks, below position ``visible``. The plan that
        was carried out and what a probe measured are left in ``carried`` and ``change``. ``asked``
        are the block's columns that are predicted, each by the logits of the one ahead.
        """
        weights = dict(self.model.network.named_parameters())
        positions = list(range(at, at + len(ids)))
        x = weights["embedding.weight"][torch.tensor(list(ids))]
        first, self.change = 0, None
        if isinstance(plan, ProbePlan):
            for layer in range(plan.layer):
                x = self._layer(layer, x, positions, visible)
            before, x = x, self._layer(plan.layer, x, positions, visible)
            key = plan.run.key
            old = torch.stack([self.stored[key, p] for p in positions])
            self.change = float(torch.linalg.norm(x - before - old) / torch.linalg.norm(old))
            calm = self.change < plan.threshold
            if not calm:
                self._store(plan.run, positions, x - before)
            first, plan = plan.layer + 1, plan.calm if calm else plan.otherwise
        elif isinstance(plan, SalientPlan):
            x, plan, first = self._salient(plan, x, positions, visible)
        elif isinstance(plan, DriftPlan):
            x, plan, first = self._drift(plan, x, positions, visible, asked)
        if isinstance(plan, GatePlan):
            x, self.carried = self._gated(x, plan, positions, visible)
        elif isinstance(plan, ScorePlan):
            x, self.carried = self._scored(x, plan, positions, visible)
        else:
            assert isinstance(plan, LayerPlan)
            x, self.carried = self._layers(x, plan, first, positions, visible), plan
        spec = self.model.spec
        x = _norm(x, weights["norm.weight"], spec.rms_norm_eps)
        return x @ weights["head.weight"].T

    def _salient(
        self, plan: SalientPlan, x: Tensor, positions: list[int], visible: int
    ) -> tuple[Tensor, LayerPlan, int]:
        for layer in range(plan.start):
            x = self._layer(layer, x, positions, visible)
        block, part = positions[0] // self.block_size * self.block_size, []
        for layer in range(plan.start, plan.stop):
            old = {p: self.attention[layer, p] for p in positions}
            behind = self._behind_attention(layer, x, positions, visible)
            new = [
                p for p in positions if not _cos(self.attention[layer, p], old[p]) > plan.threshold
            ]
            columns = tuple(p - block for p in new)
            part.append(LayerRun(layer, layer + 1, "feed_forward", columns=columns, watch="output"))
            x = self._fed(part[-1], behind, positions, new)
        return x, LayerPlan(plan.n_layers, partial=tuple(part)), plan.stop

    def _drift(
        self, plan: DriftPlan, x: Tensor, positions: list[int], visible: int, asked: Sequence[int]
    ) -> tuple[Tensor, LayerPlan, int]:
        x = self._layer(0, x, positions, visible)
        block, inner = (
            positions[0] // self.block_size * self.block_size,
            range(1, plan.n_layers - 1),
        )
        most = {
            layer: max(plan.candidates, key=lambda c: (self.received[layer, block + c], -c))
            for layer in inner
        }
        columns = tuple(sorted({*plan.columns, *most.values(), *(c - 1 for c in asked)}))
        few = [block + c for c in columns]
        y = x[[positions.index(p) for p in few]]
        part = list[LayerRun]()
        for layer in inner:
            at = (layer, block + most[layer])
            old = self.attention[at]
            y = self._layer(layer, y, few, visible)
            part.append(LayerRun(layer, layer + 1, columns=columns, watch="share"))
            self._store(part[-1], few, y)
            if _cos(self.attention[at], old) < plan.threshold:
                break
        x = torch.stack([self.stored[part[-1].key, p] for p in positions])
        rest = tuple(LayerRun(i, i + 1, watch="share") for i in inner if i > len(part))
        carried = LayerPlan(plan.n_layers, partial=tuple(part), store=rest)
        return x, carried, 1 + len(part)

    def _fed(self, run: LayerRun, x: Tensor, positions: list[int], here: list[int]) -> Tensor:
        """Behind a layer whose feed-forward is computed at the positions ``here`` alone."""
        if here:
            y = x[[positions.index(p) for p in here]]
            self._store(run, here, self._feed(run.start, y) - y)
        return x + torch.stack([self._value(run, p) for p in positions])

    def _layers(
        self, x: Tensor, plan: LayerPlan, layer: int, positions: list[int], visible: int
    ) -> Tensor:
        runs = {run.start: run for run in plan.runs}
        while layer < plan.n_layers:
            run = runs.get(layer)
            if run is None:
                x = self._layer(layer, x, positions, visible)
                layer += 1
                continue
            if run.target == "identity":
                layer = run.stop
                continue
            here = list(positions)
            if run in plan.reuse:
                here = []
            elif run in plan.partial:
                block = positions[0] // self.block_size * self.block_size
                here = [p for p in positions if p - block in run.columns]
            if run.target == "feed_forward":
                x = self._behind_attention(run.start, x, positions, visible)
                x, layer = self._fed(run, x, positions, here), run.stop
                continue
            y = x
            if here:
                pick = [positions.index(p) for p in here]
                y = x[pick]
                for inner in range(run.start, run.stop):
                    y = self._layer(inner, y, here, visible)
                self._store(run, here, y if run.target == "output" else y - x[pick])
            if len(here) == len(positions) and run.target == "output":
                x = y
            else:
                kept = torch.stack([self._value(run, p) for p in positions])
                x = kept if run.target == "output" else x + kept
            layer = run.stop
        return x

    def _gated(
        self, x: Tensor, plan: GatePlan, positions: list[int], visible: int
    ) -> tuple[Tensor, LayerPlan]:
        inputs, skipped = [x], list[int]()
        for layer in range(plan.n_layers):
            row = set(range(layer - plan.most, layer))
            nearly = False
            if layer >= plan.first and not row <= set(skipped):
                a, b = inputs[-2], inputs[-1]
                cosines = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
                nearly = float(cosines.sum()) / len(positions) > plan.threshold
            if nearly:
                skipped.append(layer)
            else:
                x = self._layer(layer, x, positions, visible)
            inputs.append(x)
        runs = tuple(LayerRun(layer, layer + 1, "identity") for layer in skipped)
        return x, LayerPlan(plan.n_layers, reuse=runs)

    def _scored(
        self, x: Tensor, plan: ScorePlan, positions: list[int], visible: int
    ) -> tuple[Tensor, LayerPlan]:
        block = positions[0] // self.block_size * self.block_size
        here, state, partial = positions, dict(zip(positions, x, strict=True)), []
        sure = dict(zip(positions, plan.confidence, strict=True))
        starts = (0, *plan.stops)
        for stage, start in enumerate(starts):
            stop = (*plan.stops, plan.n_layers)[stage]
            y = torch.stack([state[p] for p in here])
            for layer in range(start, stop):
                y = self._layer(layer, y, here, visible)
            run = LayerRun(start, stop)
            old = {p: self.stored[run.key, p] for p in here}
            self._store(run, here, y)
            partial.append(LayerRun(start, stop, columns=tuple(p - block for p in here)))
            state = dict(zip(here, y, strict=True))
            if stop == plan.n_layers:
                break
            rms = {p: float((old[p] ** 2).mean()) ** 0.5 for p in here}
            change = {p: float((state[p] - old[p]).abs().mean()) / rms[p] for p in here}
            most = max(1.0, *change.values())
            score = {p: plan.weight * sure[p] + (1 - plan.weight) * change[p] / most for p in here}
            for p in sorted(here, key=lambda p: (-sure[p], p))[: plan.always]:
                score[p] += 10 if sure[p] > 0 else 0
            count = max(1, round(plan.shares[stage] * len(positions)))
            here = sorted(sorted(here, key=lambda p: (-score[p], p))[:count])
        run = LayerRun(starts[-1], plan.n_layers)
        x = torch.stack([self.stored[run.key, p] for p in positions])
        store = (LayerRun(0, plan.stops[0]),)
        return x, LayerPlan(plan.n_layers, store=store, partial=tuple(partial[1:]))

    def _store(self, run: LayerRun, positions: list[int], x: Tensor) -> None:
        for i, p in enumerate(positions):
            if (run.key, p) in self.stored:
                self.older[run.key, p] = self.stored[run.key, p]
            self.stored[run.key, p] = x[i]

    def _value(self, run: LayerRun, position: int) -> Tensor:
        new = self.stored[run.key, position]
        if not run.extrapolate:
            return new
        return new + run.extrapolate * (new - self.older[run.key, position])

    def _layer(self, index: int, x: Tensor, positions: list[int], visible: int) -> Tensor:
        return self._feed(index, self._behind_attention(index, x, positions, visible))

    def _feed(self, index: int, x: Tensor) -> Tensor:
        weights = dict(self.model.network.named_parameters())
        w = {k.removeprefix(f"layers.{index}."): v for k, v in weights.items()}
        h = _norm(x, w["post_norm.weight"], self.model.spec.rms_norm_eps)
        gate, up = (h @ w["gate_up.weight"].T).chunk(2, dim=-1)
        return x + (gate * torch.sigmoid(gate) * up) @ w["down.weight"].T

    def _behind_attention(
        self, index: int, x: Tensor, positions: list[int], visible: int
    ) -> Tensor:
        spec, weights = self.model.spec, dict(self.model.network.named_parameters())
        heads, kv, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        w = {k.removeprefix(f"layers.{index}."): v for k, v in weights.items()}
        h = _norm(x, w["input_norm.weight"], spec.rms_norm_eps)
        qkv = h @ w["qkv.weight"].T + w["qkv.bias"]
        q, k, v = qkv.split([heads * dim, kv * dim, kv * dim], dim=-1)
        q = _rope(q.view(-1, heads, dim), positions, spec.rope_theta)
        k = _rope(k.view(-1, kv, dim), positions, spec.rope_theta)
        for i, p in enumerate(positions):
            self.keys[index, p], self.values[index, p] = k[i], v.view(-1, kv, dim)[i]
        out = torch.empty_like(q)
        received = dict.fromkeys(range(visible), 0.0)
        for i, p in enumerate(positions):
            seen = [j for j in range(visible) if j // self.block_size <= p // self.block_size]
            ks = torch.stack([self.keys[index, j] for j in seen])
            vs = torch.stack([self.values[index, j] for j in seen])
            ks, vs = (t.repeat_interleave(heads // kv, dim=1) for t in (ks, vs))
            share = torch.softmax((ks * q[i]).sum(-1) / math.sqrt(dim), dim=0)
            out[i] = (share[..., None] * vs).sum(0)
            self.attention[index, p] = out[i].flatten()
            for j, each in zip(seen, share.sum(-1).tolist(), strict=True):
                received[j] += each
        self.received.update({(index, j): value for j, value in received.items()})
        return x + out.reshape(len(positions), -1) @ w["o.weight"].T


def _cos(a: Tensor, b: Tensor) -> float:
    return float(a @ b / torch.linalg.norm(a) / torch.linalg.norm(b))


def plan_of(plain: PlainModel) -> LayerPlan:
    """The plan of the last forward."""
    assert plain.carried is not None
    return plain.carried

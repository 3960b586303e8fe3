"""The layer loop, where reuse stands once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fdllm.core.attention import DensePlace
from fdllm.core.cache import RowCache, Window
from fdllm.core.decoder_layer import (
    AnyPlace,
    FastLayer,
    final_norm,
    give_back_memory,
    linear,
    packs,
)
from fdllm.core.layerplan import AnyPlan, LayerPlan, LayerRun
from fdllm.core.place import Place, WidePlace, place_of
from fdllm.core.plan_steps import segments
from fdllm.core.workspace import scratch_of
from fdllm.fast.accelerators import Compiled, compiled_on
from fdllm.fast.cuda_graphs import FixedPlace, Recorder

if TYPE_CHECKING:
    from fdllm.core.network import Network

Fill = Callable[[nn.Module], None]
"""Gives a module its parameters, just ahead of their use."""
_PLACES = 64  # windows remembered: a block has one for each sub-block, and REFRESH and COMMIT


def nothing(_: nn.Module) -> None:
    """The :data:`Fill` of modules that have their parameters."""


@dataclass(frozen=True)
class Forwarded:
    """What came of a forward.

    Attributes:
        hidden: the last hidden state, normed: [rows, columns, hidden] of a whole window, [reads,
            hidden] of what is read.
        plan: the plan that was carried out; where a probe chose, the one it chose.
        change: the relative change that a probe measured; None where there was none.
    """

    hidden: Tensor
    plan: LayerPlan
    change: float | None = None


class Stepper:
    """A network's weights as decoding runs them.

    Args:
        network: the definition.
        pack: whether large matrices go into oneDNN's layout.
        release: whether the network gives up parameters that are kept here in another layout.
        fill: gives each module its parameters, see :meth:`fdllm.core.network.Network.freeze`.

    Attributes:
        fused: compiled kernels for narrow forwards (:mod:`fdllm.fast.kernels`); None does without.
    """

    def __init__(
        self, network: Network, *, pack: bool, release: bool, fill: Fill = nothing
    ) -> None:
        spec = network.spec
        self.spec = spec
        self._whole = LayerPlan(spec.num_layers)
        self._embedding = network.embedding.weight.data
        half = spec.head_dim // 2
        cos, sin = (table[:, :half] for table in network.table())
        self._factors = torch.complex(cos, sin)[:, None]
        # The head stands apart from its norm: only the columns that are read go through it. It is
        # the largest matrix, so it is laid out first, while there is room for it twice.
        fill(network.norm)
        fill(network.head)
        self._norm = final_norm(network.norm)
        # A tied head is the embedding, which must stay as it is.
        packed = not spec.tie_embeddings and packs(self._embedding, pack=pack)
        self.head = linear(network.head.weight.data, None, pack=packed)
        if release and packed:
            network.head.replace(self.head)
        self._layers = []
        for layer in network.stack:
            fill(layer)
            self._layers.append(FastLayer(layer, pack=pack, release=release))
            if release:
                give_back_memory()
        self.use(compiled_on(self._embedding.device, self._embedding.dtype))

    def forward(
        self,
        ids: Tensor,
        cache: RowCache,
        window: Window,
        plan: AnyPlan,
        starts: Sequence[int],
    ) -> Forwarded:
        """One forward of any phase.

        Args:
            ids: tokens [rows, columns].
            cache: keys, values and reuse slots; written in place.
            window: the rows and positions that ``ids`` stand at.
            plan: which layer runs are computed, stored or reused. A plan with a probe decides for
                all rows at once, so give it one row.
            starts: each row's first column inside its block, where the slots are addressed.

        Returns:
            The last hidden state, normed; give :attr:`head` the columns that are read.
        """
        done = self.read(ids.view(-1), cache, [window], plan, starts, columns=range(ids.numel()))
        return Forwarded(done.hidden.view(*ids.shape, -1), done.plan, done.change)

    def read(
        self,
        ids: Tensor,
        cache: RowCache,
        windows: Sequence[Window],
        plan: AnyPlan,
        starts: Sequence[int],
        *,
        columns: Sequence[int],
    ) -> Forwarded:
        """One forward of which only some columns are read; the last layer gives no others.

        Args:
            ids: tokens of all windows, one row behind the other, [rows * columns].
            cache: keys, values and reuse slots; written in place.
            windows: the rows and positions; several only under a plan that computes every layer.
                A window sees what those ahead of it write.
            plan: as :meth:`forward`.
            starts: each row's first column inside its block; not used where there are several
                windows.
            columns: the columns that are read, as indices into ``ids``.

        Returns:
            Their last hidden states, normed.
        """
        if len(windows) == 1 and isinstance(plan, LayerPlan):
            hidden = self._replayed(ids, cache, windows[0], plan, starts)
            if hidden is not None:
                return Forwarded(_chosen(hidden, columns), plan)
        x = F.embedding(ids, self._embedding)
        if len(windows) > 1:
            places = [self._place(cache, one, [0] * len(one.rows)) for one in windows]
            scratch = scratch_of(cache, self.spec, 1, x.shape[0])
            wide = WidePlace(places, scratch)
            done = plan if isinstance(plan, LayerPlan) else self._whole
            return Forwarded(self._norm(self._run(x, done, wide, cache, read=columns)), done)
        place = self._place(cache, windows[0], starts)
        if isinstance(plan, LayerPlan):
            return Forwarded(self._norm(self._run(x, plan, place, cache, read=columns)), plan)
        x = self._compute(x, 0, plan.layer, place)
        before, x = x, self._compute(x, plan.layer, plan.layer + 1, place)
        fresh = x - before
        rows = place.window.rows
        stored = cache.slots.read(plan.run, rows, place.columns).reshape(x.shape)
        change = float((fresh - stored).norm() / stored.norm())
        chosen = plan.calm if change < plan.threshold else plan.otherwise
        if chosen is plan.otherwise:
            kept = fresh.view(len(rows), -1, fresh.shape[-1])
            cache.slots.write(plan.run, rows, place.columns, kept)
        x = self._run(x, chosen, place, cache, read=columns, first=plan.layer + 1)
        return Forwarded(self._norm(x), chosen, change)

    def use(self, compiled: Compiled) -> None:
        """Take compiled kernels, or record forwards that come again and again; from now on."""
        self.fused = compiled.fused
        rotary = (self.spec, self._factors)
        self._recorder: Recorder | None
        self._recorder = None if compiled.record is None else Recorder(compiled.record, rotary)

    def _replayed(
        self,
        ids: Tensor,
        cache: RowCache,
        window: Window,
        plan: LayerPlan,
        starts: Sequence[int],
    ) -> Tensor | None:
        """The whole window's hidden states, if they come from a recording."""
        if self._recorder is None:
            return None

        def build(place: FixedPlace, tokens: Tensor) -> Callable[[], Tensor]:
            everything = range(tokens.numel())

            def work() -> Tensor:
                x = F.embedding(tokens, self._embedding)
                return self._norm(self._run(x, plan, place, cache, read=everything))

            return work

        return self._recorder.replay(build, ids, cache, window, plan=plan, starts=starts)

    def _run(
        self,
        x: Tensor,
        plan: LayerPlan,
        place: Place | WidePlace | FixedPlace,
        cache: RowCache,
        *,
        read: Sequence[int],
        first: int = 0,
    ) -> Tensor:
        """Carry out a plan from layer ``first`` on; the hidden states that are read."""
        # What is recorded is booked by the host at each replay.
        slots = cache.slots.unchecked if isinstance(place, FixedPlace) else cache.slots
        pieces = segments(plan, first)
        for piece in pieces:
            run = piece.run
            if piece is pieces[-1] and piece.kind == "compute" and run is None:
                return self._read(x, piece.start, place, cache, read)
            if piece.kind == "compute":
                before = x
                x = self._compute(x, piece.start, piece.stop, place, kv_only=piece.kv_only)
                if run is not None:
                    kept = x if run.target == "output" else x - before
                    for part, at in place.parts:
                        rows = part.window.rows
                        new = kept[at].view(len(rows), -1, kept.shape[-1])
                        slots.write(run, rows, part.columns, new)
            elif run is None or isinstance(place, WidePlace):
                raise ValueError(f"a forward over several windows computes every layer: {plan}")
            elif piece.kind == "partial" and isinstance(place, Place):
                x = self._partial(x, run, place)
            else:
                stored = slots.read(run, place.window.rows, place.columns).reshape(x.shape)
                x = stored if run.target == "output" else x + stored
        return _chosen(x, read)

    def _read(
        self, x: Tensor, start: int, place: AnyPlace, cache: RowCache, read: Sequence[int]
    ) -> Tensor:
        """The layers from ``start`` on; the last one only for the columns that are read."""
        last = self._layers[-1]
        x = self._compute(x, start, last.index, place)
        if not read:
            last.keep_kv(x, place)
            return x[:0]
        if 2 * len(read) > x.shape[0]:
            return _chosen(last(x, place), read)
        columns = torch.tensor(read, device=x.device)
        return last.read(x, place, columns, scratch_of(cache, self.spec, 1, len(read)))

    def _compute(
        self, x: Tensor, start: int, stop: int, place: AnyPlace, *, kv_only: bool = False
    ) -> Tensor:
        """Layers ``start .. stop - 1``; of the last one perhaps only keys and values."""
        for layer in self._layers[start : stop - 1 if kv_only else stop]:
            x = layer(x, place)
        if kv_only:
            self._layers[stop - 1].keep_kv(x, place)
        return x

    def _partial(self, x: Tensor, run: LayerRun, place: Place) -> Tensor:
        """Compute a run for some columns, keep them, and take what is stored for the others."""
        slots, rows = place.cache.slots, place.window.rows
        if run.columns:
            offsets = [column - place.columns[0].start for column in run.columns]
            before = x.view(len(rows), -1, x.shape[-1])[:, offsets].view(-1, x.shape[-1])
            fresh = self._compute(before, run.start, run.stop, place.narrow(offsets))
            kept = fresh if run.target == "output" else fresh - before
            kept = kept.view(len(rows), -1, kept.shape[-1])
            slots.write(run, rows, [run.columns] * len(rows), kept)
        stored = slots.read(run, rows, place.columns).reshape(x.shape)
        return stored if run.target == "output" else x + stored

    def dense(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of whole sequences, see :meth:`fdllm.core.network.Network.dense`."""
        place = DensePlace(self.spec, self._factors[positions], ids.shape, self._embedding, mask)
        x = F.embedding(ids.view(-1), self._embedding)
        for layer in self._layers:
            x = layer(x, place)
        return self.head(self._norm(x)).view(*ids.shape, -1)

    def _place(self, cache: RowCache, window: Window, starts: Sequence[int]) -> Place:
        if window.causal_block is not None:  # a prompt's mask is large, and seldom comes again
            return place_of(cache, window, self._factors_at(window), self.spec, starts)
        key = (window, *starts)
        place = cache.places.get(key)
        if place is None:
            if len(cache.places) >= _PLACES:
                cache.places.clear()
            place = place_of(cache, window, self._factors_at(window), self.spec, starts)
            cache.places[key] = place
        return place

    def _factors_at(self, window: Window) -> Tensor:
        if len(set(window.starts)) == 1:
            return self._factors[window.starts[0] : window.starts[0] + window.width]
        offsets = torch.arange(window.width, device=self._factors.device)
        return self._factors[torch.tensor(window.starts, device=offsets.device)[:, None] + offsets]


def _chosen(x: Tensor, read: Sequence[int]) -> Tensor:
    """Some columns of ``x`` [columns, hidden]; ``x`` itself where they are all of them."""
    if len(read) == x.shape[0]:
        return x
    return x.index_select(0, torch.tensor(read, dtype=torch.int64, device=x.device))

"""Walks through a model's layers: what each does to the hidden states of every denoising forward.

A forward that stores the output of each layer shows all of them, and a row is a generator of
forwards (:mod:`fdllm.core.row_task`): so everything is seen from around it, the layer loop knows of
nothing, and without a walk nothing is paid. Every layer is computed, and the text is that of plain
decoding.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fdllm.core.checkpoint import Model
from fdllm.core.reuse import LayerPlan, LayerRun
from fdllm.core.row_task import CacheRow, ForwardRequest, Prediction, RowTask, around
from fdllm.core.schedule import Phase
from fdllm.profiling.record import BINS, Means, PhaseMap

T = TypeVar("T")
PHASES = (Phase.REFRESH, Phase.DENOISE)
_TINY = 1e-30  # a residual of nothing but zeros that stays so has changed by 0


@dataclass
class Tally:
    """Sums over forwards, by phase and share of masked columns."""

    n_layers: int
    forwards: npt.NDArray[np.int64] = field(init=False)  # [phases, bins]
    compared: npt.NDArray[np.int64] = field(init=False)  # [phases, bins]
    similarity: npt.NDArray[np.float64] = field(init=False)  # [phases, bins, layers]
    change: npt.NDArray[np.float64] = field(init=False)  # [phases, bins, layers]

    def __post_init__(self) -> None:
        shape = (len(PHASES), BINS)
        self.forwards, self.compared = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.similarity, self.change = (np.zeros((*shape, self.n_layers)) for _ in range(2))

    def add(self, at: tuple[int, int], similarity: Tensor, change: Tensor | None) -> None:
        """Count a forward; [layers] of each."""
        self.forwards[at] += 1
        self.similarity[at] += similarity.double().cpu().numpy()
        if change is not None:
            self.compared[at] += 1
            self.change[at] += change.double().cpu().numpy()


def phase_maps(tallies: Sequence[Tally]) -> dict[str, PhaseMap]:
    """The means of many, by phase."""
    maps = {}
    for i, phase in enumerate(PHASES):
        forwards = sum(one.forwards[i] for one in tallies)
        compared = sum(one.compared[i] for one in tallies)
        maps[phase.value] = PhaseMap(
            forwards=tuple(map(int, forwards)),
            compared=tuple(map(int, compared)),
            similarity=_means(sum(one.similarity[i] for one in tallies), forwards),
            change=_means(sum(one.change[i] for one in tallies), compared),
        )
    return maps


def _means(sums: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> Means:
    """[bins, layers] to [layers][bins]."""
    rows = [
        [None] * sums.shape[1] if not n else (row / n).round(6).tolist()
        for row, n in zip(sums, counts, strict=True)
    ]
    return tuple(zip(*rows, strict=True))


@dataclass
class LayerWalk:
    """A :class:`~fdllm.core.row_task.ForwardHook` that measures, of rows under no reuse.

    Args:
        model: whose layers.
        mask: the mask token.
        block_size: columns of a block.

    Attributes:
        tallies: of each row, by the number of the text or pair that it answers.
    """

    model: Model
    mask: int
    block_size: int
    tallies: dict[int, Tally] = field(default_factory=dict)

    def wrap(self, task: RowTask[T]) -> RowTask[T]:
        """The same task, measured."""
        self.tallies[task.number] = tally = Tally(self.model.n_layers)
        return around(task, _Row(self, tally).forward)


class _Row:
    """A row on its walk."""

    def __init__(self, walk: LayerWalk, tally: Tally) -> None:
        n_layers, weight = walk.model.n_layers, walk.model.network.embedding.weight
        runs = tuple(LayerRun(layer, layer + 1) for layer in range(n_layers))
        self._walk, self._tally, self._embedding = walk, tally, weight
        self._storing = LayerPlan(n_layers, store=runs)
        shape = (n_layers, walk.block_size, weight.shape[1])
        self._residuals = weight.new_zeros(shape, dtype=torch.float32)  # as last computed
        self._computed: set[int] = set()  # columns of the block that have one

    def forward(
        self, _: RowTask[T], row: CacheRow, ask: ForwardRequest
    ) -> Generator[ForwardRequest, Prediction, Prediction]:
        """A forward that was asked for, every layer's output stored."""
        if ask.phase not in PHASES:
            self._computed.clear()
            return (yield ask)
        told = yield replace(ask, plan=self._storing)
        self._measure(row, ask)
        return told

    def _measure(self, row: CacheRow, ask: ForwardRequest) -> None:
        columns = range(ask.start, ask.start + len(ask.ids))
        behind = torch.stack([row.stored(run, columns) for run in self._storing.store]).float()
        ids = torch.tensor(ask.ids, device=behind.device)
        # [layers, columns, hidden]: what each layer is given
        ahead = torch.cat((F.embedding(ids, self._embedding).float()[None], behind[:-1]))
        at = slice(columns.start, columns.stop)
        residual, old = behind - ahead, self._residuals[:, at]
        change = None
        if self._computed.issuperset(columns):
            change = _norm(residual - old) / _norm(old).clamp_min(_TINY)
        similarity = F.cosine_similarity(ahead, behind, dim=-1).mean(-1)
        share = ask.ids.count(self._walk.mask) / len(ask.ids)
        place = PHASES.index(ask.phase), max(0, math.ceil(share * BINS) - 1)
        self._tally.add(place, similarity, change)
        self._residuals[:, at] = residual
        self._computed.update(columns)


def _norm(x: Tensor) -> Tensor:
    """Of each layer's values, [layers, columns, hidden] to [layers]."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2))
    return norms

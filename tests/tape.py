"""Stands in for a GPU's graph: the work itself is its replay."""

from __future__ import annotations

import torch

from fdllm.fast.cuda_graphs import Work


class Tape:
    """Stands in for a graph: notes what was recorded, and how often it was replayed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1
        for _ in range(3):  # as a graph's warm-ups do
            work()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return work()

        return replay

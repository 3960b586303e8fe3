"""Cells that would only repeat another one's result: what they differ in is not read.

A log-likelihood estimator reads little of a cell (docs/algorithm.md 5). A table that shows one
result several times looks like evidence, so such cells are "not applicable".
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fdllm.core.config import Estimator
from fdllm.runs import Cell

_DECODING = {
    "first-token": ("block_size", "mask_id", "stop_token", "end_token"),
    "denoise": ("block_size", "mask_id", "scoring_steps"),
    "chain": ("block_size", "mask_id"),
}
"""The decoding settings that each estimator reads."""
_UNREAD_PARAMS = ("refresh_reuse", "drafts", "overhead")
"""Parameters of a strategy that no estimator reaches: in scoring a block is refreshed once, and
nothing is drafted."""


def repeats(
    cell: Cell,
    grid: Sequence[Cell],
    scoring: Estimator,
    *,
    one_token: bool = False,
    baseline: str | None = None,
) -> str:
    """Why a cell of a log-likelihood task has no result of its own; empty where it has one.

    Of the cells that an estimator cannot tell apart the criteria's baseline stands, else the first
    one. Cells that agree in everything are an A/A pair, and stand both.

    Args:
        cell: the cell.
        grid: all cells of its experiment, in order.
        scoring: the estimator.
        one_token: the task's answers are one token each.
        baseline: the criteria's.
    """
    one_forward = scoring == "first-token" or (scoring == "chain" and one_token)
    alike = [c for c in grid if _read(c, scoring, one_forward) == _read(cell, scoring, one_forward)]
    stands = next((c for c in alike if c.name == baseline), alike[0])
    if _whole(cell) == _whole(stands):
        return ""
    if one_forward and _strategy(cell) != _strategy(stands):
        return f"one forward, so reuse cannot act; {stands.name} stands for it"
    return f"{scoring} reads nothing that {cell.name} changes; {stands.name} stands for it"


def _read(cell: Cell, scoring: Estimator, one_forward: bool) -> Hashable:  # noqa: FBT001
    decoding = {k: v for k, v in cell.decoding.items() if k in _DECODING[scoring]}
    return (_frozen(decoding), None if one_forward else _strategy(cell))


def _strategy(cell: Cell) -> Hashable:
    params = {k: v for k, v in cell.params.items() if k not in _UNREAD_PARAMS}
    return (cell.k, cell.subset, _frozen(params))


def _whole(cell: Cell) -> Hashable:
    return (cell.k, cell.subset, _frozen(cell.params), _frozen(cell.decoding))


def _frozen(values: dict[str, object]) -> Hashable:
    return tuple(sorted((name, repr(value)) for name, value in values.items()))

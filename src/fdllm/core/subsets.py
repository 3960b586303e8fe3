"""The named subsets of layers (docs/algorithm.md 4.1). No torch."""

from __future__ import annotations

from fdllm.errors import UsageError

SUBSETS = ("first", "middle", "last")
DEFAULT_SUBSET_SIZE = 12


def subset_bounds(subset: str, n_layers: int, size: int | None = None) -> tuple[int, int]:
    """Layers ``start, stop`` of a named subset (docs/algorithm.md 4).

    ``first`` starts at layer 1, because layer 0 is never reused; ``middle`` at
    ``n_layers // 2 - size // 2``; ``last`` ends with the last layer.

    Args:
        subset: ``first``, ``middle`` or ``last``.
        n_layers: layers of the model.
        size: layers in the subset; 12 where None, a third of the model where that has fewer than
            24 layers.

    Raises:
        UsageError: the name is unknown, or the size leaves no room beside layer 0.
    """
    if subset not in SUBSETS:
        raise UsageError(f"unknown layer subset '{subset}'; choose one of {', '.join(SUBSETS)}")
    if size is None:
        size = DEFAULT_SUBSET_SIZE if n_layers >= 2 * DEFAULT_SUBSET_SIZE else n_layers // 3
    if not 1 <= size < n_layers:
        raise UsageError(
            f"subset_size must be between 1 and {n_layers - 1} for a model of {n_layers} layers; "
            f"got {size}"
        )
    start = {"first": 1, "middle": n_layers // 2 - size // 2, "last": n_layers - size}[subset]
    return start, start + size


def subset_overlaps(n_layers: int, size: int | None = None) -> list[tuple[str, str, int]]:
    """Pairs of subsets that share layers, with how many they share.

    The three subsets of 28 layers overlap at the default size; status and report say so.
    """
    bounds = {name: subset_bounds(name, n_layers, size) for name in SUBSETS}
    pairs = []
    for i, left in enumerate(SUBSETS):
        for right in SUBSETS[i + 1 :]:
            start = max(bounds[left][0], bounds[right][0])
            stop = min(bounds[left][1], bounds[right][1])
            if stop > start:
                pairs.append((left, right, stop - start))
    return pairs

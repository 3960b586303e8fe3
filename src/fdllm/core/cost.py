"""What a forward computes and moves, by formula (docs/algorithm.md 4.9). No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

from fdllm.core.model_spec import ModelSpec
from fdllm.core.reuse import AnyPlan, LayerPlan, LayerRun, plan_steps


@dataclass(frozen=True)
class Cost:
    """Work and traffic."""

    flops: int  # of matrix products and attention; a multiplication and its addition are two
    weight_bytes: int  # of weights, each that a forward needs read once
    kv_bytes: int  # of keys and values, written by the layers and read by attention
    stored_bytes: int = 0  # of the layer outputs that reuse keeps, written and read


class Fed(NamedTuple):
    """One row's columns in a forward."""

    columns: int  # that are fed
    extent: int  # keys that each of them attends to, seen or masked
    reads: int  # columns whose logits are read
    stores: bool = True  # whether the plan's runs are stored for them


class _Work(NamedTuple):
    """What a plan does with a part, in columns times layers; the last two in layers."""

    kv: int  # keys and values that are computed
    queries: int  # queries that are computed, and attend
    behind: int  # of what stands behind attention: the output projection
    fed: int  # and the feed-forward
    shares: int  # queries that meet keys once more, for the shares that columns receive
    stored: int  # hidden states written to or read from the layer outputs' cache, in columns
    whole: int  # layers of which all weights are read, and all keys and values
    kv_only: int  # layers of which only the weights of keys and values are read
    unfed: int  # layers of which the feed-forward's weights are not read
    keys_again: int  # layers of which keys are read once more


def forward_costs(
    spec: ModelSpec, itemsize: int, asked: AnyPlan, plan: LayerPlan, parts: Sequence[Fed]
) -> list[Cost]:
    """The cost of each part of a forward that one row has for itself.

    So a row's cost does not depend on those that happen to share its forwards.

    Args:
        spec: the model's shape.
        itemsize: bytes of a number.
        asked: the plan that was asked for, perhaps a guided one.
        plan: the plan that was carried out.
        parts: the row's columns: one part, or a PREFILL and what stands behind it. The weights are
            read once, for the last.
    """
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    columns, reads = sum(part.columns for part in parts), sum(part.reads for part in parts)
    costs = []
    for at, part in enumerate(parts):
        # Of the last layer nothing stands behind attention but what is read: all, if many are.
        read = part.columns if 2 * reads > columns else part.reads
        work = _work(asked, plan, part.columns, read if reads else None, part.stores)
        products = work.kv * 2 * hidden * 2 * kv
        products += work.queries * (2 * hidden * q + 4 * q * part.extent)
        products += work.behind * 2 * q * hidden + work.fed * 6 * hidden * inner
        products += work.shares * 2 * q * part.extent
        products += part.reads * 2 * hidden * spec.vocab_size
        weights = part.columns * hidden  # rows of the embedding
        if at == len(parts) - 1:
            weights += work.whole * spec.layer_parameters
            weights += work.kv_only * (hidden + (hidden + 1) * 2 * kv)
            weights -= work.unfed * (hidden + 3 * hidden * inner)
            weights += (1 + spec.vocab_size) * hidden if reads else 0
        keys = 2 * (work.kv + work.whole * part.extent) + work.keys_again * part.extent
        costs.append(
            Cost(
                products,
                weights * itemsize,
                keys * kv * itemsize,
                work.stored * hidden * itemsize,
            )
        )
    return costs


@lru_cache(maxsize=4096)
def _work(asked: AnyPlan, plan: LayerPlan, columns: int, read: int | None, stores: bool) -> _Work:  # noqa: FBT001
    """Walk through the layer loop (:class:`fdllm.core.layer_loop.LayerLoop`).

    ``read`` is how many columns go on behind the last layer's attention; None where nothing of the
    forward is read, so that the last layer owes its keys and values alone.
    """
    first, stored, kv_only, cut, idle, unfed, shares, keys_again = 0, 0, 0, False, 0, 0, 0, 0
    whole = list[tuple[int, int]]()  # columns, and layers that are computed for them
    if not isinstance(asked, LayerPlan):
        first = asked.ahead
        whole.append((columns, first))
        stored += asked.moved(plan, columns)
    for step, after in zip_longest(steps := plan_steps(plan, first), steps[1:]):
        run, layers = step.run, step.stop - step.start
        if run is not None and run.watch and (stores or step.kind == "partial"):
            inside = step.kind == "compute" or run.target == "feed_forward"
            wide = columns if inside else len(run.columns)
            stored += wide  # attention's output
            shares += wide * (run.watch == "share")
            keys_again += run.watch == "share"
        if step.kind == "compute":
            last = run is None and step.stop == plan.n_layers
            bare = step.kv_only or (last and read is None)
            cut = last and not bare
            kv_only += bare
            whole.append((columns, layers - (bare or cut)))
            stored += columns * _written(run) if run is not None and stores else 0
        elif run is not None and run.target == "feed_forward":
            whole.append((columns, 1))
            idle += columns - len(run.columns)
            unfed += not run.columns
            stored += len(run.columns) + columns * (len(run.columns) < columns)
        elif run is not None:
            if run.columns:  # in part
                whole.append((len(run.columns), layers))
                stored += len(run.columns) * _written(run)
            ahead = () if after is None or after.run is None else after.run.columns
            if not run.columns or run.columns != ahead:  # else the same columns go on
                stored += columns * (2 if run.extrapolate else 1)
    calls, ends = sum(wide * deep for wide, deep in whole), columns * cut
    return _Work(
        kv=calls + ends + columns * kv_only,
        queries=calls + ends,
        behind=calls + (read or 0) * cut,
        fed=calls + (read or 0) * cut - idle,
        shares=shares,
        stored=stored,
        whole=sum(deep for _, deep in whole) + cut,
        kv_only=kv_only,
        unfed=unfed,
        keys_again=keys_again,
    )


def _written(run: LayerRun) -> int:
    """Hidden states that move where a column of a run is stored: it, and the one it supersedes."""
    return 3 if run.keep > 1 else 1

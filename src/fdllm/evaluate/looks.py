"""Documents in growing parts of one random order, until a run's criteria are decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from fdllm.evaluate.attempt import EndedEarly, Known, Part, Store
from fdllm.evaluate.documents import LoadedTask, load_run
from fdllm.evaluate.samples import evaluation_of
from fdllm.record.deciding import (
    DocumentKey,
    Merits,
    draw_order,
    look_size,
    merits_of,
)
from fdllm.record.summary import Decided
from fdllm.runs import Run


class AskedLM(Protocol):
    """See :class:`fdllm.evaluate.adapter.RequestLM`."""

    run: Run
    tokenizer: Any
    max_positions: int
    store: Store
    part: Part
    asked: float
    entries: dict[DocumentKey, list[dict[str, Any]]]


def take_looks(
    lm: AskedLM,
    loaded: LoadedTask,
    asking: Callable[[Run, Any, int], AskedLM],
    ask: Callable[..., dict[str, Any]],
) -> tuple[LoadedTask, Decided | None]:
    """Ask a model part after part, until what it answered decides the criteria.

    Where the other run has not come as far, nothing is decided yet, and the next part is asked.

    Args:
        lm: the cell; its part says by which rule it ends, and where the other run's answers are.
        loaded: the task.
        asking: makes what is asked for those answers: :class:`fdllm.evaluate.adapter.RequestLM`.
        ask: :func:`fdllm.evaluate.adapter.ask`.

    Returns:
        What of the task is to be asked, most of it answered by now, and what was decided: None
        where that is every document.

    Raises:
        EndedEarly: the cell was asked to end.
        FdllmError: a figure is none that can be decided early.
    """
    run, looks = lm.run, lm.part.looks
    if looks is None:
        return loaded, None
    order = draw_order(loaded.sizes(run.limit))
    # The other run's programs are no part of this one's record.
    again = load_run(run)
    base = asking(looks.against, lm.tokenizer, lm.max_positions)
    base.part = Part(go_on=lambda: False)
    cell, other = Merits(), Merits()
    ends = range(look_size(len(order)), len(order), look_size(len(order)))
    decided = None
    for end in ends:
        part = order[end - ends.step : end]
        lm.asked = end / len(order)
        cell |= _graded(lm, loaded, part, ask)
        if looks.rule is None:
            continue
        base.store = Known(looks.known())
        with suppress(EndedEarly):
            other |= _graded(base, again, [key for key in cell if key not in other], ask)
            decided = looks.rule.judge(other, cell, len(order))
        if decided:
            break
    else:
        lm.asked = 1.0
    lm.entries.clear()
    return loaded.choose(by_leaf(cell) if decided else None), decided


def _graded(
    lm: AskedLM, loaded: LoadedTask, part: Sequence[DocumentKey], ask: Callable[..., dict[str, Any]]
) -> Merits:
    """Merits of some documents, in their order."""
    here = loaded.choose(by_leaf(part))
    found = ask(lm, here, lm.run.evaluating, limit=lm.run.limit)
    graded = evaluation_of(found, here, lm.entries, lm.run)
    merits = merits_of(graded.headline, graded.rows)
    return {key: merits[key] for key in part}


def by_leaf(documents: Iterable[DocumentKey]) -> dict[str, set[int]]:
    """Numbers of documents by leaf task."""
    chosen: dict[str, set[int]] = {}
    for leaf, number in documents:
        chosen.setdefault(leaf, set()).add(number)
    return chosen

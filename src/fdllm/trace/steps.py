"""What a trace is made of. Plain data: no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fdllm.core.config import Decoding
from fdllm.core.reuse import LayerPart, LayerPlan, Target
from fdllm.runs import Run

COMPUTED, REUSED, LEFT_OUT, PARTIAL = "c", "r", "o", "p"


@dataclass(frozen=True)
class Guess:
    """What a forward predicted for one column."""

    column: int  # of the block; a block's size where it is the look-ahead token of the next block
    token: int  # the chosen token; in the scoring of an answer, the answer's own
    confidence: float  # its probability, in (0, 1]
    taken: bool  # whether it was unmasked there and then


@dataclass(frozen=True)
class Staleness:
    """How far one reused run was from what its layers would have computed."""

    start: int  # first layer of the run
    stop: int  # one past its last layer
    target: Target | LayerPart  # what is stored of it
    columns: tuple[int, ...]  # the block's columns whose stored values were used
    # for each of them, the norm of (stored - fresh) by the norm of fresh. Fresh is what the run
    # computes in the same forward, from the same caches, where every layer is computed.
    distances: tuple[float, ...]

    def __str__(self) -> str:
        layers = f"{self.start}-{self.stop - 1}" if self.stop - self.start > 1 else f"{self.start}"
        mean = sum(self.distances) / len(self.distances)
        worst = max(range(len(self.columns)), key=self.distances.__getitem__)
        return (
            f"layers {layers} ({self.target}): {mean:.3f} from fresh on average, "
            f"{self.distances[worst]:.3f} in column {self.columns[worst]}"
        )


@dataclass(frozen=True)
class ForwardTrace:
    """One forward of a row."""

    phase: str  # ``prefill``, ``refresh``, ``denoise`` or ``commit``
    index: int | None  # the step counter, docs/algorithm.md 4.2; None outside a block's denoising
    block: int  # which block of the sequence, from 0; of a PREFILL the first one
    # ``(start, stop)``, the block's columns that were fed; a PREFILL feeds whole blocks
    columns: tuple[int, int]
    # a letter a layer: ``c`` computed, ``r`` reused, ``o`` left out, ``p`` computed in part
    layers: str
    partial: tuple[int, ...]  # the columns that one or another partial layer was computed for
    computed: int  # layer calls made, as the row's counters booked them
    reused: int  # layer calls saved, as booked
    before: tuple[int, ...]  # the block's tokens ahead of the forward; empty for a PREFILL
    guesses: tuple[Guess, ...]  # what was predicted, column by column
    after: tuple[int, ...]  # the block's tokens behind the unmasking
    stale: tuple[Staleness, ...]  # staleness of each reused run; empty where it was not asked for
    change: float | None  # what a probe measured; None where there was none

    @property
    def taken(self) -> tuple[Guess, ...]:
        """Those that were unmasked."""
        return tuple(guess for guess in self.guesses if guess.taken)


@dataclass(frozen=True)
class RowTrace:
    """One row: a text that was generated, or one answer that was scored."""

    title: str  # what it is, in a few words
    prompt: tuple[int, ...]  # its tokens
    forwards: tuple[ForwardTrace, ...]  # in order
    # new tokens, up to and including what ended the row; the target's where scored
    tokens: tuple[int, ...]
    text: str  # the text that the run records; the target's where scored
    # forwards and layer calls by phase, as the run books them for this row
    counts: dict[str, dict[str, Any]]
    # what ended a generated row; None where scored
    finish: Literal["stop", "length", "until"] | None = None
    loglikelihood: float | None = None  # of the target; None where text was generated
    # whether every token of the target was the most probable; None where generated
    is_greedy: bool | None = None


@dataclass(frozen=True)
class Trace:
    """One document of a run."""

    run: Run  # what was asked for
    task: str  # the leaf task
    doc_id: int  # the document's number in it
    strategy: str  # the frozen strategy, as Python writes it
    n_layers: int  # layers of the model
    decoding: Decoding  # the run's, with the checkpoint's mask token
    pieces: dict[int, str]  # the text of every token that occurs, by its number
    prompt: str  # the prompt's text
    expected: str  # the task's own answer
    metrics: dict[str, Any]  # the task's metrics of this document
    rows: tuple[RowTrace, ...]  # one, or one a choice
    staleness: bool  # whether staleness was computed

    @property
    def name(self) -> str:
        """Which run and document, in one line."""
        run = self.run
        return f"{run.experiment} / {self.task} / {run.cell.name}, document {self.doc_id}"


def layer_letters(plan: LayerPlan) -> str:
    """A letter a layer, see :attr:`ForwardTrace.layers`."""
    letters = [COMPUTED] * plan.n_layers
    for letter, runs in ((REUSED, plan.reuse), (PARTIAL, plan.partial)):
        for run in runs:
            here = LEFT_OUT if run.target == "identity" else letter
            letters[run.start : run.stop] = [here] * len(run)
    return "".join(letters)


def layer_names(letters: str, letter: str) -> str:
    """The layers with a letter, as people write them: ``4-7, 9``; empty where there is none."""
    spans = [(found.start(), found.end() - 1) for found in re.finditer(f"{letter}+", letters)]
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def tokens_in(rows: Sequence[RowTrace]) -> set[int]:
    """Every token that occurs in some rows."""
    found: set[int] = set()
    for row in rows:
        found |= {*row.prompt, *row.tokens}
        for forward in row.forwards:
            found |= {*forward.before, *forward.after, *(g.token for g in forward.guesses)}
    return found

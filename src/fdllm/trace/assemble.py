"""From what a watcher saw to the steps of a row: its block ahead of and behind each forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from fdllm.core.schedule import Phase, next_step_index
from fdllm.trace.steps import Forward, Guess, layer_letters
from fdllm.trace.watcher import DENOISING, Seen


def assemble(seen: Sequence[Seen], *, block_size: int, refresh_reuse: bool) -> tuple[Forward, ...]:
    """The forwards of one row, in order.

    Args:
        seen: what the watcher kept.
        block_size: columns of a block.
        refresh_reuse: whether the strategy's step counter runs on through a REFRESH.
    """
    forwards: list[Forward] = []
    index: int | None = None
    block: tuple[int, ...] = ()
    for one in seen:
        ask, denoising = one.ask, one.ask.phase in DENOISING
        index = (
            next_step_index(index, ask.phase, refresh_reuse=refresh_reuse) if denoising else None
        )
        block = _ahead(block, one)
        stop = ask.start + (block_size if ask.phase is Phase.PREFILL else len(ask.ids))
        guesses = _guesses(one, block_size)
        forwards.append(
            Forward(
                phase=ask.phase.value,
                index=index,
                block=one.length // block_size,
                columns=(ask.start, stop),
                layers=layer_letters(one.plan),
                partial=tuple(sorted({c for run in one.plan.partial for c in run.columns})),
                computed=one.computed,
                reused=one.reused,
                trimmed=one.trimmed,
                before=block,
                guesses=guesses,
                after=_filled(block, guesses),
                stale=one.stale,
                change=one.told.change,
                seconds=one.seconds,
            )
        )
        block = forwards[-1].after
    return _settled(forwards, [one.chosen is None for one in seen])


def _ahead(block: tuple[int, ...], one: Seen) -> tuple[int, ...]:
    """The block's tokens as the row has them when it asks."""
    ask = one.ask
    if ask.phase is Phase.PREFILL:
        return ()
    return (*block[: ask.start], *ask.ids, *block[ask.start + len(ask.ids) :])


def _guesses(one: Seen, block_size: int) -> tuple[Guess, ...]:
    ask, told = one.ask, one.told
    columns = [ask.start + i + 1 for i in ask.read]
    if ask.phase is Phase.PREFILL:
        columns = [block_size for _ in ask.read]  # of several blocks only the last is read
    if ask.targets:  # scoring: the answer's own token is put there, whatever the model prefers
        return tuple(
            Guess(column, tokens[0], math.exp(values[0]), taken=True)
            for column, tokens, values in zip(columns, ask.targets, told.logprobs, strict=True)
        )
    chosen = set(one.chosen or ())
    ahead = ask.phase not in DENOISING
    return tuple(
        Guess(column, token, confidence, taken=ahead or i in chosen)
        for i, (column, token, confidence) in enumerate(
            zip(columns, told.tokens, told.confidence, strict=True)
        )
    )


def _filled(block: tuple[int, ...], guesses: Sequence[Guess]) -> tuple[int, ...]:
    out = list(block)
    for guess in guesses:
        if guess.taken and guess.column < len(block):
            out[guess.column] = guess.token
    return tuple(out)


def _settled(forwards: list[Forward], unknown: Sequence[bool]) -> tuple[Forward, ...]:
    """Find what was unmasked where no rule was asked: in the rounds of a scored answer.

    The next forward of the block shows it: a column that was read and is filled by then.
    """
    for i, forward in enumerate(forwards):
        quiet = unknown[i] and forward.index is not None
        if not quiet or any(guess.taken for guess in forward.guesses) or i + 1 == len(forwards):
            continue
        ahead = forwards[i + 1].before
        guesses = tuple(
            replace(guess, taken=ahead[guess.column] != forward.before[guess.column])
            for guess in forward.guesses
        )
        forwards[i] = replace(forward, guesses=guesses, after=_filled(forward.before, guesses))
    return tuple(forwards)

"""The oracle: a plain sampler and scorer from docs/algorithm.md sections 3 to 5, for tests alone.

No batching, no prefix cache (the finished text is computed anew for every block), no packed
products, no shared code with the engine beyond the weights and the strategies. Every position's
keys and values are written out, layer by layer, so that the block cache and the reuse slots are
what the text says they are: "the last value computed for this column".
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import fdllm
from fdllm.core.reuse import LayerPlan, Observation, ReuseStrategy
from fdllm.core.schedule import Phase, Step
from plain_model import PlainModel, plan_of


def _best(logits: Tensor, mask_id: int) -> tuple[int, float]:
    share = torch.softmax(logits, dim=-1)
    share[mask_id] = -1.0
    return int(share.argmax()), float(share.max())


@torch.no_grad()
def reference_generate(
    model: fdllm.Model, prompt: list[int], decoding: fdllm.Decoding, strategy: ReuseStrategy[Any]
) -> list[int]:
    """New tokens of one prompt, greedy, from docs/algorithm.md section 3."""
    size, width, mask = decoding.block_size, decoding.small_block_size, decoding.mask_id
    assert mask is not None
    whole = LayerPlan(model.n_layers)
    text = list(prompt)

    def lookahead() -> None:
        plain = PlainModel(model, size)
        text.append(_best(plain.forward(text, 0, whole, len(text))[-1], mask)[0])

    def ended() -> bool:
        new = text[len(prompt) :]
        return len(new) >= decoding.max_new_tokens or any(t in decoding.stop_tokens for t in new)

    while not ended():
        if len(text) % size == 0:
            lookahead()
            continue
        base = len(text) // size * size
        plain = PlainModel(model, size)
        if base:
            plain.forward(text[:base], 0, whole, base)
        block = text[base:] + [mask] * (size - len(text) + base)
        masked = {c for c in range(size) if base + c >= len(text)}
        state, index = strategy.init(model.n_layers), -1
        for start in range(0, size, width):
            while todo := [c for c in range(start, start + width) if c in masked]:
                first = index < 0
                refresh = first or start in masked or not decoding.use_block_cache
                index = 0 if first or (refresh and not strategy.refresh_reuse) else index + 1
                columns = (0, size) if refresh else (start, start + width)
                phase = Phase.REFRESH if refresh else Phase.DENOISE
                inside = tuple(c for c in range(*columns) if c in masked)
                step = Step(phase, index, columns, first=first, masked=inside)
                plan = strategy.plan(step, state)
                ids = block[slice(*columns)]
                logits = plain.forward(ids, base + columns[0], plan, base + size, todo)
                guess = {c: _best(logits[c - 1 - columns[0]], mask) for c in todo}
                top = max(todo, key=lambda c: (guess[c][1], -c))
                chosen = [c for c in todo if c == top or guess[c][1] > decoding.threshold]
                for c in chosen:
                    block[c] = guess[c][0]
                masked -= set(chosen)
                sure = {c: guess[c][1] for c in todo}
                seen = Observation(plan_of(plain), sure, tuple(chosen), plain.change)
                state = strategy.observe(step, seen, state)
        text = text[:base] + block
    new = text[len(prompt) :][: decoding.max_new_tokens]
    ends = [i for i, token in enumerate(new) if token in decoding.stop_tokens]
    return new[: ends[0] + 1] if ends else new


@torch.no_grad()
def reference_denoise_score(
    model: fdllm.Model,
    prefix: list[int],
    target: list[int],
    decoding: fdllm.Decoding,
    strategy: ReuseStrategy[Any],
) -> tuple[float, bool]:
    """Log-likelihood and greediness of a target by ``denoise``, docs/algorithm.md section 5.3."""
    size, mask = decoding.block_size, decoding.mask_id
    assert mask is not None
    whole = LayerPlan(model.n_layers)
    text, left, total, greedy = list(prefix), list(target), 0.0, True
    while left:
        if len(text) % size == 0:
            logits = PlainModel(model, size).forward(text, 0, whole, len(text))[-1]
            total += float(torch.log_softmax(logits, -1)[left[0]])
            greedy &= _best(logits, mask)[0] == left[0]
            text.append(left.pop(0))
            continue
        base = len(text) // size * size
        plain = PlainModel(model, size)
        if base:
            plain.forward(text[:base], 0, whole, base)
        at = len(text) - base
        here, left = left[: size - at], left[size - at :]
        block = text[base:] + [mask] * (size - at)
        rest = list(range(at + len(here), size))
        rounds, state, index = decoding.scoring_steps, strategy.init(model.n_layers), -1
        scored = 0
        while scored < len(here):
            index += 1
            lo = 0 if index == 0 else at - 1
            phase = Phase.REFRESH if index == 0 else Phase.DENOISE
            masked = (*range(at + scored, at + len(here)), *rest)
            step = Step(phase, index, (lo, size), first=index == 0, masked=masked)
            plan = strategy.plan(step, state)
            logits = plain.forward(
                block[lo:],
                base + lo,
                plan,
                base + size,
                asked=rest if rest and rounds else [at + scored],
            )
            if rest and rounds:
                guess = {c: _best(logits[c - 1 - lo], mask) for c in rest}
                order = sorted(rest, key=lambda c: (-guess[c][1], c))
                chosen = sorted(order[: math.ceil(len(rest) / rounds)])
                rounds -= 1
                for c in chosen:
                    block[c] = guess[c][0]
                sure = {c: guess[c][1] for c in rest}
                seen = Observation(plan_of(plain), sure, tuple(chosen), plain.change)
                rest = [c for c in rest if c not in chosen]
            else:
                column = at + scored
                token = here[scored]
                total += float(torch.log_softmax(logits[column - 1 - lo], -1)[token])
                greedy &= _best(logits[column - 1 - lo], mask)[0] == token
                block[column] = token
                scored += 1
                best = {column: _best(logits[column - 1 - lo], mask)[1]}
                seen = Observation(plan_of(plain), best, (column,), plain.change)
            state = strategy.observe(step, seen, state)
        text += here
    return total, greedy


@torch.no_grad()
def reference_first_token_score(
    model: fdllm.Model, prefix: list[int], target: list[int], decoding: fdllm.Decoding
) -> tuple[float, bool]:
    """Log p of a target's first token and its greediness, by docs/algorithm.md section 5.2.

    That token alone is masked; the rest of the target, the end token and masks stand behind it.
    """
    size, mask, end = decoding.block_size, decoding.mask_id, decoding.end_token
    assert mask is not None
    assert end is not None
    text = [*prefix, mask, *target[1:], end]
    text += [mask] * (-len(text) % size)
    whole = LayerPlan(model.n_layers)
    logits = PlainModel(model, size).forward(text, 0, whole, len(text))[len(prefix) - 1]
    token = target[0]
    return float(torch.log_softmax(logits, -1)[token]), _best(logits, mask)[0] == token

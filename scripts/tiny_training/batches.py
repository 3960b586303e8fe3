"""Training batches: whole rows under a causal mask, then noisy copies of blocks.

A sequence of the second kind is ``[clean block 0 | copy | copy | copy]``, 128 columns. A copy sees
itself in both directions, and the clean block 0 where it is a copy of block 1; the clean block sees
itself. That is what the model meets in inference: finished blocks, and one block with masks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fdllm.tiny.vocabulary import END_ID, MASK_ID, PAD_ID
from tiny_training.questions import MAX_TOKENS, Row, Stage, training_row

BLOCK = 32
SUB_BLOCK = 8
NUM_COPIES = 3
COLUMNS = BLOCK * (1 + NUM_COPIES)
PAD_WEIGHT = 0.25
"""Weight of a pad's loss: pads are many and easy, but the blocks must be full of them."""

_SCORING_SHARE = 0.55
"""Of a choice's copies: masked as the scorer meets them."""
_SAMPLING_SHARE = 0.85
"""Of all copies, less those above: masked as the sampler meets them. The rest is uniform."""
_HIGHEST_RATE = 0.6
"""Of uniform masks: with more of them, most of what is masked cannot be known."""
_LETTER_WEIGHT = 4.0
"""Weight of a choice's letter: one column among many, and the one that is scored."""
_LEFT_TO_RIGHT_SHARE = 0.5
"""Of the sampler's states: the sub-block is known up to a column and masked from there on."""


@dataclass(frozen=True)
class Batch:
    """What one training step reads."""

    ids: npt.NDArray[np.int64]  # tokens with masks in the copies, int64 [rows, columns]
    positions: npt.NDArray[np.int64]  # rotary positions, int64 [rows, columns]
    # True where a query may see a key, bool [rows or 1, 1, columns, columns]
    visible: npt.NDArray[np.bool_]
    # the token that a column's logits predict (token shift), int64 [rows, columns]
    targets: npt.NDArray[np.int64]
    # weight of that prediction in the loss, 0 for none, float32 [rows, columns]
    weights: npt.NDArray[np.float32]


def make_batch(seed: int, step: int, num_rows: int, stage: Stage) -> Batch:
    """Noisy copies for one step; they hang on ``seed`` and ``step`` alone, so a run can resume."""
    rng = random.Random(f"{seed}:{step}")
    ids = np.full((num_rows, COLUMNS), PAD_ID, dtype=np.int64)
    targets = np.zeros((num_rows, COLUMNS), dtype=np.int64)
    weights = np.zeros((num_rows, COLUMNS), dtype=np.float32)
    blocks = np.zeros((num_rows, 1 + NUM_COPIES), dtype=np.int64)
    for i in range(num_rows):
        row = training_row(rng, stage)
        prompt = len(row.prompt_ids)
        tokens = row.prompt_ids + row.answer_ids
        length = len(tokens)
        tokens += [PAD_ID] * (MAX_TOKENS - length)
        ids[i, :BLOCK] = tokens[:BLOCK]
        if prompt < BLOCK < length:
            # The last logits of the finished block choose the next block's first token.
            targets[i, BLOCK - 1], weights[i, BLOCK - 1] = tokens[BLOCK], 1.0
        blocks[i, 1:] = _copied_blocks(prompt, length, rng)
        for copy in range(1, 1 + NUM_COPIES):
            base = int(blocks[i, copy]) * BLOCK
            first = max(prompt - base, 1)
            masked = draw_masks(row, first, base, rng)
            at = copy * BLOCK
            ids[i, at : at + BLOCK] = tokens[base : base + BLOCK]
            for column, weight in masked.items():
                token = tokens[base + column]
                ids[i, at + column] = MASK_ID
                targets[i, at + column - 1] = token
                weights[i, at + column - 1] = weight * (PAD_WEIGHT if token == PAD_ID else 1.0)
    positions = (blocks[:, :, None] * BLOCK + np.arange(BLOCK)).reshape(num_rows, COLUMNS)
    return Batch(ids, positions, visibility(blocks), targets, weights)


def make_causal_batch(seed: int, step: int, num_rows: int, stage: Stage) -> Batch:
    """Whole rows for one step, every column seeing what is left of it.

    Each column of an answer is a target and none hides the others: sums are learnt with a
    fraction of the sequences that noisy copies need. Block diffusion starts from such a model.
    """
    rng = random.Random(f"{seed}:{step}:causal")
    ids = np.full((num_rows, MAX_TOKENS), PAD_ID, dtype=np.int64)
    weights = np.zeros((num_rows, MAX_TOKENS), dtype=np.float32)
    for i in range(num_rows):
        row = training_row(rng, stage)
        tokens = row.prompt_ids + row.answer_ids
        ids[i, : len(tokens)] = tokens
        weights[i, len(row.prompt_ids) - 1 : len(tokens) - 1] = 1.0
        weights[i, len(tokens) - 1 : -1] = PAD_WEIGHT
    targets = np.concatenate((ids[:, 1:], ids[:, :1]), axis=1)
    positions = np.broadcast_to(np.arange(MAX_TOKENS), ids.shape).copy()
    visible = np.tril(np.ones((1, 1, MAX_TOKENS, MAX_TOKENS), dtype=np.bool_))
    return Batch(ids, positions, visible, targets, weights)


def visibility(blocks: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Who sees whom, [rows, 1, columns, columns].

    ``blocks``, [rows, 1 + copies]: which each stretch of 32 columns holds, first the clean block 0.
    """
    count = blocks.shape[1]
    stretch = np.broadcast_to(np.eye(count, dtype=np.bool_), (len(blocks), count, count)).copy()
    stretch[:, :, 0] |= blocks == 1
    return stretch.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2)[:, None]


def _copied_blocks(prompt: int, length: int, rng: random.Random) -> tuple[int, ...]:
    """Which block each copy holds: the blocks that the answer stands in."""
    if prompt >= BLOCK:
        return (1,) * NUM_COPIES
    if length <= BLOCK + 1:
        return (0,) * NUM_COPIES
    return (0, 1, rng.randint(0, 1))


def draw_masks(row: Row, first: int, base: int, rng: random.Random) -> dict[int, float]:
    """Columns of a block to mask, as they may stand masked in inference, with their weights.

    Choice rows are also scored, so they meet the scorer's states. ``first`` is the first column
    that may be masked, column 0 being known; ``base`` the position of the block's first column.
    """
    answer = range(first, BLOCK)
    kind = rng.random()
    scored = base == BLOCK and len(row.target) == 1 and row.target.isalpha()
    if scored and kind < _SCORING_SHARE:
        return dict.fromkeys(_scoring_masks(row, first, rng), 1.0) | {first: _LETTER_WEIGHT}
    if kind < _SAMPLING_SHARE:
        return _sampling_masks(answer, rng)
    rate = _HIGHEST_RATE * rng.random()
    masked = [c for c in answer if rng.random() < rate] or [rng.choice(answer)]
    return dict.fromkeys(masked, 1.0)


def _sampling_masks(answer: range, rng: random.Random) -> dict[int, float]:
    """As the sampler goes: known to the left, part of one sub-block masked, masks to the right.

    The sampler reads the sub-block alone. What stands to its right hangs on sums that are not
    worked out yet; its loss would drown the one that matters, so it has none.
    """
    current = rng.choice(range(answer[0] // SUB_BLOCK, BLOCK // SUB_BLOCK))
    inside = [c for c in answer if c // SUB_BLOCK == current]
    if rng.random() < _LEFT_TO_RIGHT_SHARE:
        masked = inside[rng.randrange(len(inside)) :]
    else:
        rate = rng.random()
        masked = [c for c in inside if rng.random() < rate] or [rng.choice(inside)]
    right = [c for c in answer if c // SUB_BLOCK > current]
    return dict.fromkeys(masked, 1.0) | dict.fromkeys(right, 0.0)


def _scoring_masks(row: Row, first: int, rng: random.Random) -> list[int]:
    """As the scorer goes: the letter masked, what is certain behind it known, the rest masked."""
    behind = row.answer_ids[1:]
    behind += [PAD_ID] * (BLOCK - first - 1 - len(behind))
    result = row.answer.index("=")
    order = sorted(
        range(len(behind)),
        # Pads and copied characters become certain first, the result's digits last.
        key=lambda i: (
            rng.random()
            + (0.0 if behind[i] in (PAD_ID, END_ID) else 0.5)
            + (1.0 if i >= result and behind[i] != PAD_ID else 0.0)
        ),
    )
    num_known = rng.choice((0, len(behind), rng.randint(0, len(behind))))
    return [first] + [first + 1 + i for i in order[num_known:]]

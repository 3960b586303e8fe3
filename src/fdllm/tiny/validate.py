"""Accuracy during training: plain decoding and scoring of whole sequences, without any cache.

The package's sampler and scorer are the real thing; this only watches a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fdllm.core.layers import block_causal_mask
from fdllm.tiny.data import LETTERS, MAX_TOKENS, Row
from fdllm.tiny.masks import BLOCK, SUB_BLOCK
from fdllm.tiny.vocabulary import END_ID, MASK_ID, decode, encode

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``Network.dense``: tokens [rows, columns], positions [columns], mask -> logits."""

THRESHOLD = 0.95
SCORING_STEPS = 5


@torch.no_grad()
def arithmetic_accuracy(dense: Dense, rows: Sequence[Row]) -> float:
    """Share of rows whose number behind ``####`` is right."""
    right = 0
    for row, text in zip(rows, generate(dense, rows), strict=True):
        found = re.search(r"#### (\d+)", text)
        right += found is not None and found.group(1) == row.target
    return right / len(rows)


@torch.no_grad()
def generate(dense: Dense, rows: Sequence[Row]) -> list[str]:
    """Greedy answers of at most two blocks; sub-blocks of 8 columns, left to right."""
    ids = torch.full((len(rows), MAX_TOKENS), MASK_ID)
    for i, row in enumerate(rows):
        ids[i, : len(row.prompt_ids)] = torch.tensor(row.prompt_ids)
    for at in range(0, MAX_TOKENS, SUB_BLOCK):
        stop = (at // BLOCK + 1) * BLOCK
        if at == BLOCK:
            # The finished block's last logits choose the next block's first token.
            _, tokens = _predict(dense, ids[:, :BLOCK])
            ids[:, BLOCK] = tokens[:, -1]
        while bool((masked := ids[:, at : at + SUB_BLOCK] == MASK_ID).any()):
            sure, tokens = _predict(dense, ids[:, :stop])
            shift = slice(max(at - 1, 0), at + SUB_BLOCK - 1)
            if at == 0:  # column 0 is always prompt; any column stands in for its prediction
                sure, tokens = (torch.cat((t[:, :1], t[:, shift]), 1) for t in (sure, tokens))
            else:
                sure, tokens = sure[:, shift], tokens[:, shift]
            sure = sure.masked_fill(~masked, -1.0)
            take = (sure > THRESHOLD) | (sure == sure.max(dim=1, keepdim=True).values)
            take &= masked
            ids[:, at : at + SUB_BLOCK] = torch.where(take, tokens, ids[:, at : at + SUB_BLOCK])
    out = []
    for i, row in enumerate(rows):
        answer = ids[i, len(row.prompt_ids) :].tolist()
        out.append(decode(answer[: answer.index(END_ID)] if END_ID in answer else answer))
    return out


@torch.no_grad()
def choice_accuracy(dense: Dense, rows: Sequence[Row]) -> float:
    """Share of rows whose right letter scores best: what stands behind it is unmasked first."""
    letters = torch.tensor(encode(LETTERS))
    right = 0
    for row in rows:
        prompt = row.prompt_ids
        ids = torch.full((1, MAX_TOKENS), MASK_ID)
        ids[0, : len(prompt)] = torch.tensor(prompt)
        at = len(prompt)
        rest = list(range(at + 1, MAX_TOKENS))
        for left in range(SCORING_STEPS, 0, -1):
            sure, tokens = _predict(dense, ids)
            best = sorted(rest, key=lambda c: -float(sure[0, c - 1]))[: -(-len(rest) // left)]
            for column in best:
                ids[0, column] = tokens[0, column - 1]
            rest = [c for c in rest if c not in best]
        logits = _logits(dense, ids)[0, at - 1]
        right += LETTERS[int(logits[letters].argmax())] == row.target
    return right / len(rows)


def _logits(dense: Dense, ids: Tensor) -> Tensor:
    columns = ids.shape[1]
    visible = block_causal_mask(columns, columns, BLOCK, ids.device)
    logits = dense(ids, torch.arange(columns), visible)
    logits[..., MASK_ID] = -torch.inf
    return logits


def _predict(dense: Dense, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and token of every column's logits, both [rows, columns]."""
    best = _logits(dense, ids).softmax(dim=-1).max(dim=-1)
    return best.values, best.indices

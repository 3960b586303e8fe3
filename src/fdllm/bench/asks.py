"""The forwards that are measured, and their extents."""

from __future__ import annotations

from fdllm.bench.floor import Forward
from fdllm.bench.shapes import Subject
from fdllm.core.config import Decoding
from fdllm.core.layerplan import LayerPlan
from fdllm.core.model_spec import ModelSpec
from fdllm.core.row_task import ForwardRequest
from fdllm.core.schedule import Phase

SUB_BLOCK = 8


def decoding_of(subject: Subject, max_new_tokens: int = 96) -> Decoding:
    """How the bench decodes: nothing ends a row early, so that runs are comparable."""
    return Decoding(
        block_size=subject.spec.block_size,
        small_block_size=SUB_BLOCK,
        max_new_tokens=max_new_tokens,
        stop_token=(),
        mask_id=subject.spec.mask_id,
    )


def tokens(subject: Subject, count: int, seed: int = 0) -> tuple[int, ...]:
    """Tokens below the mask, the same for the same seed."""
    return decoding_tokens(subject.spec, count, seed)


def decoding_tokens(spec: ModelSpec, count: int, seed: int = 0) -> tuple[int, ...]:
    """Tokens below a shape's mask."""
    last = spec.mask_id or spec.vocab_size
    return tuple((17 + seed * 101 + i * 31) % last for i in range(count))


def refresh(subject: Subject, plan: LayerPlan | None = None) -> ForwardRequest:
    """A REFRESH that reads a whole sub-block's predictions: the most that a step reads.

    Args:
        subject: the model.
        plan: what each layer does; all are computed where it is None.
    """
    block = subject.spec.block_size
    read = tuple(range(SUB_BLOCK - 1, 2 * SUB_BLOCK - 1))
    whole = plan or LayerPlan(subject.model.n_layers)
    return ForwardRequest(Phase.REFRESH, tokens(subject, block, 1), whole, read=read)


def denoise(subject: Subject, plan: LayerPlan | None = None, seed: int = 2) -> ForwardRequest:
    """A DENOISE of the second sub-block with all but its first column masked.

    Args:
        subject: the model.
        plan: what each layer does; all are computed where it is None.
        seed: of the tokens.
    """
    whole = plan or LayerPlan(subject.model.n_layers)
    ids = tokens(subject, SUB_BLOCK, seed)
    return ForwardRequest(Phase.DENOISE, ids, whole, SUB_BLOCK, read=tuple(range(SUB_BLOCK - 1)))


def extents(ask: ForwardRequest, length: int, block: int, rows: int = 1) -> Forward:
    """What the floor of an ask is.

    Args:
        ask: the forward.
        length: tokens of the prefix ahead of it.
        block: tokens of a block.
        rows: rows that ask for it together.
    """
    width = len(ask.ids)
    seen = length + (width if ask.phase is Phase.PREFILL else block)
    return Forward(width, seen, rows * len(ask.read), rows, computed(ask))


def computed(ask: ForwardRequest) -> tuple[int, ...] | None:
    """The layers that an ask computes; None for all."""
    plan = ask.plan
    if not isinstance(plan, LayerPlan) or not plan.reuse:
        return None
    skipped = {layer for run in plan.reuse for layer in range(run.start, run.stop)}
    return tuple(layer for layer in range(plan.n_layers) if layer not in skipped)

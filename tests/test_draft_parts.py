"""Parts of verified decoding: values that are kept, whole plans, the chance of a draft."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fdllm
from fdllm.core.drafting import chance
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.layer_output_cache import LayerOutputCache
from fdllm.core.reuse import LayerPlan, LayerRun


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_stored_values_are_those_of_the_last_draft_that_is_kept(kept: int) -> None:
    outputs = LayerOutputCache(2, 4, 1, torch.zeros(1))
    run, columns = LayerRun(1, 3, "residual", keep=2), range(1, 3)
    first = Window((1,), (1,), 2, (4,), first_columns=(1,))
    drafts = [replace(first, draft=number) for number in (1, 2)]
    plan = fdllm.core.reuse.plan_steps(LayerPlan(4, store=(run,)))
    outputs.book(plan, ForwardBatch((first, *drafts)))
    outputs.write(run, (1,), (columns,), torch.full((1, 2, 1), 5.0))
    for number in (1.0, 2.0):
        outputs.draft(run, (1,), (columns,), torch.full((1, 2, 1), 5.0 + number))
    outputs.keep(1, kept)
    assert outputs.read(run, (1,), (columns,)).flatten().tolist() == [5.0 + kept] * 2
    if kept:
        line = replace(run, extrapolate=1.0)
        assert outputs.read(line, (1,), (columns,)).flatten().tolist() == [6.0 + kept] * 2
    outputs.keep(1, 2)
    assert outputs.read(run, (1,), (columns,)).flatten().tolist() == [5.0 + kept] * 2, "once"


def test_a_whole_plan_stores_what_the_drafter_reuses() -> None:
    run, probe = LayerRun(2, 4, "residual", keep=2), LayerRun(1, 2, "residual")
    drawn = replace(run, extrapolate=0.5)
    stored = LayerPlan(6, store=(run,))
    assert LayerPlan(6, reuse=(drawn,)).whole == stored.whole == stored
    assert LayerPlan(6, partial=(replace(run, columns=(1, 2)),)).whole == stored
    mid = ProbePlan(1, 0.5, calm=LayerPlan(6, reuse=(run,)), otherwise=stored)
    assert mid.whole == LayerPlan(6, store=(probe, run))


def test_the_chance_of_a_draft() -> None:
    assert chance([0.5], 1.0) == 1.0  # the last mask of a sub-block is unmasked next
    assert chance([0.9, 0.9], 1.0) == 0.5
    assert chance([0.98, 0.94, 0.94], 1.0) == pytest.approx(0.6)
    assert chance([0.9], 0.7) == pytest.approx(0.75)  # three times as far below 1 as the threshold
    assert chance([0.9, 0.1], 0.7) == pytest.approx(0.75 * 0.75)
    assert chance([0.4, 0.1], 0.7) == pytest.approx(2 / 3 * 0.75 * 0.6)
    assert 0 < chance([1.0, 1.0, 0.0], 1.0) < 0.51

"""How the embedded model is trained: what a batch shows, and that a run can be resumed."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from fdllm import tiny
from fdllm.tiny import vocabulary
from helpers import SURE
from tiny_training import batches, questions
from tiny_training.questions import Row, Split, Stage, TaskName
from train_tiny import LOG, LOG_OF_CHAINS, Recipe, Trainer

SHORT = Recipe(
    causal_steps=2,
    mixed_steps=3,
    steps=4,
    causal_rows=2,
    block_rows=2,
    kept_rows=1,
    warmup_steps=2,
)


@pytest.mark.slow
def test_no_held_out_row_was_ever_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row of both trainings, step by step: what each of the two models is tested with."""
    met: dict[bool, set[str]] = {True: set(), False: set()}  # by whether it has options
    draw = questions.training_row

    def watched(rng: random.Random, stage: Stage) -> Row:
        row = draw(rng, stage)
        met[row.question.startswith("What")].add(row.expression)
        return row

    monkeypatch.setattr(batches, "training_row", watched)
    asked: dict[Path, tuple[TaskName, ...]] = {LOG_OF_CHAINS: ("arithmetic", "choice")}
    for log, tasks in (asked | {LOG: ("sums",)}).items():
        recipe = Recipe(**json.loads(log.read_text().splitlines()[0])["recipe"])
        num = len(met[False])
        for step in range(recipe.steps):
            recipe.batches(step)
        assert len(met[False]) > num + 50_000
        for task, split in itertools.product(tasks, get_args(Split)):
            rows = {row.expression for row in questions.held_out(task, split)}
            assert not rows & met[task == "choice"]


def test_batches_depend_on_seed_and_step_alone() -> None:
    first, again = (batches.make_batch(3, 7, 8, "mixed") for _ in range(2))
    for name in ("ids", "positions", "visible", "targets", "weights"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert (batches.make_batch(3, 8, 8, "mixed").ids != first.ids).any()


def test_batches_mask_answers_only_and_shift_the_targets() -> None:
    batch = batches.make_batch(0, 0, 64, "mixed")
    masked = batch.ids == vocabulary.MASK_ID
    assert not masked[:, : batches.BLOCK].any(), "the clean block holds no mask"
    assert not masked[:, :: batches.BLOCK].any(), "a block's first column is always known"
    assert masked.any(axis=1).all()
    # Logits at column i-1 predict column i; beside that only the look-ahead has a weight.
    predicted = batch.weights > 0
    assert not (predicted[:, batches.BLOCK : -1] & ~masked[:, batches.BLOCK + 1 :]).any()
    assert predicted[:, batches.BLOCK :].any(axis=1).all()
    assert not predicted[:, : batches.BLOCK - 1].any()
    assert predicted[:, batches.BLOCK - 1].any()
    # Put the targets in: every copy is then a block of a well-formed row, and the prompt stands.
    filled = batch.ids.copy()
    filled[:, 1:][masked[:, 1:]] = batch.targets[:, :-1][masked[:, 1:]]
    for ids, at in zip(filled, batch.positions, strict=True):
        for copy in range(1, 1 + batches.NUM_COPIES):
            part = slice(copy * batches.BLOCK, (copy + 1) * batches.BLOCK)
            if at[part][0] == 0:
                np.testing.assert_array_equal(ids[part], ids[: batches.BLOCK])


def test_causal_batches_predict_the_answer_from_what_is_left_of_it() -> None:
    batch = batches.make_causal_batch(0, 0, 16, "mixed")
    np.testing.assert_array_equal(batch.targets[:, :-1], batch.ids[:, 1:])
    assert (batch.visible[0, 0] == np.tril(np.ones_like(batch.visible[0, 0]))).all()
    assert not (batch.ids == vocabulary.MASK_ID).any()
    for ids, weights in zip(batch.ids, batch.weights, strict=True):
        at = ids.tolist().index(vocabulary.ASSISTANT_ID)
        assert not weights[:at].any()
        assert weights[at:-1].all()
        assert not weights[-1]


def test_a_copy_sees_itself_and_what_is_finished() -> None:
    visible = batches.visibility(np.array([[0, 0, 1, 1]]))[0, 0]
    size = batches.BLOCK
    seen = visible[::size, ::size].astype(int).tolist()
    assert seen == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]]


def test_rates_rise_hold_and_fall_to_zero() -> None:
    recipe = Recipe(
        causal_steps=10, mixed_steps=14, steps=20, warmup_steps=4, block_rate=0.5, fade_steps=8
    )
    rates = [recipe.rate(step) for step in range(21)]
    assert rates[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates[10:15] == pytest.approx([0.5 * (1 - i / 8) for i in range(5)])
    assert rates[14:] == pytest.approx([0.25 * (6 - i) / 6 for i in range(7)])


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    whole, state = Trainer(SHORT), tmp_path / "state.pt"
    for _ in range(SHORT.steps - 1):
        whole.advance()
    whole.save(state)
    whole.advance()
    resumed = Trainer(SHORT)
    resumed.restore(state)
    resumed.advance()
    assert resumed.step == whole.step == SHORT.steps
    for name, parameter in whole.network.named_parameters():
        torch.testing.assert_close(resumed.network.get_parameter(name), parameter, rtol=0, atol=0)


@pytest.mark.parametrize("sums", [False, True])
def test_a_run_is_watched_by_the_sampler_and_the_scorer(
    sums: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train_tiny._VALIDATION_ROWS", 8)
    start = str(tiny.FOLDER if sums else SURE)
    trainer = Trainer(replace(SHORT, start=start, sums=sums))
    found = trainer.validate()
    if sums:
        assert found.keys() == {"sums_accuracy"}
        assert found["sums_accuracy"] > 0.5
    else:
        assert found["arithmetic_accuracy"] == 1.0
        assert 0 <= found["choice_accuracy"] <= 1
    assert all(p.requires_grad for p in trainer.network.parameters()), "and goes on"


def test_a_state_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Trainer(SHORT).save(tmp_path / "state.pt")
    with pytest.raises(ValueError, match="give the same options"):
        Trainer(Recipe(seed=1)).restore(tmp_path / "state.pt")

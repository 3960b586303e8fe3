"""Recorded forwards: the same tokens from buffers that are filled anew and work that is replayed.

A GPU replays graphs; here the work itself stands in for its replay, over the same fixed buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import fdllm
from fdllm.core.reuse import ReuseStrategy
from fdllm.fast.cuda_graphs import EXTENT_STEP, Capture, CudaGraphs, cuda_graph
from models import DECODING, PROMPTS, random_model, random_prompt
from strategies import STRATEGIES, every_strategy
from tape import Tape


@contextmanager
def recording(model: fdllm.Model, record: Capture) -> Iterator[None]:
    model.freeze()
    model.accelerator = CudaGraphs(record)
    try:
        yield
    finally:
        model.compile(asked=False)


@pytest.mark.parametrize("batch_size", [1, 3])
@every_strategy
def test_replays_give_the_same_tokens(strategy: ReuseStrategy[Any], batch_size: int) -> None:
    model = random_model(3)
    want = fdllm.generate(model, PROMPTS, DECODING, strategy, batch_size=batch_size)
    tape = Tape()
    with recording(model, tape):
        got = fdllm.generate(model, PROMPTS, DECODING, strategy, batch_size=batch_size)
    assert [one.tokens for one in got] == [one.tokens for one in want]
    assert [one.counts for one in got] == [one.counts for one in want]
    assert tape.replayed >= tape.recorded > 0


def test_one_recording_serves_many_positions() -> None:
    model = random_model(3)
    tape = Tape()
    decoding = DECODING.model_copy(update={"max_new_tokens": 90, "stop_token": None})
    with recording(model, tape):
        [out] = fdllm.generate(model, [random_prompt(1, 5)], decoding)
    assert EXTENT_STEP > 5 + 90 + 16
    # A REFRESH, which COMMIT shares, and DENOISE of the sub-blocks: whatever the block.
    assert tape.recorded <= 1 + 4
    assert tape.replayed > out.counts.forwards / 2


def test_scores_are_the_same() -> None:
    model = random_model(2)
    pairs = [(random_prompt(n, n), random_prompt(n + 9, 3)) for n in (5, 20, 33, 47)]
    decoding = fdllm.Decoding(block_size=16, small_block_size=4, mask_id=46, scoring_steps=4)
    strategy = STRATEGIES["k2-output"]
    want = fdllm.score(model, pairs, "denoise", decoding, strategy, batch_size=1)
    tape = Tape()
    with recording(model, tape):
        got = fdllm.score(model, pairs, "denoise", decoding, strategy, batch_size=1)
    assert tape.replayed
    for a, b in zip(got, want, strict=True):
        assert a.loglikelihood == pytest.approx(b.loglikelihood, rel=1e-5)
        assert a.counts == b.counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_graphs_on_a_gpu() -> None:
    model = fdllm.load_model("tiny", device="cuda", dtype="float32")
    prompts = [[5, 6, 7, 8] * n for n in (3, 9, 20)]
    decoding = fdllm.Decoding(max_new_tokens=64)
    want = fdllm.generate(model, prompts, decoding, strategy=STRATEGIES["k2-output"])
    with recording(model, cuda_graph):
        got = fdllm.generate(model, prompts, decoding, strategy=STRATEGIES["k2-output"])
    assert [one.tokens for one in got] == [one.tokens for one in want]

"""Recorded forwards: the same tokens from buffers that are filled anew and work that is replayed.

A GPU replays graphs; here the work itself stands in for its replay, over the same fixed buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import fdllm
from fdllm.core.drafting import Drafting
from fdllm.core.engine import Engine
from fdllm.core.reuse import ReuseStrategy
from fdllm.core.row_task import CacheRow, RowTask, Steps
from fdllm.errors import FdllmError
from fdllm.fast import cuda_graphs
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


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["none", "k2-residual"])
def test_drafts_are_replayed_too(name: str, batch_size: int) -> None:
    """Those whose layer outputs wait to be kept are not; texts are the same in any case."""
    model, tape = random_model(3), Tape()
    decoding = DECODING.model_copy(update={"threshold": 0.9, "max_new_tokens": 60})
    strategy = Drafting(3, STRATEGIES[name])
    want = fdllm.generate(model, PROMPTS, decoding, batch_size=batch_size)
    with recording(model, tape):
        got = fdllm.generate(model, PROMPTS, decoding, strategy, batch_size=batch_size)
        backend = model.backend(num_rows=batch_size, capacity=32, block_size=DECODING.block_size)
    assert [one.tokens for one in got] == [one.tokens for one in want]
    assert isinstance(backend, cuda_graphs.CudaGraphBackend)
    windows = [len(shapes) for shapes, _, _ in backend._recordings]  # noqa: SLF001 - what is kept
    # Rows side by side seldom draft alike, and what does not come again is not recorded.
    assert any(number > 1 for number in windows) == (name == "none" and batch_size == 1)


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


def test_the_next_run_replays_what_the_last_one_recorded() -> None:
    model, tape = random_model(3), Tape()

    def tokens(prompts: Sequence[list[int]]) -> list[list[int]]:
        strategy = STRATEGIES["k2-output"]
        return [fdllm.generate(model, [one], DECODING, strategy)[0].tokens for one in prompts]

    want = tokens(PROMPTS)
    with recording(model, tape):
        assert tokens(PROMPTS) == want
        recorded, replayed = tape.recorded, tape.replayed
        assert tokens(PROMPTS[::-1]) == want[::-1]
    assert tape.recorded == recorded  # nothing is recorded twice, whatever the prompt's length
    assert tape.replayed - replayed > recorded


def test_what_a_failed_run_left_is_not_used_again() -> None:
    def broken(task: RowTask[int], row: CacheRow) -> Steps[int]:
        del task, row
        raise FdllmError("a logit is not finite")
        yield

    model, size = random_model(3), DECODING.block_size
    with recording(model, Tape()):
        fdllm.generate(model, PROMPTS[:1], DECODING)
        kept = model.backend(num_rows=1, capacity=32, block_size=size)
        model.take_back(kept)
        with pytest.raises(FdllmError, match="not finite"):
            list(Engine(model, DECODING, 1).run([RowTask(broken, 32)]))
        fresh = model.backend(num_rows=1, capacity=32, block_size=size)
    assert kept.cache.keys.any()
    assert not fresh.cache.keys.any()


def test_weights_that_may_still_change_keep_no_recording() -> None:
    model = random_model(3)
    model.accelerator = CudaGraphs(Tape())
    fdllm.generate(model, PROMPTS[:1], DECODING)
    backend = model.backend(num_rows=1, capacity=32, block_size=DECODING.block_size)
    assert not backend.cache.keys.any()


def test_the_longest_unused_recording_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_MOST", 2)
    model, tape = random_model(3), Tape()
    want = fdllm.generate(model, PROMPTS, DECODING, STRATEGIES["k2-output"], batch_size=1)
    with recording(model, tape):
        got = fdllm.generate(model, PROMPTS, DECODING, STRATEGIES["k2-output"], batch_size=1)
        backend = model.backend(num_rows=1, capacity=32, block_size=DECODING.block_size)
    assert [one.tokens for one in got] == [one.tokens for one in want]
    assert isinstance(backend, cuda_graphs.CudaGraphBackend)
    assert tape.recorded > len(backend._recordings) == 2  # noqa: SLF001 - what is kept


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

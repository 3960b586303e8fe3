"""The engine against the published reference's outputs (``shared/golden``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fdllm
from fdllm.core.cache import RowCache, Window
from fdllm.core.layers import block_causal_mask
from fdllm.core.reuse import LayerPlan

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "golden" / "fast_dllm_v2"


@pytest.fixture(scope="module")
def model(folder: Path) -> fdllm.Model:
    return fdllm.load_model(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cases(folder: Path) -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = json.loads((folder / "cases.json").read_text())
    return loaded


def test_dense_logits(model: fdllm.Model, folder: Path) -> None:
    want = load_file(folder / "forward.safetensors")
    mask = block_causal_mask(64, 64, 32, torch.device("cpu"))
    with torch.inference_mode():
        got = model.network.dense(want["input_ids"], torch.arange(64), mask)
    torch.testing.assert_close(got, want["prefill_logits"], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_cached_logits(model: fdllm.Model, folder: Path) -> None:
    """PREFILL of two blocks, REFRESH on top, DENOISE of columns 16..23: every logits tensor."""
    want = load_file(folder / "forward.safetensors")
    network, plan = model.network, LayerPlan(model.n_layers)
    like = network.embedding.weight
    cache = RowCache(model.spec, num_rows=2, capacity=96, block_size=32, like=like)
    both = (0, 1)
    prefill = Window(both, (0, 0), 64, (64, 64), causal_block=32)
    hidden = network(want["input_ids"], cache, prefill, plan, [0, 0]).hidden
    torch.testing.assert_close(network.head(hidden), want["prefill_logits"], atol=TOLERANCE, rtol=0)
    for row in both:
        cache.commit(row, 64)
    hidden = network(
        want["block_ids"], cache, Window(both, (64, 64), 32, (96, 96)), plan, [0, 0]
    ).hidden
    torch.testing.assert_close(network.head(hidden), want["block_logits"], atol=TOLERANCE, rtol=0)
    small = Window(both, (80, 80), 8, (96, 96))
    hidden = network(want["small_ids"], cache, small, plan, [16, 16]).hidden
    torch.testing.assert_close(network.head(hidden), want["small_logits"], atol=TOLERANCE, rtol=0)


def _comparable(case: dict[str, Any]) -> list[int]:
    """The reference's new tokens that count: see the golden README."""
    new: list[int] = case["output"][len(case["prompt"]) :][: case["max_new_tokens"]]
    stop = case["stop_token"]
    return new[: new.index(stop) + 1] if stop in new else new


def test_generation(model: fdllm.Model, cases: dict[str, list[dict[str, Any]]]) -> None:
    assert cases["generation"]
    for case in cases["generation"]:
        keys = ("block_size", "small_block_size", "threshold", "use_block_cache")
        decoding = fdllm.Decoding(
            **{key: case[key] for key in keys},
            max_new_tokens=case["max_new_tokens"],
            stop_token=case["stop_token"],
            mask_id=case["mask_id"],
        )
        [out] = fdllm.generate(model, [case["prompt"]], decoding)
        want = _comparable(case)
        assert out.tokens[: len(want)] == want
        if out.tokens == want:  # the reference went at least as far, so it cannot have done less
            assert out.counts.forwards <= case["forward_calls"]


def test_loglikelihood(model: fdllm.Model, cases: dict[str, list[dict[str, Any]]]) -> None:
    assert cases["loglikelihood"]
    pairs = [(case["prefix"], case["target"]) for case in cases["loglikelihood"]]
    decoding = fdllm.Decoding(stop_token=2, mask_id=159)
    for batch_size in (1, None):
        scores = fdllm.score(model, pairs, "first-token", decoding, batch_size=batch_size)
        for case, got in zip(cases["loglikelihood"], scores, strict=True):
            assert got.loglikelihood == pytest.approx(case["loglikelihood"], abs=TOLERANCE)

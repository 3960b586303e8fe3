"""The engine against the published reference's outputs (``shared/golden``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import fdllm
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.network import block_causal_mask
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


def test_dense_logits(folder: Path) -> None:
    model = fdllm.load_model(folder, device="cpu", dtype="float32", freeze=False)
    want = load_file(folder / "forward.safetensors")
    mask = block_causal_mask(64, 64, 32, torch.device("cpu"))
    with torch.inference_mode():
        got = model.network.dense(want["input_ids"], torch.arange(64), mask)
    torch.testing.assert_close(got, want["prefill_logits"], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_cached_logits(model: fdllm.Model, folder: Path) -> None:
    """PREFILL of two blocks, REFRESH on top, DENOISE of columns 16..23: every logits tensor."""
    want = load_file(folder / "forward.safetensors")
    runner, plan, both = model.runner(), LayerPlan(model.n_layers), (0, 1)
    backend = model.backend(num_rows=2, capacity=96)

    def logits(name: str, window: Window) -> Tensor:
        ids = want[f"{name}_ids"]
        done = runner.forward(ids.view(-1), backend, ForwardBatch((window,)), plan)
        return runner.head(done.hidden).view(*ids.shape, -1)

    def check(name: str, got: Tensor) -> None:
        torch.testing.assert_close(got, want[f"{name}_logits"], atol=TOLERANCE, rtol=0)

    want["prefill_ids"] = want["input_ids"]
    check("prefill", logits("prefill", Window(both, (0, 0), 64, (64, 64), causal_block=32)))
    for row in both:
        backend.cache.commit(row, 64)
    check("block", logits("block", Window(both, (64, 64), 32, (96, 96))))
    small = Window(both, (80, 80), 8, (96, 96), first_columns=(16, 16))
    check("small", logits("small", small))


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

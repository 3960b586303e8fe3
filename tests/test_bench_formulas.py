"""What a bench computes beside measuring: memory by formula, fits, ratios."""

from __future__ import annotations

import pytest
import torch

from fdllm.bench.formula import cache_bytes, check_room, weight_bytes
from fdllm.bench.growth import fit
from fdllm.bench.results import Line
from fdllm.bench.shapes import SHAPES, random_model
from fdllm.bench.timing import Spread
from fdllm.bench.topics import SHAPE_NAMES
from fdllm.core.cache import RowCache
from fdllm.errors import FdllmError
from models import random_model as tiny_random


@pytest.mark.parametrize("name", [name for name in SHAPE_NAMES if SHAPES[name] is not None])
def test_weights_by_formula(name: str) -> None:
    spec = SHAPES[name]
    assert spec is not None
    with torch.device("meta"):
        network = type(tiny_random().network)(spec)
    assert weight_bytes(spec, 2) == 2 * sum(p.numel() for p in network.parameters())


def test_caches_by_formula() -> None:
    spec = tiny_random().spec
    like = torch.zeros((), dtype=torch.float32)
    cache = RowCache(spec, num_rows=3, capacity=64, block_size=16, like=like)
    expected = (cache.keys.numel() + cache.values.numel()) * 4
    assert cache_bytes(spec, 4, 50, 3) == expected


def test_the_large_shapes_are_the_published_ones() -> None:
    spec = SHAPES["7B"]
    assert spec is not None
    assert (spec.num_layers, spec.hidden_size, spec.intermediate_size) == (28, 3584, 18944)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (28, 4, 128)
    assert spec.vocab_size == 152064
    assert weight_bytes(spec, 2) == pytest.approx(15.2e9, rel=0.01)


def test_what_does_not_fit_is_refused_before_it_is_made() -> None:
    spec = SHAPES["7B"]
    assert spec is not None
    huge = type(spec)(**{**vars(spec), "num_layers": 28_000})
    with pytest.raises(FdllmError, match="choose a smaller --shape"):
        check_room("huge", huge, torch.device("cpu"), torch.float32)
    with pytest.raises(FdllmError, match="huge in float32 needs about"):
        random_model("huge", huge, "cpu", "float32")


def test_a_fit_finds_what_made_the_numbers() -> None:
    at = [64.0, 128.0, 512.0, 4096.0]
    assert fit(at, [3 + 0.5 * n for n in at], ("1", "n")) == pytest.approx([3, 0.5])
    squares = [1 + 0.1 * n + 0.01 * n * n for n in at]
    assert fit(at, squares, ("1", "n", "n²")) == pytest.approx([1, 0.1, 0.01])
    assert fit([1.0, 2.0, 4.0], [5.0, 4.0, 3.5], ("1/n", "1")) == pytest.approx([2, 3])


def test_ratios_are_taken_repeat_by_repeat() -> None:
    line = Line("x", Spread((2.0, 8.0, 3.0)), Spread((1.0, 4.0, 3.0)), Spread((4.0, 4.0, 9.0)))
    assert line.over_floor.values == (2.0, 2.0, 1.0)
    assert line.over_floor.median == 2.0
    assert line.speed_up is not None
    assert line.speed_up.values == (2.0, 0.5, 3.0)
    assert (line.measured.low, line.measured.high) == (2.0, 8.0)

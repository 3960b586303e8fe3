"""A walk measures what the definition of the network says, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import fdllm
from fdllm.core.reuse import PeriodicReuse
from fdllm.core.row_task import ForwardRequest, RowTask, around
from fdllm.profiling.layer_set import LayerSetReuse, stretches
from fdllm.profiling.record import BINS, Means
from fdllm.profiling.walk import LayerWalk, phase_maps
from models import DECODING, MASK, PROMPTS, random_model

BLOCK = DECODING.block_size


def walked(
    model: fdllm.Model, prompts: list[list[int]], decoding: fdllm.Decoding, batch_size: int
) -> tuple[list[list[int]], LayerWalk]:
    walk = LayerWalk(model, MASK, BLOCK)
    outs = fdllm.generate(model, prompts, decoding, batch_size=batch_size, hook=walk)
    return [one.tokens for one in outs], walk


@pytest.mark.parametrize("use_block_cache", [True, False])
def test_texts_stay_and_figures_do_not_depend_on_the_batch(*, use_block_cache: bool) -> None:
    model = random_model(3)
    decoding = DECODING.model_copy(update={"use_block_cache": use_block_cache})
    plain = [one.tokens for one in fdllm.generate(model, PROMPTS, decoding)]
    alone, one = walked(model, PROMPTS, decoding, 1)
    together, many = walked(model, PROMPTS, decoding, len(PROMPTS))
    assert alone == together == plain
    denoise = 0
    for number in range(len(PROMPTS)):
        a, b = (phase_maps([walk.tallies[number]]) for walk in (one, many))
        denoise += sum(a["denoise"].forwards)
        for phase in a:
            assert a[phase].forwards == b[phase].forwards
            assert a[phase].compared == b[phase].compared
            for name in ("similarity", "change"):
                x, y = (numbers(getattr(found[phase], name)) for found in (a, b))
                torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
    assert (denoise > 0) == use_block_cache


def numbers(means: Means) -> torch.Tensor:
    return torch.tensor([[-1 if v is None else v for v in row] for row in means])


class Asked:
    """Keeps what a row asks for."""

    def __init__(self) -> None:
        self.requests: list[ForwardRequest] = []

    def wrap(self, task: RowTask[Any]) -> RowTask[Any]:
        def kept(_: Any, __: Any, ask: ForwardRequest) -> Any:
            self.requests.append(ask)
            return (yield ask)

        return around(task, kept)


def test_figures_are_those_of_the_definition() -> None:
    """Without a cache a forward is the whole block, which is all there is behind a short prompt."""
    model, prompt = random_model(5), PROMPTS[1]
    decoding = DECODING.model_copy(
        update={"use_block_cache": False, "stop_token": (), "max_new_tokens": BLOCK - len(prompt)}
    )
    seen = Asked()
    fdllm.generate(model, [prompt], decoding, hook=seen)
    _, walk = walked(model, [prompt], decoding, 1)
    found = phase_maps([walk.tallies[0]])["refresh"]

    cos, sin = (t[:BLOCK] for t in model.network._table())  # noqa: SLF001 - no other way in
    sums = torch.zeros(2, model.n_layers, BINS)
    counts, old = [[0] * BINS, [0] * BINS], None
    for ask in seen.requests:
        share = ask.ids.count(MASK) / BLOCK
        place = next(i for i in range(BINS) if share <= (i + 1) / BINS)
        x, residuals = model.network.embedding(torch.tensor([ask.ids])), []
        counts[0][place] += 1
        for layer in model.network.stack:
            y = layer(x, cos, sin, None)
            sums[0, layer.index, place] += F.cosine_similarity(x, y, dim=-1).mean()
            residuals.append(y - x)
            x = y
        if old is not None:
            counts[1][place] += 1
            for i, (a, b) in enumerate(zip(residuals, old, strict=True)):
                sums[1, i, place] += (a - b).norm() / b.norm()
        old = residuals
    assert len(seen.requests) > 3
    assert [found.forwards, found.compared] == [tuple(one) for one in counts]
    for name, total, count in zip(("similarity", "change"), sums, counts, strict=True):
        for row, expected in zip(getattr(found, name), total, strict=True):
            for value, one, n in zip(row, expected, count, strict=True):
                assert (value is None) == (n == 0)
                assert value is None or value == pytest.approx(float(one) / n, abs=1e-4)


def test_a_block_s_first_forward_has_nothing_to_be_compared_with() -> None:
    model, prompt, seen = random_model(3), PROMPTS[1], Asked()
    decoding = DECODING.model_copy(update={"stop_token": (), "max_new_tokens": 4 * BLOCK})
    fdllm.generate(model, [prompt], decoding, hook=seen)
    _, walk = walked(model, [prompt], decoding, 1)
    maps = phase_maps([walk.tallies[0]]).values()
    commits = [ask for ask in seen.requests if ask.phase.value == "commit"]
    assert len(commits) == 4
    assert sum(sum(one.forwards) - sum(one.compared) for one in maps) == 5


def test_a_layer_that_does_nothing_has_cosine_1_and_no_change() -> None:
    model = random_model(3)
    for part in (model.network.stack[2].o, model.network.stack[2].down):
        part.weight.data.zero_()
    _, walk = walked(model, PROMPTS, DECODING, 4)
    for found in phase_maps(list(walk.tallies.values())).values():
        assert {v for v in found.change[2] if v is not None} <= {0.0}
        for value in found.similarity[2]:
            assert value is None or value == pytest.approx(1.0, abs=1e-5)
        assert all(v is None or v < 0.999 for v in found.similarity[1])


# --- reuse of a set of layers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "expected"),
    [((), []), ((3,), [(3, 4)]), ((1, 2, 3), [(1, 4)]), ((0, 2, 3, 5), [(0, 1), (2, 4), (5, 6)])],
)
def test_adjacent_layers_are_one_stretch(
    layers: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    assert stretches(layers) == expected


@pytest.mark.parametrize("target", ["output", "residual"])
def test_adjacent_layers_are_reused_as_periodic_reuse_does(target: Any) -> None:
    model = random_model(3)
    a = fdllm.generate(model, PROMPTS, DECODING, PeriodicReuse(2, 2, 5, target))
    b = fdllm.generate(model, PROMPTS, DECODING, LayerSetReuse(2, (2, 3, 4), target))
    assert [(one.tokens, one.counts) for one in a] == [(one.tokens, one.counts) for one in b]
    assert sum(one.counts.reused for one in a)


def test_layers_that_are_not_adjacent_are_reused_too() -> None:
    strategy = LayerSetReuse(2, (1, 4))
    outs = fdllm.generate(random_model(3), PROMPTS, DECODING, strategy)
    for one in outs:
        denoise = one.counts["denoise"]
        assert denoise.reused % 2 == 0
        assert denoise.reused + denoise.computed == 6 * denoise.forwards
    assert sum(one.counts["denoise"].reused for one in outs)
    assert strategy.layer_subset(6) == (1, 4)

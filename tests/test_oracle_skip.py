"""The oracle's plans run to plain decoding's texts; no tried plan that keeps them saves more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fdllm
from fdllm.core.reuse import LayerPlan, LayerRun, ReuseStrategy
from fdllm.core.schedule import Phase
from fdllm.core.unmask import by_threshold
from fdllm.errors import UsageError
from fdllm.experiment import list_experiments, load_experiment, load_strategy
from fdllm.profiling.oracle import (
    TARGETS,
    Found,
    OracleSkip,
    _Course,
    _Search,
    best_plans,
    oracle_skip,
    saved,
)
from helpers import ROOT
from models import DECODING, random_model, random_prompt
from strategies import STRATEGIES
from tiny_training.questions import held_out

MODEL = random_model()
SHORT = DECODING.model_copy(update={"max_new_tokens": 10})
MANY = [random_prompt(i, 1 + i) for i in range(20)]
SETTINGS = {
    "cache": SHORT,
    "no-cache": SHORT.model_copy(update={"use_block_cache": False}),
    "one-token": SHORT.model_copy(update={"threshold": 1.0}),
}
# One run a step, from what a whole step stored, and a REFRESH ahead of a DENOISE is whole.
ON_DENOISE = ("k2-output", "k3-output-first", "k3-output-last", "k2-residual", "whole-model",
              "calm-tokens", "calm-confidence", "calm-probe")  # fmt: skip
ON_REFRESH = ("k2-output-refresh", "k3-residual-refresh")  # such ones where all are REFRESH


@pytest.fixture(scope="module", params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def oracle(setting: str) -> OracleSkip:
    return oracle_skip(MODEL, MANY, SETTINGS[setting])


def unchanged(
    model: fdllm.Model,
    prompts: Sequence[Sequence[int]],
    decoding: fdllm.Decoding,
    strategy: ReuseStrategy[Any],
    oracle: OracleSkip,
) -> Iterator[tuple[float, int]]:
    """Layer calls that a strategy and the oracle save, of each text whose unmasking stays."""
    tried = fdllm.generate(model, prompts, decoding, strategy, batch_size=16)
    for one, row in zip(tried, oracle.rows, strict=True):
        if (one.tokens, one.steps) == (row.plain.tokens, row.plain.steps):
            made = one.counts.computed - one.counts.trimmed
            yield row.plain.counts.computed - made, row.run.counts.reused


def test_its_plans_run_to_the_texts_of_plain_decoding(setting: str, oracle: OracleSkip) -> None:
    plain = fdllm.generate(MODEL, MANY, SETTINGS[setting])
    assert [row.run.tokens for row in oracle.rows] == [one.tokens for one in plain]
    assert [row.run.steps for row in oracle.rows] == [one.steps for one in plain]
    assert [row.plain.counts for row in oracle.rows] == [one.counts for one in plain]
    assert oracle.equal_texts == len(MANY)


def test_what_it_saves_is_counted_by_the_engine(setting: str, oracle: OracleSkip) -> None:
    assert 0 < oracle.layer_calls_saved < oracle.layer_calls_whole
    assert oracle.layer_calls_saved == sum(saved(row.plans) for row in oracle.rows)
    made = [row.run.counts for row in oracle.rows]
    assert oracle.layer_calls_whole == sum(one.computed + one.reused for one in made)
    assert (oracle.denoise_share == 0) == (setting == "no-cache")
    steps = sum(len(row.plans) for row in oracle.rows)
    assert sum(oracle.by_layer) * steps == pytest.approx(oracle.layer_calls_saved)


@pytest.mark.parametrize("name", [*ON_DENOISE, *ON_REFRESH])
def test_no_tried_plan_that_keeps_all_unmasking_saves_more(
    setting: str, oracle: OracleSkip, name: str
) -> None:
    if name in ON_REFRESH and setting != "no-cache":
        return  # a REFRESH ahead of a DENOISE reuses: nothing is promised
    rows = unchanged(MODEL, MANY, SETTINGS[setting], STRATEGIES[name], oracle)
    assert all(mine <= most for mine, most in rows)


@pytest.mark.slow
def test_no_config_of_any_experiment_saves_more_where_it_keeps_all_unmasking() -> None:
    model = fdllm.load_model("tiny", device="cpu", dtype="float32")
    prompts = [row.prompt_ids for row in held_out("sums", "test")[:6]]
    decoding = fdllm.Decoding(threshold=0.97, max_new_tokens=56)
    oracle = oracle_skip(model, prompts, decoding)
    assert oracle.equal_texts == len(prompts)
    kept = 0
    for strategy in every_config(model.n_layers):
        for mine, most in unchanged(model, prompts, decoding, strategy, oracle):
            assert mine <= most, strategy
            kept += mine > 0
    assert kept > 50


def every_config(n_layers: int) -> Iterator[ReuseStrategy[Any]]:
    for name in list_experiments(ROOT):
        study = load_experiment(name, ROOT)
        for cell in study.cells:
            params = study.params(cell)
            yield load_strategy(name, k=cell.k, subset=cell.subset, n_layers=n_layers, **params)


def test_layers_that_do_nothing_are_all_spared() -> None:
    model = random_model()
    with torch.no_grad():
        for layer in model.network.stack:
            layer.o.weight.zero_()
            layer.down.weight.zero_()
    row = oracle_skip(model, MANY[:1], SHORT).rows[0]
    refresh = row.plain.counts[Phase.REFRESH].forwards
    denoise = row.plain.counts[Phase.DENOISE].forwards
    assert denoise
    assert len(row.plans) == refresh + denoise
    assert all(plan.num_reused == model.n_layers for plan in row.plans if plan.reuse)
    # What is whole: a block's first step, and a REFRESH ahead of a DENOISE.
    assert row.run.counts[Phase.DENOISE].reused == denoise * model.n_layers


def test_batches_change_nothing() -> None:
    alone = [oracle_skip(MODEL, [prompt], SHORT).rows[0] for prompt in MANY[:4]]
    together = oracle_skip(MODEL, MANY[:4], SHORT, batch_size=3).rows
    assert [row.plans for row in alone] == [row.plans for row in together]


def test_a_course_that_leaves_the_plain_one_computes_every_layer() -> None:
    plain = _Course()
    fdllm.generate(MODEL, MANY[:1], SHORT, hook=plain)
    search = _Search(MODEL.n_layers, plain.seen[0], by_threshold, 0.0)
    search.plans = [LayerPlan(MODEL.n_layers, reuse=(LayerRun(0, 1),))] * len(list(search.steps))
    other = fdllm.generate(MODEL, [MANY[9]], SHORT, hook=_Course([search]))[0]
    assert other.tokens == fdllm.generate(MODEL, [MANY[9]], SHORT)[0].tokens
    assert other.counts.reused == 0


def test_drawn_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="got temperature=0.5"):
        oracle_skip(MODEL, MANY[:1], SHORT.model_copy(update={"temperature": 0.5}))


@st.composite
def blocks(draw: st.DrawFn) -> tuple[list[Phase], Found]:
    later = draw(st.lists(st.sampled_from([Phase.REFRESH, Phase.DENOISE]), max_size=5))
    phases = [Phase.REFRESH, *later]
    found = Found()
    for step, target in product(range(len(phases)), TARGETS):
        for source in range(step):
            length = draw(st.integers(0, 3))
            if length:
                found[step, source, target] = LayerRun(1, 1 + length, target)
    return phases, found


@given(blocks())
def test_of_all_plans_of_its_kind_it_takes_the_best(block: tuple[list[Phase], Found]) -> None:
    phases, found = block
    most = 0
    for target, skips in product(TARGETS, product((False, True), repeat=len(phases))):
        total, source = 0, -1
        for step, skip in enumerate(skips):
            owed = step == 0 or phases[step : step + 2] == [Phase.REFRESH, Phase.DENOISE]
            run = found.get((step, source, target))
            if not skip:
                source = step
            elif owed or run is None:
                break
            else:
                total += len(run)
        else:
            most = max(most, total)
    plans = best_plans(4, phases, found)
    assert len(plans) == len(phases)
    assert saved(plans) == most

"""Verified decoding: texts and steps of plain decoding, whatever is drafted (algorithm.md 4.10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fdllm
from fdllm.core.counts import Counts
from fdllm.core.drafting import Drafting
from fdllm.core.forward_batch import ForwardBatch, Window
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.layer_output_cache import LayerOutputCache
from fdllm.core.reuse import LayerPlan, LayerRun, NoReuse, PeriodicReuse, ReuseStrategy
from fdllm.core.row_task import CacheRow, RowTask, Steps
from fdllm.core.sampler import Generation
from fdllm.core.schedule import Phase
from fdllm.errors import UsageError
from fdllm.runs import Cell, Run
from fdllm.trace.document import DocumentName, trace_document
from helpers import SURE
from models import DECODING, MASK, PROMPTS, STOP, model_of, random_model, random_prompt
from models import wide_network as wide
from reference import reference_generate
from strategies import STRATEGIES
from tiny_training.questions import TaskName, held_out

T = TypeVar("T")
LOGITS = Drafting(3, NoReuse())
RESIDUAL = Drafting(3, PeriodicReuse(4, 1, 3, "residual", refresh_reuse=True))
BOTH = pytest.mark.parametrize("strategy", [LOGITS, RESIDUAL], ids=["logits", "reuse"])
CACHED = pytest.mark.parametrize("cached", [True, False], ids=["cache", "no-cache"])


def decoding(**changes: Any) -> fdllm.Decoding:
    return DECODING.model_copy(update=changes)


def assert_same(got: list[Generation], want: list[Generation]) -> None:
    """Tokens, steps and ends; and what the counters say of them."""
    for mine, plain in zip(got, want, strict=True):
        assert (mine.tokens, mine.finish, mine.steps) == (plain.tokens, plain.finish, plain.steps)
        counts = mine.counts
        assert counts.rounds <= len(mine.steps) <= counts.rounds + counts.drafted
        assert plain.counts.rounds == len(plain.steps)
        assert plain.counts.drafted == 0


# --- texts ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    length=st.sampled_from([1, 3, 15, 16, 17, 31, 32, 36]),
    threshold=st.sampled_from([0.3, 0.6, 0.9, 0.97, 1.0]),
    width=st.sampled_from([1, 2, 4, 8, 16]),
    cached=st.booleans(),
    name=st.sampled_from(list(STRATEGIES)),
    drafts=st.sampled_from([1, 2, 3, 8]),
    stop=st.integers(3, MASK - 1),
    limit=st.sampled_from([1, 7, 20, 40]),
)
def test_texts_are_plain_decoding_s_whatever_drafts(
    seed: int,
    length: int,
    threshold: float,
    width: int,
    cached: bool,
    name: str,
    drafts: int,
    stop: int,
    limit: int,
) -> None:
    model, prompt = random_model(seed % 7), random_prompt(seed, length)
    settings = decoding(
        small_block_size=width,
        threshold=threshold,
        use_block_cache=cached,
        max_new_tokens=limit,
        stop_token=stop,
        mask_id=MASK,
    )
    got = fdllm.generate(model, [prompt], settings, Drafting(drafts, STRATEGIES[name]))
    assert_same(got, fdllm.generate(model, [prompt], settings))


@BOTH
@CACHED
@pytest.mark.parametrize("threshold", [0.7, 1.0])
def test_texts_are_the_oracle_s(
    strategy: ReuseStrategy[Any], cached: bool, threshold: float
) -> None:
    model, prompt = random_model(3), random_prompt(5, 18)
    settings = decoding(threshold=threshold, use_block_cache=cached, mask_id=MASK)
    [got] = fdllm.generate(model, [prompt], settings, strategy)
    assert got.tokens == reference_generate(model, prompt, settings, NoReuse())


@pytest.mark.parametrize("name", STRATEGIES)
@CACHED
def test_each_strategy_drafts_and_changes_no_text(name: str, cached: bool) -> None:
    model, strategy = random_model(3), STRATEGIES[name]
    settings = decoding(use_block_cache=cached, threshold=0.9)
    got = fdllm.generate(model, PROMPTS, settings, Drafting(3, strategy))
    assert_same(got, fdllm.generate(model, PROMPTS, settings))
    counts = sum((one.counts for one in got), Counts())
    drafting = sum(counts[phase].drafting for phase in Phase)
    # Without the block cache every step is a REFRESH, and not all of them reuse there.
    acts = cached or strategy.refresh_reuse or not strategy.reuses or name == "calm-probe"
    assert (counts.drafted > 0) == acts or name == "calm-probe"
    assert (drafting > 0) == (strategy.reuses and counts.drafted > 0)
    assert (counts.reused + counts.trimmed > 0) == (drafting > 0)


@BOTH
@CACHED
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_the_batch_changes_nothing(
    strategy: ReuseStrategy[Any], cached: bool, threshold: float
) -> None:
    model, prompts = random_model(3), [*PROMPTS, *PROMPTS[::-1], *PROMPTS[:5]]
    settings = decoding(use_block_cache=cached, threshold=threshold)
    alone = [fdllm.generate(model, [p], settings, strategy)[0] for p in prompts]
    assert_same(alone, fdllm.generate(model, prompts, settings))
    for batch_size in (3, 17):
        got = fdllm.generate(model, prompts, settings, strategy, batch_size=batch_size)
        assert [one.tokens for one in got] == [one.tokens for one in alone]
        assert [one.counts for one in got] == [one.counts for one in alone]


@BOTH
@CACHED
def test_packed_matrices_and_half_types(strategy: ReuseStrategy[Any], cached: bool) -> None:
    settings = fdllm.Decoding(
        threshold=0.9, use_block_cache=cached, max_new_tokens=20, stop_token=STOP
    )
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(wide(dtype))
        model.freeze()
        got = fdllm.generate(model, PROMPTS[:4], settings, strategy, batch_size=3)
        assert_same(got, fdllm.generate(model, PROMPTS[:4], settings))


@BOTH
def test_an_until_string_and_a_rule_of_one_s_own(strategy: ReuseStrategy[Any]) -> None:
    model = random_model(3)

    def leftmost(confidence: Any, threshold: float) -> list[int]:  # noqa: ARG001 - the form's
        return [0]

    got = fdllm.generate(model, PROMPTS, DECODING, strategy, unmask=leftmost)
    assert_same(got, fdllm.generate(model, PROMPTS, DECODING, unmask=leftmost))


@dataclass
class Poison:
    """Makes NaN of what a sub-block's forward left of its own columns, up to the next REFRESH."""

    def wrap(self, task: RowTask[T]) -> RowTask[T]:
        steps = task.steps
        return replace(task, steps=lambda task, row: self._steps(steps, task, row))

    @staticmethod
    def _steps(
        steps: Callable[[RowTask[T], CacheRow], Steps[T]], task: RowTask[T], row: CacheRow
    ) -> Steps[T]:
        inner = steps(task, row)
        try:
            ask = next(inner)
            while True:
                told = yield ask
                states = (ask, *ask.drafts)
                for i, one in enumerate(states):
                    if all(later.phase is Phase.DENOISE for later in states[i:]):
                        at = slice(row.length + one.start, row.length + one.start + len(one.ids))
                        row.cache.keys[:, row.index, :, at] = float("nan")
                        row.cache.values[:, row.index, :, at] = float("nan")
                ask = inner.send(told)
        except StopIteration as end:
            result: T = end.value
            return result


@pytest.mark.parametrize("strategy", [NoReuse(), LOGITS, RESIDUAL], ids=["plain", "logits", "own"])
def test_what_a_rejected_draft_leaves_in_the_block_cache_is_never_read(
    strategy: ReuseStrategy[Any],
) -> None:
    model = random_model(3)
    settings = decoding(threshold=1.0)
    got = fdllm.generate(model, PROMPTS, settings, strategy, hook=Poison())
    assert_same(got, fdllm.generate(model, PROMPTS, settings))


# --- what is kept ---------------------------------------------------------------------------------


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


# --- counted --------------------------------------------------------------------------------------


@CACHED
def test_texts_rounds_and_costs_where_drafts_are_kept(
    sure_model: fdllm.Model, cached: bool
) -> None:
    """A draft from logits costs columns, and no weights but those of the round."""
    settings = fdllm.Decoding(threshold=1.0, max_new_tokens=40, use_block_cache=cached)
    prompts = [row.prompt_ids for row in held_out("arithmetic", "test")[:3]]
    plain = fdllm.generate(sure_model, prompts, settings)
    got = fdllm.generate(sure_model, prompts, settings, LOGITS)
    assert_same(got, plain)
    counts, its = (sum((one.counts for one in outs), Counts()) for outs in (got, plain))
    decoding = (Phase.REFRESH, Phase.DENOISE)
    assert sum(counts[phase].forwards for phase in decoding) == counts.rounds + counts.drafted
    assert counts.reused == 0
    assert counts.computed == counts.forwards * sure_model.n_layers
    assert counts.rounds < 0.7 * its.rounds
    flops, weights = (
        [sum(getattr(c[phase], name) for phase in decoding) for c in (counts, its)]
        for name in ("flops", "weight_bytes")
    )
    assert flops[0] >= flops[1]
    assert weights[0] < 0.7 * weights[1]
    assert counts[Phase.COMMIT] == its[Phase.COMMIT]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_drafter_s_texts_where_drafts_are_kept(sure_model: fdllm.Model, name: str) -> None:
    settings = fdllm.Decoding(threshold=1.0, max_new_tokens=20)
    prompts = [row.prompt_ids for row in held_out("arithmetic", "test")[:3]]
    got = fdllm.generate(sure_model, prompts, settings, Drafting(2, STRATEGIES[name]))
    assert_same(got, fdllm.generate(sure_model, prompts, settings))


def test_no_state_behind_the_end_is_drafted() -> None:
    """One token a step, and one step to go: nothing is left to draft."""
    model = random_model(3)
    settings = decoding(threshold=1.0, max_new_tokens=1, small_block_size=1)
    [got] = fdllm.generate(model, [random_prompt(1, 3)], settings, LOGITS)
    assert got.counts.drafted == 0


def test_scoring_drafts_nothing() -> None:
    model, pairs = random_model(3), [(random_prompt(1, 5), random_prompt(2, 3))]
    for scoring in ("denoise", "chain"):
        want = fdllm.score(model, pairs, scoring, DECODING)
        got = fdllm.score(model, pairs, scoring, DECODING, LOGITS)
        assert (got[0].loglikelihood, got[0].counts) == (want[0].loglikelihood, want[0].counts)


# --- refused --------------------------------------------------------------------------------------


def test_no_drafts_and_sampling_are_refused() -> None:
    with pytest.raises(UsageError, match="drafts must be 1 or more; got 0"):
        Drafting(0, NoReuse())
    with pytest.raises(UsageError, match="greedy; got temperature=0.5"):
        fdllm.generate(random_model(), PROMPTS[:1], decoding(temperature=0.5), LOGITS)


def test_a_trace_names_the_config_that_has_the_steps() -> None:
    run = Run(experiment="12_verified", task="tiny_arithmetic", cell=Cell(name="r3"))
    with pytest.raises(UsageError, match="'r3' verifies drafts: its steps are those of k=1"):
        trace_document(random_model(), run, LOGITS, DocumentName(0))


# --- the models of the tests ----------------------------------------------------------------------


def noisy(noise: float) -> fdllm.Model:
    """The sure model, its layers' matrices less so: noise by the matrix's own deviation."""
    model = fdllm.core.checkpoint.load_model(SURE, device="cpu", dtype="float32", freeze=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if name.startswith("layers") and weight.dim() == 2:
                drawn = torch.randn(weight.shape, generator=generator)
                weight.add_(drawn * noise * weight.std())
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "threshold", "by_logits", "by_reuse"),
    [(0.0, 1.0, 3.04, (4, 1.76)), (0.42, 0.999, 1.89, (2, 1.36)), (0.42, 0.99, 1.48, (1, 1.18))],
)
def test_gain_by_the_cost_model_of_a_memory_bound_device(
    noise: float, threshold: float, by_logits: float, by_reuse: tuple[int, float]
) -> None:
    """Steps by rounds and drafts' shares of the layers: the first block of 24 rows, no cache."""
    model, rows = noisy(noise), held_out("arithmetic", "test")[:24]
    drafts, least = by_reuse
    layers = PeriodicReuse(drafts + 1, 1, model.n_layers - 1, "residual", refresh_reuse=True)

    def first_blocks(strategy: ReuseStrategy[Any]) -> list[Generation]:
        settings = fdllm.Decoding(threshold=threshold, use_block_cache=False)
        return [
            fdllm.generate(
                model,
                [row.prompt_ids],
                settings.model_copy(update={"max_new_tokens": 32 - len(row.prompt_ids)}),
                strategy,
            )[0]
            for row in rows
        ]

    plain = first_blocks(NoReuse())
    for strategy, gain in ((Drafting(8, NoReuse()), by_logits), (Drafting(drafts, layers), least)):
        got = first_blocks(strategy)
        assert_same(got, plain)
        counts = sum((one.counts for one in got), Counts())
        shares = sum(counts[phase].computed for phase in (Phase.REFRESH, Phase.DENOISE))
        cost = shares / model.n_layers - counts.drafted
        assert round(sum(len(one.steps) for one in plain) / cost, 2) >= gain


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.9, 0.97, 1.0])
@CACHED
@BOTH
def test_texts_of_the_embedded_model(
    strategy: ReuseStrategy[Any], cached: bool, threshold: float
) -> None:
    model = fdllm.load_model("tiny", device="cpu", dtype="float32")
    settings = fdllm.Decoding(threshold=threshold, use_block_cache=cached, max_new_tokens=56)
    task: TaskName = "sums"
    prompts = [row.prompt_ids for row in held_out(task, "test")[:200]]
    plain = fdllm.generate(model, prompts, settings, batch_size=17)
    got = fdllm.generate(model, prompts, settings, strategy, batch_size=3)
    assert_same(got, plain)

"""Verified decoding: texts and steps of plain decoding, whatever is drafted (algorithm.md 4.10)."""

from __future__ import annotations

import math
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
from fdllm.core.reuse import NoReuse, PeriodicReuse, ReuseStrategy
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


# --- counted --------------------------------------------------------------------------------------


@dataclass
class Sure:
    """Decodes three rows by a model that is sure of itself, one token a step."""

    model: fdllm.Model
    prompts: list[list[int]]

    def counts(self, strategy: ReuseStrategy[Any], **changes: Any) -> tuple[Counts, Counts]:
        """Of a strategy that drafts and of plain decoding; their texts and steps are the same."""
        settings = fdllm.Decoding(**{"threshold": 1.0, "max_new_tokens": 40, **changes})
        plain = fdllm.generate(self.model, self.prompts, settings)
        got = fdllm.generate(self.model, self.prompts, settings, strategy)
        assert_same(got, plain)
        counts, its = (sum((one.counts for one in outs), Counts()) for outs in (got, plain))
        return counts, its


@pytest.fixture
def sure(sure_model: fdllm.Model) -> Sure:
    return Sure(sure_model, [row.prompt_ids for row in held_out("arithmetic", "test")[:3]])


@CACHED
def test_texts_rounds_and_costs_where_drafts_are_kept(sure: Sure, cached: bool) -> None:
    """A draft from logits costs columns, and no weights but those of the round."""
    counts, its = sure.counts(LOGITS, use_block_cache=cached)
    decoding = (Phase.REFRESH, Phase.DENOISE)
    assert sum(counts[phase].forwards for phase in decoding) == counts.rounds + counts.drafted
    assert counts.reused == 0
    assert counts.computed == counts.forwards * sure.model.n_layers
    assert counts.rounds < 0.5 * its.rounds
    flops, weights = (
        [sum(getattr(c[phase], name) for phase in decoding) for c in (counts, its)]
        for name in ("flops", "weight_bytes")
    )
    assert flops[0] >= flops[1]
    assert weights[0] < 0.5 * weights[1]
    assert counts[Phase.COMMIT] == its[Phase.COMMIT]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_drafter_s_texts_where_drafts_are_kept(sure: Sure, name: str) -> None:
    sure.counts(Drafting(2, STRATEGIES[name]), max_new_tokens=20)
    sure.counts(Drafting(8, STRATEGIES[name], overhead=16.0), max_new_tokens=20)


def test_a_refresh_is_drafted_too(sure: Sure) -> None:
    """Every sub-block begins with one, so that rounds would end where it does."""
    counts, its = sure.counts(LOGITS)
    refresh = counts[Phase.REFRESH]
    assert refresh.drafted > 0
    assert refresh.forwards - refresh.drafted < its[Phase.REFRESH].forwards


def test_where_columns_cost_fewer_drafts_are_computed_and_more_of_them_kept(sure: Sure) -> None:
    found = []
    for overhead in (math.inf, 32.0, 8.0, 0.0):
        counts, its = sure.counts(Drafting(8, NoReuse(), overhead))
        kept = its.rounds - counts.rounds
        assert counts.drafted >= kept
        found.append((counts.drafted, counts.tokens, kept / max(counts.drafted, 1)))
    free, cheap, dear, alone = found
    assert free[:2] > cheap[:2] > dear[:2]
    assert free[2] < cheap[2] < dear[2]
    assert dear[2] > 0.75
    assert alone[:2] < dear[:2]


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
    for overhead in (-1.0, math.nan):
        with pytest.raises(UsageError, match="overhead must be 0 or more columns"):
            Drafting(1, NoReuse(), overhead)
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

"""A trace shows what happened, and changes nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest

import fdllm
from fdllm.core.config import Decoding, Unmask
from fdllm.core.counts import Counts
from fdllm.core.guided_plans import ProbePlan
from fdllm.core.reuse import LayerPlan, LayerRun, NoReuse, PeriodicReuse, ReuseStrategy
from fdllm.core.sampler import Generation, GenerationRequest
from fdllm.core.schedule import Phase, Step
from fdllm.core.unmask import by_threshold
from fdllm.trace.steps import ForwardTrace, layer_letters, layer_names
from fdllm.trace.watcher import Watcher, assemble
from fdllm.trace.words import layer_calls
from models import MASK, random_model, random_prompt

MODEL = random_model(3)
BLOCK = 16
DECODING = Decoding(
    block_size=BLOCK, small_block_size=8, threshold=0.9, max_new_tokens=40, stop_token=()
)


@dataclass(frozen=True)
class Probing(ReuseStrategy[int]):
    """Looks at layer 1 in mid-forward."""

    def init(self, n_layers: int) -> int:
        return n_layers

    def plan(self, step: Step, state: int) -> LayerPlan | ProbePlan:
        run = LayerRun(2, 4)
        store, skip = LayerPlan(state, store=(run,)), LayerPlan(state, reuse=(run,))
        probe = ProbePlan(1, 0.9, calm=skip, otherwise=store)
        if step.phase is Phase.REFRESH:
            return LayerPlan(state, store=(probe.run, run))
        return probe


@dataclass(frozen=True)
class InPart(ReuseStrategy[int]):
    """Computes layers 2 and 3 for masked columns only."""

    def init(self, n_layers: int) -> int:
        return n_layers

    def plan(self, step: Step, state: int) -> LayerPlan:
        if step.phase is Phase.REFRESH:
            return LayerPlan(state, store=(LayerRun(2, 4),))
        return LayerPlan(state, partial=(LayerRun(2, 4, columns=step.masked),))


STRATEGIES: dict[str, ReuseStrategy[Any]] = {
    "none": NoReuse(),
    "k1": PeriodicReuse(1, 2, 4),
    "output": PeriodicReuse(2, 2, 4),
    "residual": PeriodicReuse(3, 1, 5, target="residual"),
    "through refreshes": PeriodicReuse(2, 2, 4, refresh_reuse=True),
    "all layers": PeriodicReuse(2, 0, 6),
    "probe": Probing(),
    "in part": InPart(),
}


def decode(
    strategy: ReuseStrategy[Any],
    *,
    staleness: bool = False,
    unmask: Unmask = by_threshold,
    decoding: Decoding = DECODING,
    length: int = 21,
) -> tuple[Generation, tuple[ForwardTrace, ...]]:
    """One watched row."""
    watcher = Watcher(staleness)
    [found] = fdllm.generate(
        MODEL,
        [GenerationRequest(tuple(random_prompt(5, length)))],
        decoding,
        strategy,
        unmask=watcher.rule(unmask),
        hook=watcher,
    )
    steps = assemble(watcher.seen, block_size=BLOCK, refresh_reuse=strategy.refresh_reuse)
    return found, steps


def plain(strategy: ReuseStrategy[Any], decoding: Decoding = DECODING) -> Generation:
    """The same row, unwatched."""
    request = GenerationRequest(tuple(random_prompt(5, 21)))
    return fdllm.generate(MODEL, [request], decoding, strategy)[0]


@pytest.mark.parametrize("staleness", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_watching_changes_nothing(name: str, staleness: bool) -> None:
    strategy = STRATEGIES[name]
    found, _ = decode(strategy, staleness=staleness)
    alone = plain(strategy)
    assert found.tokens == alone.tokens
    assert found.counts == alone.counts
    assert found.steps == alone.steps
    assert found.finish == alone.finish


def test_watching_draws_no_random_number() -> None:
    sampled = DECODING.model_copy(update={"temperature": 1.0, "top_p": 0.9, "seed": 4})
    strategy = PeriodicReuse(2, 2, 4)
    found, _ = decode(strategy, staleness=True, decoding=sampled)
    assert found.tokens == plain(strategy, sampled).tokens


@pytest.mark.parametrize("name", STRATEGIES)
def test_layers_shown_are_the_layers_counted(name: str) -> None:
    found, steps = decode(STRATEGIES[name])
    booked = Counts()
    for phase in Phase:
        of_phase = [step for step in steps if step.phase == phase.value]
        booked[phase].forwards = len(of_phase)
        for step in of_phase:
            reused = step.layers.count("r")
            assert (step.computed, step.reused) == (MODEL.n_layers - reused, reused)
            booked[phase].computed += step.computed
            booked[phase].reused += step.reused
    for phase in Phase:
        assert booked[phase].forwards == found.counts[phase].forwards
        assert booked[phase].computed == found.counts[phase].computed
        assert booked[phase].reused == found.counts[phase].reused
    if name not in ("none", "k1", "in part"):
        assert any("r" in step.layers for step in steps)
    assert any("p" in step.layers for step in steps) == (name == "in part")


@pytest.mark.parametrize("name", STRATEGIES)
def test_blocks_shown_are_the_text(name: str) -> None:
    """Put together, the blocks as they stood last are prompt and answer."""
    found, steps = decode(STRATEGIES[name])
    last = {step.block: step.after for step in steps if step.before}
    prompt = random_prompt(5, 21)
    whole = prompt[:BLOCK] + [token for block in sorted(last) for token in last[block]]
    assert whole[: len(prompt)] == prompt
    assert whole[len(prompt) : len(prompt) + len(found.tokens)] == found.tokens


def test_every_step_unmasks_what_it_says() -> None:
    found, steps = decode(PeriodicReuse(2, 2, 4))
    denoising = [step for step in steps if step.index is not None]
    assert tuple(len(step.taken) for step in denoising) == found.steps
    for step, after in pairwise(denoising):
        changed = [c for c in range(BLOCK) if step.before[c] != step.after[c]]
        assert changed == [guess.column for guess in step.taken]
        assert all(step.before[c] == MASK for c in changed)
        if after.block == step.block:
            assert after.before == step.after
        for guess in step.guesses:
            assert 0 < guess.confidence <= 1
            assert step.columns[0] <= guess.column < step.columns[1]


def test_step_counter_starts_anew_at_a_refresh() -> None:
    _, steps = decode(PeriodicReuse(2, 2, 4))
    for step in steps:
        assert (step.index == 0) == (step.phase == "refresh")
        assert (step.index is None) == (step.phase in ("prefill", "commit"))
        assert ("r" in step.layers) == (step.index is not None and step.index % 2 == 1)


def test_nothing_reused_is_nothing_stale() -> None:
    for name in ("none", "k1"):
        _, steps = decode(STRATEGIES[name], staleness=True)
        assert all(not step.stale for step in steps)


def test_staleness_stands_where_values_were_reused() -> None:
    for name in ("output", "residual", "all layers", "probe", "through refreshes"):
        _, steps = decode(STRATEGIES[name], staleness=True)
        seen = [d for step in steps for one in step.stale for d in one.distances]
        assert max(seen) > 1e-3, name
        for step in steps:
            assert bool(step.stale) == ("r" in step.layers)
            for one in step.stale:
                assert one.columns == tuple(range(*step.columns))
                assert step.layers[one.start : one.stop] == "r" * (one.stop - one.start)


def test_layers_that_are_left_out_have_a_letter_of_their_own_and_nothing_stale() -> None:
    _, steps = decode(PeriodicReuse(2, 2, 4, "identity"), staleness=True)
    left_out = [step for step in steps if step.reused]
    assert left_out
    assert {step.layers for step in left_out} == {"ccoocc"}
    assert {layer_calls(step) for step in left_out} == {"computed 0-1, 4-5; left out 2-3"}
    assert not any(step.stale for step in steps)


def test_partial_runs_are_stale_in_the_columns_they_left_out() -> None:
    _, steps = decode(STRATEGIES["in part"], staleness=True)
    partial = [step for step in steps if step.stale]
    assert partial
    for step in partial:
        assert set(step.stale[0].columns) == set(range(*step.columns)) - set(step.partial)


@dataclass
class Pausing:
    """Unmasks a first column, then nothing for two steps, then everything."""

    calls: int = 0

    def __call__(self, confidence: Sequence[float], threshold: float) -> list[int]:  # noqa: ARG002
        self.calls += 1
        if self.calls == 1:
            return [0]
        return [] if self.calls in (2, 3) else list(range(len(confidence)))


def test_staleness_is_zero_where_nothing_changed() -> None:
    """Step 0 stores ahead of an unmasking, step 2 ahead of none; 1 and 3 reuse what they stored."""
    _, steps = decode(PeriodicReuse(2, 2, 4), staleness=True, unmask=Pausing(), length=BLOCK * 2)
    reused = [step for step in steps if step.stale]
    first, second = reused[0], reused[1]
    assert (first.index, second.index) == (1, 3)
    assert first.stale is not None
    assert second.stale is not None
    assert max(first.stale[0].distances) > 1e-3
    assert max(second.stale[0].distances) < 1e-6


def test_scored_answers_are_watched_too() -> None:
    pair = (random_prompt(1, 20), random_prompt(2, 3))
    strategy = PeriodicReuse(2, 2, 4)
    settings = DECODING.model_copy(update={"scoring_steps": 3})
    watcher = Watcher(staleness=True)
    [found] = fdllm.score(
        MODEL, [pair], "denoise", settings, strategy, prefix_cache_gib=0, hook=watcher
    )
    [alone] = fdllm.score(MODEL, [pair], "denoise", settings, strategy)
    assert found.loglikelihood == alone.loglikelihood
    # A PREFILL that is watched is a forward by itself, at a cost of its own.
    assert (found.counts.forwards, found.counts.computed, found.counts.reused) == (
        alone.counts.forwards, alone.counts.computed, alone.counts.reused
    )  # fmt: skip

    steps = assemble(watcher.seen, block_size=BLOCK, refresh_reuse=False)
    assert sum(step.reused for step in steps) == found.counts.reused > 0
    last = steps[-1]
    at = len(pair[0]) % BLOCK
    assert list(last.after[at : at + 3]) == pair[1]
    assert MASK not in last.after
    rounds = [step for step in steps if step.index is not None][:3]
    assert sum(len(step.taken) for step in rounds) == BLOCK - at - 3
    assert any(step.stale for step in steps)


def test_layers_in_words() -> None:
    plan = LayerPlan(8, reuse=(LayerRun(1, 3), LayerRun(5, 6)), partial=(LayerRun(3, 5),))
    letters = layer_letters(plan)
    assert letters == "crrpprcc"
    assert layer_names(letters, "r") == "1-2, 5"
    assert layer_names(letters, "p") == "3-4"
    assert layer_names("cc", "r") == ""

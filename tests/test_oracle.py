"""Every strategy against the plain oracle, step by step: the whole grid, generation and scoring.

Not the answer alone is compared, which a wrong step may leave as it is, but all that a strategy
was asked and told on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, get_args

import pytest

import fdllm
from fdllm.core.counts import Counts
from fdllm.core.drafting import Drafting
from fdllm.core.reuse import AnyPlan, Observation, PeriodicReuse, ReuseStrategy, Target
from fdllm.core.schedule import Phase, Step
from fdllm.core.subsets import SUBSETS, subset_bounds
from fdllm.experiment import list_experiments, load_experiment, load_strategy
from helpers import ROOT
from models import MASK, SPEC, STOP, random_model, random_prompt
from reference import (
    reference_denoise_score,
    reference_first_token_score,
    reference_generate,
)
from strategies import STRATEGIES

LAYERS, BLOCK = 6, 8
DECODING = fdllm.Decoding(
    block_size=BLOCK,
    small_block_size=4,
    threshold=0.8,
    max_new_tokens=BLOCK + 4,
    stop_token=STOP,
    end_token=STOP,
    mask_id=MASK,
)
NO_CACHE = DECODING.model_copy(update={"use_block_cache": False})
PROMPTS = [random_prompt(seed, length) for seed, length in enumerate((1, BLOCK, BLOCK + 3))]
# A target inside its block, at the block's first column, at its last, and across its end.
PAIRS = [
    (random_prompt(seed, prefix), random_prompt(seed + 50, target))
    for seed, (prefix, target) in enumerate(((2, 2), (BLOCK, 1), (BLOCK - 1, 1), (BLOCK + 5, 6)))
]

Grid = dict[str, ReuseStrategy[Any]]


def periodic() -> Grid:
    """Periods by subsets by targets, a REFRESH computing or reusing."""
    targets: tuple[Target, ...] = get_args(Target)
    return {
        f"k{k}_{subset}-{target}{'-refresh' if refresh else ''}": PeriodicReuse(
            k, *subset_bounds(subset, LAYERS), target, refresh_reuse=refresh
        )
        for k, subset, target, refresh in product((1, 2, 3), SUBSETS, targets, (False, True))
    }


def experiments() -> Grid:
    """Every cell of every experiment."""
    return {
        f"{name}-{cell.name}": load_strategy(
            name, k=cell.k, subset=cell.subset, n_layers=LAYERS, **study.params(cell)
        )
        for name in list_experiments(ROOT)
        for study in [load_experiment(name, ROOT)]
        for cell in study.cells
        if max(cell.params.get("layers", [0])) < LAYERS  # those of a deeper model are its own
    }


def extremes() -> Grid:
    """Bounds that a random model passes now and then; the cells' are a trained one's."""
    calm = partial(
        load_strategy, "01_adaptive_skip", k=2, subset="middle", n_layers=LAYERS, subset_size=2
    )
    return {
        "calm-tokens": calm(most_unmasked=1),
        "calm-confidence": calm(least_confidence=0.5),
        "calm-probe": calm(probe_change=0.9),
        "calm-probe-refresh": calm(probe_change=0.9, refresh_reuse=True),
        **{
            name: STRATEGIES[name]
            for name in (
                *("salient", "salient-refresh", "salient-none", "drift-late", "drift-never"),
                *("gate", "gate-last", "score-by-change", "drop"),
            )
        },
    }


ALL = periodic() | extremes() | experiments()
# Of what drafts, test_drafting.py compares texts and steps with those of plain decoding.
ALL = {name: strategy for name, strategy in ALL.items() if not isinstance(strategy, Drafting)}
GRID = {name: strategy for strategy, name in {s: name for name, s in reversed(ALL.items())}.items()}
every_strategy = pytest.mark.parametrize("strategy", GRID.values(), ids=GRID.keys())


@dataclass(frozen=True, eq=False)
class Watched(ReuseStrategy[Any]):
    """Another strategy, with all that it was asked and told."""

    inner: ReuseStrategy[Any]
    refresh_reuse: bool
    steps: list[Step] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)

    def init(self, n_layers: int) -> Any:
        return self.inner.init(n_layers)

    def plan(self, step: Step, state: Any) -> AnyPlan:
        self.steps.append(step)
        return self.inner.plan(step, state)

    def observe(self, step: Step, seen: Observation, state: Any) -> Any:
        assert step == self.steps[-1]
        self.seen.append(seen)
        return self.inner.observe(step, seen, state)


def watch(strategy: ReuseStrategy[Any]) -> Watched:
    return Watched(strategy, strategy.refresh_reuse)


def assert_same_course(got: Watched, want: Watched) -> None:
    """The same steps and observations; the oracle also fills what stands behind a text's end."""
    number = len(got.seen)
    assert got.steps == want.steps[:number]
    for mine, other in zip(got.seen, want.seen[:number], strict=True):
        assert (mine.plan, mine.unmasked) == (other.plan, other.unmasked)
        assert list(mine.confidences) == list(other.confidences)
        assert mine.confidences == pytest.approx(other.confidences, abs=1e-4)
        assert mine.change == pytest.approx(other.change, abs=1e-4)


def assert_counted(counts: Counts, watched: Sequence[Watched]) -> None:
    """What was planned is what was counted."""
    for phase in (Phase.REFRESH, Phase.DENOISE):
        plans = [
            seen.plan
            for one in watched
            for step, seen in zip(one.steps, one.seen, strict=True)
            if step.phase is phase
        ]
        assert counts[phase].forwards == len(plans)
        assert counts[phase].reused == sum(plan.num_reused for plan in plans)
        assert counts[phase].computed == sum(plan.num_computed for plan in plans)
        steps = [step for one in watched for step in one.steps if step.phase is phase]
        trimmed = (
            plan.trimmed(step.columns[1] - step.columns[0], SPEC.feed_forward_share)
            for step, plan in zip(steps, plans, strict=False)
        )
        assert counts[phase].trimmed == pytest.approx(sum(trimmed))


@pytest.fixture(scope="module")
def model() -> fdllm.Model:
    return random_model(3, layers=LAYERS, block=BLOCK)


@every_strategy
@pytest.mark.parametrize("decoding", [DECODING, NO_CACHE], ids=["cache", "no-cache"])
def test_generation_takes_the_oracle_s_course(
    model: fdllm.Model, strategy: ReuseStrategy[Any], decoding: fdllm.Decoding
) -> None:
    # Without the block cache a step is as costly as a REFRESH, and every block is alike.
    for prompt in PROMPTS if decoding.use_block_cache else PROMPTS[-1:]:
        got, want = watch(strategy), watch(strategy)
        tokens = reference_generate(model, prompt, decoding, want)
        [out] = fdllm.generate(model, [prompt], decoding, got)
        assert out.tokens == tokens
        assert_same_course(got, want)
        assert_counted(out.counts, [got])


@every_strategy
@pytest.mark.parametrize("scoring", ["denoise", "chain"])
def test_scoring_takes_the_oracle_s_course(
    model: fdllm.Model, strategy: ReuseStrategy[Any], scoring: Any
) -> None:
    rounds = DECODING.scoring_steps if scoring == "denoise" else 0
    oracle = partial(
        reference_denoise_score, decoding=DECODING.model_copy(update={"scoring_steps": rounds})
    )
    for pair in PAIRS:
        got, want = watch(strategy), watch(strategy)
        value, greedy = oracle(model, *pair, strategy=want)
        [out] = fdllm.score(model, [pair], scoring, DECODING, got)
        assert out.loglikelihood == pytest.approx(value, abs=1e-3)
        assert out.is_greedy == greedy
        assert_same_course(got, want)
        assert len(got.seen) == len(want.seen)
        assert_counted(out.counts, [got])


@every_strategy
def test_first_token_is_the_oracle_s_whatever_the_strategy(
    model: fdllm.Model, strategy: ReuseStrategy[Any]
) -> None:
    """One forward, a block's first: nothing is stored that could be reused."""
    plain = fdllm.score(model, PAIRS, "first-token", DECODING)
    scores = fdllm.score(model, PAIRS, "first-token", DECODING, strategy)
    assert sum(score.counts.reused for score in scores) == 0
    for score, unchanged in zip(scores, plain, strict=True):
        assert score.loglikelihood == pytest.approx(unchanged.loglikelihood, abs=1e-5)


def test_first_token_is_the_oracle_s(model: fdllm.Model) -> None:
    for pair in PAIRS:
        [score] = fdllm.score(model, [pair], "first-token", DECODING)
        value, greedy = reference_first_token_score(model, *pair, DECODING)
        assert score.loglikelihood == pytest.approx(value, abs=1e-4)
        assert score.is_greedy == greedy


def test_the_grid_is_whole() -> None:
    """Strategies that are equal stand in it once, under the name that came first."""
    names = {f"k{k}_{s}" for k in (1, 2, 3) for s in SUBSETS}
    kinds = [f"{target}{refresh}" for target in get_args(Target) for refresh in ("", "-refresh")]
    assert {f"{name}-{kind}" for name in names for kind in kinds} == set(periodic()) <= set(GRID)
    drafting = {one for one in experiments().values() if isinstance(one, Drafting)}
    assert set(experiments().values()) - drafting <= set(GRID.values())
    assert {name.split("-")[0] for name in experiments()} == set(list_experiments(ROOT))


# These wait for a change smaller than a random model's.
TOO_CALM = {f"01_adaptive_skip-probe{p}_middle{r}" for p in (0.2, 0.4) for r in ("", "_refresh")}
TOO_CALM |= {"09_salient-cos0.999"}
TOO_CALM |= {f"07_cosine_layer-t{t}" for t in ("0.95", "0.97", "0.98", "0.98_alone", "0.98_late")}


@pytest.mark.parametrize("name", sorted(set(GRID) - TOO_CALM))
def test_the_grid_shows_each_strategy_at_work(model: fdllm.Model, name: str) -> None:
    """A reuse that changed no number here would not be seen to go wrong above."""
    strategy = GRID[name]
    plain = fdllm.score(model, PAIRS, "denoise", DECODING)
    scores = fdllm.score(model, PAIRS, "denoise", DECODING, strategy)
    texts = fdllm.generate(model, PROMPTS, DECODING, strategy)
    acts = {
        "generation": sum(text.counts.reused + text.counts.trimmed for text in texts) > 0,
        "scoring": sum(score.counts.reused + score.counts.trimmed for score in scores) > 0,
        "log p": any(
            abs(a.loglikelihood - b.loglikelihood) > 1e-3
            for a, b in zip(scores, plain, strict=True)
        ),
    }
    assert acts == dict.fromkeys(acts, strategy.reuses)

"""What the estimators are: chain is a probability, first-token closes with one named token."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest

import fdllm
from fdllm.core.config import Estimator
from fdllm.core.reuse import NoReuse, ReuseStrategy
from fdllm.errors import FdllmError, UsageError
from hub.checkpoint import byte_tokenizer
from models import MASK, VOCAB, random_model, random_prompt
from reference import reference_denoise_score
from strategies import FEW

BLOCK = 16
DECODING = fdllm.Decoding(block_size=BLOCK, small_block_size=4, mask_id=MASK, stop_token=2)


def total(
    prefix: list[int], length: int, strategy: ReuseStrategy[Any], scoring: Estimator
) -> float:
    """Probabilities of all answers of a length, the mask token among them, added up."""
    pairs = [(prefix, answer) for answer in itertools.product(range(VOCAB), repeat=length)]
    model = random_model(2, layers=4, width=16)
    scores = fdllm.score(model, pairs, scoring, DECODING, strategy, batch_size=1)
    return sum(math.exp(score.loglikelihood) for score in scores)


@pytest.mark.parametrize("strategy", FEW)
@pytest.mark.parametrize("at", [5, 16, 31])  # inside a block, at its first column, across its end
def test_chain_is_normalised_over_the_answers_of_a_length(
    strategy: ReuseStrategy[Any], at: int
) -> None:
    assert total(random_prompt(1, at), 2, strategy, "chain") == pytest.approx(1.0, abs=1e-4)


def test_first_token_is_not_normalised_over_them() -> None:
    """Each first token is scored beside a rest that it could see: 48 sums of 1."""
    assert abs(total(random_prompt(1, 5), 2, NoReuse(), "first-token") - VOCAB) < 1e-2


@pytest.mark.parametrize("strategy", FEW)
@pytest.mark.parametrize(("prefix", "target"), [(5, 1), (5, 4), (15, 3), (16, 2), (30, 21)])
def test_chain_equals_the_oracle_without_rounds(
    strategy: ReuseStrategy[Any], prefix: int, target: int
) -> None:
    model = random_model(3)
    pair = (random_prompt(prefix, prefix), random_prompt(target, target))
    bare = DECODING.model_copy(update={"scoring_steps": 0})
    want, greedy = reference_denoise_score(model, *pair, bare, strategy)
    [got] = fdllm.score(model, [pair], "chain", DECODING, strategy)
    assert got.loglikelihood == pytest.approx(want, abs=1e-4)
    assert (got.is_greedy, got.tokens) == (greedy, target)
    [filled] = fdllm.score(model, [pair], "denoise", DECODING, strategy)
    assert abs(filled.loglikelihood - want) > 1e-3


def test_chain_takes_a_refresh_a_block_and_a_denoise_for_each_further_token() -> None:
    # Columns 5..15 of the first block; then one look-ahead token and nine more.
    [got] = fdllm.score(
        random_model(3), [(random_prompt(0, 5), random_prompt(1, 21))], "chain", DECODING
    )
    phases = {
        phase: got.counts[phase].forwards for phase in ("prefill", "refresh", "denoise", "commit")
    }
    assert phases == {"prefill": 0, "refresh": 2, "denoise": 10 + 8, "commit": 1}
    [letter] = fdllm.score(random_model(3), [(random_prompt(0, 5), [7])], "chain", DECODING)
    assert letter.counts.forwards == letter.counts["refresh"].forwards == 1


def first_token(decoding: fdllm.Decoding, tokenizer: Any = None) -> float:
    model = replace(random_model(4), _tokenizer=tokenizer)
    return fdllm.score(model, [(random_prompt(0, 5), [7])], "first-token", decoding)[
        0
    ].loglikelihood


def test_the_token_behind_the_answer_is_the_tokenizers_end_token() -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    assert end != 1
    several = DECODING.model_copy(update={"stop_token": (1, end)})
    values = {
        token: first_token(several.model_copy(update={"end_token": token})) for token in (1, end)
    }
    assert values[1] != values[end]
    assert first_token(several, tokenizer) == values[end]
    only = DECODING.model_copy(update={"stop_token": 1})
    assert first_token(only) == values[1]  # no tokenizer to ask
    assert first_token(only, tokenizer) == values[end]


@pytest.mark.parametrize("stop", [(), (1, 2)])
def test_without_a_tokenizer_several_stop_tokens_or_none_name_no_end_token(
    stop: tuple[int, ...],
) -> None:
    with pytest.raises(FdllmError, match="set end_token"):
        first_token(DECODING.model_copy(update={"stop_token": stop}))
    with pytest.raises(UsageError, match="token 48 is not in the vocabulary"):
        first_token(DECODING.model_copy(update={"stop_token": stop, "end_token": VOCAB}))


def test_an_unknown_estimator_lists_the_known() -> None:
    unknown: Any = "exact"
    with pytest.raises(UsageError, match="'exact'; use one of first-token, denoise, chain"):
        fdllm.score(random_model(4), [([5], [6])], unknown, DECODING)

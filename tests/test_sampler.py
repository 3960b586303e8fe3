"""What ends a row, sampling, and the cases the published decoder got wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

import fdllm
from fdllm.core.cost import Cost
from fdllm.core.counts import Counts
from fdllm.core.reuse import (
    LayerPlan,
    LayerRun,
    NeverWrittenError,
    NoReuse,
    PeriodicReuse,
    ReuseStrategy,
)
from fdllm.core.sampler import Generation, GenerationRequest
from fdllm.core.schedule import Phase, Step
from fdllm.core.unmask import by_threshold, choose_greedy, choose_sampled, most_confident
from fdllm.errors import FdllmError, UsageError
from models import MASK, STOP, VOCAB, random_model, random_prompt

DECODING = fdllm.Decoding(
    block_size=16, small_block_size=4, threshold=0.7, max_new_tokens=40, stop_token=STOP
)


def tokens(model: fdllm.Model, prompt: list[int], **changes: Any) -> list[int]:
    decoding = DECODING.model_copy(update=changes)
    return fdllm.generate(model, [prompt], decoding)[0].tokens


@dataclass(frozen=True)
class Letters:
    """A tokenizer whose token t is the character chr(60 + t), but for a special one, ``<|t|>``."""

    special: int = -1

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        letters = (f"<|{i}|>" if i == self.special else chr(60 + i) for i in ids)
        return "".join(letter for letter in letters if len(letter) == 1 or not skip_special_tokens)


@pytest.fixture
def lettered() -> fdllm.Model:
    return replace(random_model(3), _tokenizer=Letters())


def answer(model: fdllm.Model, until: tuple[str, ...]) -> tuple[str | None, str, int]:
    request = GenerationRequest(tuple(random_prompt(1, 20)), until=until)
    free = DECODING.model_copy(update={"stop_token": ()})
    [out] = fdllm.generate(model, [request], free, detokenize=True)
    return out.text, out.finish, len(out.tokens)


@pytest.mark.parametrize("place", [1, 5, 17])
def test_an_until_string_may_name_a_special_token(place: int) -> None:
    """gsm8k ends its texts at ``<|im_end|>``; what is delivered has no special tokens."""
    model = random_model(3)
    free = tokens(model, random_prompt(1, 20), stop_token=())
    token = free[place]
    at = free.index(token)
    text = "".join(chr(60 + t) for t in free[:at])
    special = replace(model, _tokenizer=Letters(token))
    assert answer(special, (f"<|{token}|>",)) == (text, "until", at + 1)
    dropped = "".join(chr(60 + t) for t in free if t != token)
    assert answer(special, ("nowhere",)) == (dropped, "length", 40)


def test_a_string_across_a_special_token_is_cut_from_the_text() -> None:
    """It ends no row, but what is delivered never holds an ``until`` string."""
    model = random_model(3)
    free = tokens(model, random_prompt(1, 20), stop_token=())
    at = next(i for i in range(1, 39) if free[i] not in (free[i - 1], free[i + 1]))
    text = "".join(chr(60 + t) for t in free if t != free[at])
    until = f"{chr(60 + free[at - 1])}{chr(60 + free[at + 1])}"
    special = replace(model, _tokenizer=Letters(free[at]))
    assert (answer(special, (until,))[0] or "") == text.split(until, 1)[0]
    assert until in text


def test_special_tokens_ahead_of_an_until_string_are_dropped() -> None:
    model = random_model(3)
    free = tokens(model, random_prompt(1, 20), stop_token=())
    token = free[3]
    end = next(i for i, t in enumerate(free) if i > 8 and t not in free[:i])
    text = "".join(chr(60 + t) for t in free[:end] if t != token)
    special = replace(model, _tokenizer=Letters(token))
    assert answer(special, (chr(60 + free[end]),)) == (text, "until", end + 1)


def test_a_stop_token_ends_the_row_wherever_it_arrives() -> None:
    """Each position's token, used as the stop token, ends the row at its first occurrence.

    Position 0 of a later block is the look-ahead token, where the published decoder runs on.
    """
    model, prompt = random_model(3), random_prompt(1, 16)
    free = tokens(model, prompt, stop_token=())
    assert len(free) == 40
    for stop in set(free):
        assert tokens(model, prompt, stop_token=stop) == free[: free.index(stop) + 1]


def test_stop_tokens_may_be_several() -> None:
    model, prompt = random_model(3), random_prompt(1, 16)
    free = tokens(model, prompt, stop_token=())
    two = (free[9], free[5])
    assert tokens(model, prompt, stop_token=two) == free[: min(map(free.index, two)) + 1]


@pytest.mark.parametrize("limit", [1, 2, 15, 16, 17, 33])
def test_max_new_tokens_cuts_and_changes_nothing_before(limit: int) -> None:
    model = random_model(3)
    for length in (3, 16, 20):
        prompt = random_prompt(length, length)
        free = tokens(model, prompt, stop_token=())
        [out] = fdllm.generate(
            model, [prompt], DECODING.model_copy(update={"max_new_tokens": limit, "stop_token": ()})
        )
        assert out.tokens == free[:limit]
        assert out.finish == "length"


def test_no_commit_after_the_end() -> None:
    """A row that ends inside its first block is never committed, nor decoded behind its end."""
    model, prompt = random_model(3), random_prompt(1, 18)
    [out] = fdllm.generate(model, [prompt], DECODING.model_copy(update={"max_new_tokens": 2}))
    assert out.counts["commit"].forwards == 0
    assert len(out.steps) <= 2


def test_until_ends_the_row_and_is_cut_from_the_text(lettered: fdllm.Model) -> None:
    prompt = tuple(random_prompt(1, 16))
    decoding = DECODING.model_copy(update={"stop_token": ()})
    [free] = fdllm.generate(lettered, [GenerationRequest(prompt)], decoding, detokenize=True)
    assert free.text is not None
    for at in (0, 7, 16, 30):
        until = free.text[at : at + 2]
        request = GenerationRequest(prompt, until=("never", until))
        [out] = fdllm.generate(lettered, [request], decoding)
        first = free.text.index(until)
        assert out.finish == "until"
        assert out.text == free.text[:first]
        assert out.tokens == free.tokens[: first + 2]


def test_a_prompt_of_exactly_one_block_is_seen() -> None:
    """Golden README, defect 1: there the model answers without having seen it."""
    model = random_model(3)
    answers = {tuple(tokens(model, random_prompt(seed, 16))) for seed in range(6)}
    assert len(answers) > 1
    [out] = fdllm.generate(model, [random_prompt(0, 16)], DECODING)
    assert out.counts["prefill"].tokens == 16


def test_the_mask_token_is_never_chosen() -> None:
    """Golden README, defect 3: decoding ends even where the mask is the model's favourite."""
    model = random_model(3)
    with torch.no_grad():
        model.network.head.weight[MASK] = 50.0 * model.network.head.weight.mean(dim=0).sign()
    free = tokens(model, random_prompt(1, 5), stop_token=())
    assert len(free) == 40
    assert MASK not in free


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_sampling_is_by_row_and_by_seed(top_p: float) -> None:
    model = random_model(3)
    prompts = [random_prompt(i, n) for i, n in enumerate([5, 16, 23])]
    warm = DECODING.model_copy(update={"temperature": 1.2, "top_p": top_p})
    together = [o.tokens for o in fdllm.generate(model, prompts, warm)]
    assert together == [fdllm.generate(model, [p], warm)[0].tokens for p in prompts]
    other = warm.model_copy(update={"seed": 1})
    assert together != [o.tokens for o in fdllm.generate(model, prompts, other)]


def test_a_low_temperature_draws_the_best_token() -> None:
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    drawn, _ = choose_sampled(logits, 8, 1e-4, 1.0, torch.full((50,), 0.999))
    assert drawn.tolist() == choose_greedy(logits, 8)[0].tolist()


def test_sampled_tokens_follow_the_distribution() -> None:
    """Draws over a grid of uniforms land in the nucleus, in proportion to its probabilities."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 9.0]])
    mask, n = 4, 10_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn, probability = choose_sampled(logits.expand(n, -1), mask, 1.0, 0.9, uniform)
    want = torch.softmax(logits[0, :4], 0)
    kept = want[:3] / want[:3].sum()  # 0.64 + 0.24 < 0.9, so the third is in and the fourth is not
    share = torch.bincount(drawn, minlength=5) / n
    torch.testing.assert_close(share[:3], kept, atol=1e-3, rtol=0)
    assert share[3:].sum() == 0
    torch.testing.assert_close(probability, want[drawn])


def test_unmasking_rules() -> None:
    assert by_threshold([0.5, 0.96, 0.2, 0.95], 0.95) == [1]
    assert by_threshold([0.5, 0.4], 0.95) == [0]
    assert by_threshold([0.99, 0.97, 1.0], 0.95) == [0, 1, 2]
    assert by_threshold([1.0, 1.0], 1.0) == [0]
    assert most_confident([0.1, 0.9, 0.9, 0.3], 2) == [1, 2]
    assert most_confident([0.9, 0.9, 0.9], 2) == [0, 1]


def test_greedy_confidence_counts_the_mask_token() -> None:
    tokens_, confidence = choose_greedy(torch.tensor([[0.0, 1.0, 3.0]]), mask_id=2)
    assert tokens_.tolist() == [1]
    torch.testing.assert_close(confidence, torch.softmax(torch.tensor([0.0, 1.0, 3.0]), 0)[1:2])


class ReadsWhatNobodyWrote(NoReuse, ReuseStrategy[int]):
    """Reuses layers 2..3 for columns that no step has stored."""

    def plan(self, step: Step, state: int) -> LayerPlan:  # noqa: ARG002
        return LayerPlan(state, reuse=(LayerRun(2, 4),))


def test_reading_what_was_never_written_raises() -> None:
    """Ancestor defect 6: there the values of another sub-block were returned."""
    with pytest.raises(NeverWrittenError, match=r"layers 2\.\.3 .* columns 0\.\.15 of row 0"):
        fdllm.generate(random_model(3), [[5, 6]], DECODING, ReadsWhatNobodyWrote())


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        ([], {}, "prompt is empty"),
        ([5, VOCAB], {}, f"token {VOCAB} is not in the vocabulary"),
        ([5], {"mask_id": VOCAB + 3}, "check mask_id"),
        ([5], {"stop_token": -1}, "check mask_id and stop_token"),
    ],
)
def test_bad_input(prompt: list[int], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fdllm.generate(random_model(3), [prompt], DECODING.model_copy(update=changes))


def test_too_long_is_refused() -> None:
    with pytest.raises(FdllmError, match="528 positions and model 'random-3' has 512"):
        fdllm.generate(random_model(3), [random_prompt(0, 480)], DECODING)


def test_another_block_than_the_checkpoints_is_refused() -> None:
    """A model is trained with one block, and its config.json names it."""
    model = random_model(3)
    model.spec = replace(model.spec, block_is_fixed=True, block_size=8)
    with pytest.raises(UsageError, match=r"block_size is 16, and model 'random-3' .* blocks of 8"):
        fdllm.generate(model, [[5]], DECODING)


def test_a_text_without_an_end_is_refused_unless_the_caller_names_one() -> None:
    model = random_model(3)
    model.spec = replace(model.spec, stop_tokens=())
    nobody = DECODING.model_copy(update={"stop_token": None})
    with pytest.raises(FdllmError, match="config.json and generation_config.json, eos_token in"):
        fdllm.generate(model, [[5]], nobody)
    assert fdllm.generate(model, [[5]], DECODING)[0].tokens


def test_a_subset_outside_the_model_is_refused() -> None:
    with pytest.raises(UsageError, match=r"layers 5\.\.8 do not fit a model of 6 layers"):
        fdllm.generate(random_model(3), [[5]], DECODING, PeriodicReuse(2, 5, 9))


def counted() -> Counts:
    counts = Counts()
    counts.add(Phase.DENOISE, LayerPlan(3), 4, Cost(100, 20, 3, 1))
    return counts


def test_an_answer_shows_as_one_short_line() -> None:
    text, steps = "a\n\x1b b " * 900, (3,) * 300
    shown = repr(Generation([7] * 900, counted(), 12.3456, "length", text, steps))
    assert len(shown) < 140
    assert shown.isprintable()
    told = "900 tokens, length, 12.3 s, 300 steps, text='a \\u001b b a"
    assert shown.startswith(f"<Generation: {told}")
    assert shown.endswith("…'>")
    empty = repr(Generation([], Counts(), 0.0, "stop"))
    assert empty == "<Generation: 0 tokens, stop, 0 s, 0 steps>"


def test_counts_show_what_is_not_zero() -> None:
    cost = "flops=100, weight_bytes=20, kv_bytes=3, stored_bytes=1"
    figures = f"forwards=1, computed=3, tokens=4, {cost}"
    assert repr(counted()) == f"Counts(denoise=({figures}))"
    assert repr(Counts()) == "Counts()"

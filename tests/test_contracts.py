"""From one layer to the next nothing is lost: run → evaluation → request → row → entry.

Each hand-over is caught where it happens and looked at whole, so that a value that is dropped, left
at its default or put in another's place is seen, whether or not a tiny model would have shown it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fdllm
from fdllm.core.config import Decoding
from fdllm.core.cost import Cost
from fdllm.core.counts import Counts
from fdllm.core.reuse import LayerPlan, NoReuse, PeriodicReuse
from fdllm.core.sampler import Generation, GenerationRequest
from fdllm.core.schedule import Phase
from fdllm.core.scorer import Score
from fdllm.errors import UsageError
from fdllm.evaluate.adapter import EngineLM, LoadedModel
from fdllm.evaluate.attempt import WHOLE, Part
from fdllm.evaluate.recording import text_hash
from fdllm.evaluate.requests import EvalRequest
from fdllm.runs import Cell, Evaluating, ModelChoice, Run
from fdllm.shard import Shard
from hub.checkpoint import MemoryStore, Tally, random_model
from hub.lm import Recorder, engine_lm, instance, run_of
from models import random_model as bare_model
from models import random_prompt

STRATEGY = PeriodicReuse(2, 1, 2)


class Caught:
    """Stands in a function's place and keeps how it was called."""

    def __init__(self, answer: Any = None) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._answer = answer

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls.append((arguments, named))
        return self._answer

    @property
    def only(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        (call,) = self.calls
        return call


def no_more() -> bool:
    return False


def leftmost(confidence: Any, threshold: float) -> list[int]:  # noqa: ARG001 - the form's
    return [0]


# --- run → evaluation → model ---------------------------------------------------------------------


def test_a_run_reaches_the_evaluation_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    caught = Caught(found := object())
    monkeypatch.setattr("fdllm.evaluate.adapter.evaluate", caught)
    model, store, progress = random_model(), MemoryStore(), Tally()
    run = Run(
        experiment="00_baseline",
        task="tiny_choice",
        cell=Cell(name="k2_middle", k=2, subset="middle"),
        limit=3,
        decoding=Decoding(threshold=0.5),
        evaluating=Evaluating(num_fewshot=2, batch_size=5),
        code_execution="readable",
    )
    part, loaded = Part(Shard(1, 2), no_more), LoadedModel(model)
    told: object = loaded.evaluate(
        run, store, progress, strategy=STRATEGY, unmask=leftmost, part=part
    )
    assert told is found
    (lm, *around), named = caught.calls[0]
    assert (around, named) == ([store, progress, part], {})
    assert (lm.run, lm.unmask, lm.hook) == (run, leftmost, None)
    loaded.evaluate(run, store, progress, strategy=STRATEGY)
    (plain, *around), _ = caught.calls[1]
    assert plain.unmask is fdllm.core.unmask.by_threshold
    assert around == [store, progress, WHOLE]
    assert WHOLE.go_on()


# --- instance → request ---------------------------------------------------------------------------


def test_an_instance_to_be_continued_becomes_a_whole_request() -> None:
    recorder = Recorder()
    lm = engine_lm(recorder)
    asked = instance("some prompt", {"until": ["a", "b"], "max_gen_toks": 7}, doc_id=3, index=2)
    lm.generate_until([asked, asked])
    again, first = recorder.asked  # the recorder answers the last first
    assert first == EvalRequest(
        key=first.key,
        task="sums",
        doc_id=3,
        index=2,
        doc={"n": 3},
        prompt="some prompt",
        tokens=tuple(lm.tok_encode("some prompt")),
        until=("a", "b"),
        max_new_tokens=7,
    )
    assert again == replace(first, key=again.key, seed=int(again.key[:15], 16))
    assert again.key != first.key


def test_an_instance_to_be_scored_becomes_a_whole_request() -> None:
    recorder = Recorder()
    lm = engine_lm(recorder)
    asked = instance("Which?", " this", kind="loglikelihood", doc_id=3, index=2)
    lm.loglikelihood([asked])
    (query,) = recorder.asked
    context, continuation = lm.encode_pair("Which?", " this", "here")
    assert query == EvalRequest(
        key=query.key,
        task="sums",
        doc_id=3,
        index=2,
        doc={"n": 3},
        prompt="Which?",
        tokens=tuple(context),
        target=" this",
        target_tokens=tuple(continuation),
    )


# --- request → engine -----------------------------------------------------------------------------

PROMPTS = [
    EvalRequest("k1", "sums", 0, 0, {}, "p", (5, 6), None, (), ("stop", "."), 7, 11),
    EvalRequest("k2", "sums", 1, 0, {}, "q", (7,), None, (), (), 9, None),
]
PAIRS = [
    EvalRequest("k3", "sums", 0, 0, {}, "p", (5, 6), " A", (8, 9)),
    EvalRequest("k4", "sums", 0, 1, {}, "p", (5, 6), " B", (10,)),
]
ASKED = Evaluating(batch_size=3, score_batch_size=5, prefix_cache_gib=0.25, scoring="first-token")
HOOK: Any = object()


def on_done(index: int, result: object) -> None:
    """Told of each answer."""


def asking(monkeypatch: pytest.MonkeyPatch, name: str, **asked: Any) -> tuple[EngineLM, Caught]:
    caught = Caught()
    monkeypatch.setattr(f"fdllm.evaluate.adapter.{name}", caught)
    run = run_of("sums", Decoding(threshold=0.5), **(ASKED.model_dump() | asked))
    lm = EngineLM(run, random_model(), STRATEGY, leftmost)
    lm.part, lm.hook = Part(None, no_more), HOOK
    return lm, caught


def test_every_field_of_a_request_reaches_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, caught = asking(monkeypatch, "generate")
    lm.answer(PROMPTS, on_done)
    (model, requests, decoding, strategy), named = caught.only
    assert (model.name, decoding, strategy) == ("random", lm.run.decoding, STRATEGY)
    assert requests == [
        GenerationRequest(prompt=(5, 6), max_new_tokens=7, until=("stop", "."), seed=11),
        GenerationRequest(prompt=(7,), max_new_tokens=9, until=(), seed=None),
    ]
    assert named == {
        "batch_size": 3,
        "on_done": on_done,
        "unmask": leftmost,
        "detokenize": True,
        "hook": HOOK,
        "go_on": no_more,
    }


def test_every_field_of_a_request_reaches_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, caught = asking(monkeypatch, "score")
    lm.answer(PAIRS, on_done)
    (model, pairs, scoring, decoding, strategy), named = caught.only
    assert (model.name, decoding, strategy) == ("random", lm.run.decoding, STRATEGY)
    assert scoring == "first-token"
    assert pairs == [((5, 6), (8, 9)), ((5, 6), (10,))]
    assert named == {
        "batch_size": 5,
        "on_done": on_done,
        "prefix_cache_gib": 0.25,
        "hook": HOOK,
        "go_on": no_more,
    }


@pytest.mark.parametrize("name", ["generate", "score"])
def test_a_named_stop_token_ends_generation_and_scoring_alike(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = "<|endoftext|>"
    lm, caught = asking(monkeypatch, name, stop_token=end)
    token = lm.tokenizer.get_vocab()[end]
    lm.answer(PROMPTS if name == "generate" else PAIRS, on_done)
    assert caught.only[0][-2] == lm.run.decoding.model_copy(update={"stop_token": token})


# --- request → row --------------------------------------------------------------------------------

DECODING = Decoding(
    block_size=16, small_block_size=4, threshold=0.7, max_new_tokens=40, stop_token=()
)


def texts(*requests: GenerationRequest, batch_size: int = 1, **changes: Any) -> list[list[int]]:
    decoding = DECODING.model_copy(update=changes)
    found = fdllm.generate(bare_model(3), requests, decoding, batch_size=batch_size)
    return [one.tokens for one in found]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_request_has_a_length_of_its_own(batch_size: int) -> None:
    prompts = [tuple(random_prompt(seed, 16)) for seed in range(4)]
    lengths: list[int | None] = [3, 17, None, 60]
    asked = [GenerationRequest(p, n) for p, n in zip(prompts, lengths, strict=True)]
    found = texts(*asked, batch_size=batch_size)
    assert [len(tokens) for tokens in found] == [3, 17, 40, 60]
    longest = texts(*(GenerationRequest(prompt, 60) for prompt in prompts))
    for short, whole in zip(found, longest, strict=True):
        assert short == whole[: len(short)]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_request_draws_by_a_seed_of_its_own(batch_size: int) -> None:
    prompt = tuple(random_prompt(1, 16))
    seeds = (7, 8, 7, None, None)
    asked = [GenerationRequest(prompt, seed=seed) for seed in seeds]
    a, b, again, default, same = texts(*asked, temperature=1.0, batch_size=batch_size)
    assert a == again
    assert default == same
    assert len({tuple(one) for one in (a, b, default)}) == 3
    (other,) = texts(asked[3], temperature=1.0, seed=1)
    assert other != default, "without a seed of its own the decoding's counts"
    (kept,) = texts(asked[0], temperature=1.0, seed=1)
    assert kept == a, "with one it does not"


@pytest.mark.parametrize("started", [0, 1, 3])
def test_a_no_leaves_the_rest_unanswered(started: int) -> None:
    def run(ask: Callable[..., Any]) -> list[int]:
        left, done = iter(range(started)), list[int]()
        ask(on_done=lambda i, _: done.append(i), go_on=lambda: next(left, None) is not None)
        return done

    model = bare_model(3)
    prompts = [random_prompt(seed, 20) for seed in range(5)]
    requests = [GenerationRequest(tuple(prompt)) for prompt in prompts]

    def generate(**given: Any) -> Any:
        return fdllm.generate(model, requests, DECODING, batch_size=2, **given)

    def score(**given: Any) -> Any:
        pairs = [(prompt, [5, 6]) for prompt in prompts]
        return fdllm.score(model, pairs, "denoise", DECODING, batch_size=2, **given)

    assert sorted(run(generate)) == list(range(started))
    assert len(run(score)) == started


def test_only_temperature_makes_a_row_draw() -> None:
    prompt = tuple(random_prompt(1, 16))
    one, other = texts(GenerationRequest(prompt, seed=1), GenerationRequest(prompt, seed=2))
    assert one == other


# --- answer → entry -------------------------------------------------------------------------------


def counted() -> Counts:
    counts = Counts()
    counts.add(Phase.DENOISE, LayerPlan(3), 4, Cost(100, 20, 3, 1))
    return counts


def test_a_generated_answer_is_kept_whole() -> None:
    counts = counted()
    result = Generation([4, 5, 2], counts, 1.5, "stop", "ab", (2, 1))
    entry = PROMPTS[1].entry(result)
    assert json.loads(json.dumps(entry)) == {
        "kind": "generate",
        "task": "sums",
        "doc_id": 1,
        "index": 0,
        "prompt_hash": text_hash("q"),
        "text": "ab",
        "tokens": [4, 5, 2],
        "num_tokens": 3,
        "finish": "stop",
        "seconds": 1.5,
        "counts": counts.as_dict(),
        "steps": [2, 1],
    }


def test_a_scored_answer_is_kept_whole() -> None:
    counts = counted()
    entry = PAIRS[1].entry(Score(-2.5, True, counts, 0.5, 1, step=6, reused_tokens=3))
    assert json.loads(json.dumps(entry)) == {
        "kind": "loglikelihood",
        "task": "sums",
        "doc_id": 0,
        "index": 1,
        "prompt_hash": text_hash("p"),
        "target": " B",
        "loglikelihood": -2.5,
        "is_greedy": True,
        "scored_tokens": 1,
        "scored_step": 6,
        "reused_tokens": 3,
        "seconds": 0.5,
        "counts": counts.as_dict(),
    }


def test_counts_survive_the_journal() -> None:
    counts = counted()
    counts.share(Phase.PREFILL, 32)
    counts.add(Phase.COMMIT, LayerPlan(3), 16, Cost(400, 80, 12))
    assert Counts.from_dict(json.loads(json.dumps(counts.as_dict()))) == counts
    both = counts + counts
    for phase in Phase:
        for field in fields(counts[phase]):
            one, two = getattr(counts[phase], field.name), getattr(both[phase], field.name)
            assert two == 2 * one
    assert (counts.forwards, counts.computed, counts.tokens, counts.shared) == (2, 6, 20, 32)


def test_a_warm_up_decodes_a_block_and_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    caught = Caught()
    monkeypatch.setattr("fdllm.evaluate.adapter.generate", caught)
    model = random_model()
    for mask, token in ((None, 0), (0, 1), (model.spec.mask_id, 0)):
        run = Run(
            experiment="00_baseline",
            task="tiny_choice",
            cell=Cell(name="k1_first"),
            decoding=DECODING.model_copy(update={"mask_id": mask}),
        )
        EngineLM(run, model, NoReuse()).warm_up()
        given, named = caught.calls.pop()
        request = GenerationRequest((token,) * 17, max_new_tokens=16)
        assert given == (model, [request], run.decoding, NoReuse())
        assert named == {}


def test_threads_and_machine_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no self-test has been kept
    load, threads = Caught(random_model()), Caught()
    monkeypatch.setattr("fdllm.evaluate.adapter.load_model", load)
    monkeypatch.setattr(torch, "set_num_threads", threads)
    choice = ModelChoice(name="tiny", revision="main", dtype="float32", device="cpu")
    machine = LoadedModel.load(choice, 3)
    assert load.only == (("tiny", "cpu", "float32"), {"revision": "main"})
    assert threads.only == ((3,), {})
    LoadedModel.load(choice)
    assert len(threads.calls) == 1
    assert machine.n_layers == 3
    told = machine.facts(Evaluating(batch_size=4, score_batch_size=6, compile=False))
    expected = {
        "accelerator": None,
        "device": "cpu",
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "cuda": None,
        "batch_size": 4,
        "score_batch_size": 6,
        "compile": "no",
        "selftest": "not run",
        "selftest_batch": None,
    }
    assert told.items() >= expected.items()


def test_an_end_token_outside_the_vocabulary_is_refused() -> None:
    model = random_model()
    for token in (-1, model.spec.vocab_size):
        decoding = Decoding(end_token=token)
        with pytest.raises(UsageError, match="vocabulary"):
            fdllm.score(model, [([5], [6])], "first-token", decoding)

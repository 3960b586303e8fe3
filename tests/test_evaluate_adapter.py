"""The lm-eval model over the engine: tokens, arguments, room, resume."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lm_eval.api.instance import Instance

import fdllm
from fdllm.core.config import Decoding, Estimator
from fdllm.core.reuse import NoReuse
from fdllm.errors import FdllmError
from fdllm.evaluate.adapter import EngineLM
from fdllm.evaluate.attempt import EndedEarly, Part
from fdllm.evaluate.requests import request_key
from hub.checkpoint import MemoryStore, Tally, byte_tokenizer, random_model
from hub.lm import Recorder, engine_lm, instance, run_of
from hub.rows import read_rows


@pytest.fixture
def causal_lm(monkeypatch: pytest.MonkeyPatch) -> type:
    """The harness's own causal model; ``accelerate``, which it only needs to run, may be absent."""
    absent = {
        "accelerate": ("Accelerator", "InitProcessGroupKwargs", "find_executable_batch_size"),
        "accelerate.utils": ("get_max_memory",),
    }
    for name, members in absent.items() if find_spec("accelerate") is None else ():
        stand_in = ModuleType(name)
        for member in members:
            setattr(stand_in, member, None)
        monkeypatch.setitem(sys.modules, name, stand_in)
    module = import_module("lm_eval.models.huggingface")
    return module.HFLM  # type: ignore[no-any-return]


def test_pairs_are_tokenised_as_the_harness_does_it_but_no_white_space_moves(
    shared: Path, causal_lm: type
) -> None:
    mmlu, gsm8k = (read_rows(shared, f"{name}_test.jsonl") for name in ("mmlu", "gsm8k"))
    tokenizer = byte_tokenizer([row["question"] for row in gsm8k[:400]] + ["Answer: A B C D"] * 9)
    asked: list[Any] = []
    theirs: Any = object.__new__(causal_lm)  # its tokenising alone, without a model
    vars(theirs).update(
        tokenizer=tokenizer,
        backend="causal",
        add_bos_token=None,
        custom_prefix_token_id=None,
        chat_template_args={},
        enable_thinking=False,
        _loglikelihood_tokens=lambda requests, **_: asked.extend(requests),
    )
    ours = engine_lm(Recorder(), tokenizer=tokenizer)
    pairs = [("", "no context"), ("<|im_end|>already", " A")]
    chats = []
    for row in mmlu[::60]:
        choices = "\n".join(f"{c}. {t}" for c, t in zip("ABCD", row["choices"], strict=True))
        question = f"{row['question'].strip()}\n{choices}\nAnswer:"
        chat = [{"role": "system", "content": "Choose."}, {"role": "user", "content": question}]
        assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)
        pairs += [(question, f" {c}") for c in "ABCD"]
        chats += [(ours.apply_chat_template(chat), c) for c in "ABCD"]
    pairs += [(f"Question: {row['question']}\nAnswer:", f" {row['answer']}") for row in gsm8k[::60]]
    for context, continuation in pairs:
        got = ours.encode_pair(context, continuation, "here")
        asked.clear()
        theirs.loglikelihood([instance(context, continuation)], disable_tqdm=True)
        assert [got] == [request[1:] for request in asked]
    line_break = tokenizer.encode("\n")
    for context, letter in chats:  # the harness would move the template's line break
        ahead, behind = ours.encode_pair(context, letter, "here")
        assert ahead == tokenizer.encode(context)
        assert behind == tokenizer.encode(letter)
        asked.clear()
        theirs.loglikelihood([instance(context, letter)], disable_tqdm=True)
        assert [request[1:] for request in asked] == [(ahead[:-1], line_break + behind)]


def test_a_target_that_merges_into_the_prompt_is_refused_by_name() -> None:
    tokenizer = byte_tokenizer(["Answer: A B C D"] * 9)
    lm = engine_lm(Recorder(), tokenizer=tokenizer)
    assert len(tokenizer.encode(" A")) == 1
    request = instance("Answer: ", "A", kind="loglikelihood", doc_id=7)
    with pytest.raises(FdllmError, match="document 7: 'A' merges into the prompt's end 'Answer: '"):
        lm.loglikelihood([request])


def test_an_until_string_ends_the_text() -> None:
    model = random_model()
    decoding = Decoding(max_new_tokens=40, threshold=0.5)

    def generate(until: list[str]) -> tuple[str, dict[str, Any]]:
        lm = EngineLM(run_of("sums", decoding, batch_size=2), model, NoReuse())
        (text,) = lm.generate_until([instance("some prompt", {"until": until})])
        return text, lm.entries["sums", 0][0]

    free, _ = generate([])
    stop = free[6:8]
    cut, entry = generate([stop, ""])
    assert cut == free.split(stop, 1)[0]
    assert entry["finish"] == "until"
    assert entry["num_tokens"] == len(entry["tokens"]) < 40


@pytest.mark.parametrize(
    ("arguments", "until", "length"),
    [
        ({"until": "\n\n"}, ("\n\n",), 40),
        ({"until": ["a", ""], "max_gen_toks": 7}, ("a",), 7),
        ({"do_sample": True, "temperature": 0.7, "max_new_tokens": 9}, (), 9),
    ],
)
def test_generation_arguments_are_read(
    arguments: dict[str, Any], until: tuple[str, ...], length: int
) -> None:
    recorder = Recorder()
    engine_lm(recorder).generate_until([instance("p", arguments)])
    (request,) = recorder.asked
    assert (request.until, request.max_new_tokens) == (until, length)


@pytest.mark.parametrize(
    "arguments", [{"top_k": 5}, {"until": [], "max_gen_toks": 3, "max_tokens": 4}]
)
def test_an_argument_that_would_be_ignored_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(FdllmError, match="task 'sums'"):
        engine_lm(Recorder()).generate_until([instance("p", arguments)])


def test_a_prompt_without_room_names_its_document_before_anything_is_computed() -> None:
    recorder = Recorder()
    lm = engine_lm(recorder, max_positions=128)
    fits, too_long = (instance("x" * n, {}, doc_id=n) for n in (88, 89))
    lm.generate_until([fits])
    assert len(recorder.asked) == 1
    with pytest.raises(FdllmError, match="document 89: a prompt of 89 tokens"):
        lm.generate_until([instance("short", {}), too_long])
    with pytest.raises(FdllmError, match="document 3: a prompt of 127 tokens"):
        lm.loglikelihood([instance("x" * 127, "yz", kind="loglikelihood", doc_id=3)])
    assert len(recorder.asked) == 1


def test_what_the_store_holds_is_not_computed_again() -> None:
    requests = [instance(f"prompt {i}", {"until": ["\n"]}, doc_id=i) for i in range(6)]
    store, tally = MemoryStore(), Tally()
    broken = Recorder(breaks_after=4)
    with pytest.raises(KeyboardInterrupt):
        engine_lm(broken, store=store).generate_until(requests)
    assert len(store.entries) == 4  # what was done is kept, though the run died

    recorder = Recorder()
    texts = engine_lm(recorder, store=store, progress=tally).generate_until(requests)
    assert texts == [f"answer {i}" for i in range(6)]
    assert {one.doc_id for one in recorder.asked} == {0, 1}
    assert (tally.total, tally.done, tally.advanced) == (6, 4, 2)

    idle = Recorder()
    whole = engine_lm(idle, store=store)
    assert whole.generate_until(requests) == texts
    assert idle.asked == []
    assert [whole.entries["sums", i][0]["text"] for i in range(6)] == texts


@pytest.mark.parametrize(
    ("kept", "goes_on", "warm"), [(0, True, 1), (4, True, 1), (5, True, 0), (0, False, 0)]
)
def test_a_model_warms_up_where_something_is_left_to_compute(
    kept: int, warm: int, monkeypatch: pytest.MonkeyPatch, *, goes_on: bool
) -> None:
    requests = [instance(f"prompt {i}", {}, doc_id=i) for i in range(5)]
    store, warmed = MemoryStore(), list[int]()
    if kept:
        engine_lm(Recorder(), store=store).generate_until(requests[:kept])
    lm = engine_lm(Recorder(), store=store)
    monkeypatch.setattr(lm, "warm_up", lambda: warmed.append(1))
    lm.part = Part(None, lambda: goes_on)
    with nullcontext() if goes_on else pytest.raises(EndedEarly, match="0 of 5"):
        lm.generate_until(requests)
    assert len(warmed) == warm


def test_everything_that_asks_for_an_answer_is_in_its_key() -> None:
    base: dict[str, Any] = {"prompt": "p", "second": {}, "task": "t", "doc_id": 1, "index": 0}
    how: dict[str, Any] = {
        "kind": "generate", "target": None, "arguments": {"until": ["a"]}, "repeat": 0,
    }  # fmt: skip
    changes: list[dict[str, Any]] = [
        {}, {"kind": "loglikelihood"}, {"task": "u"}, {"doc_id": 2}, {"index": 1}, {"prompt": "q"},
        {"target": ""}, {"arguments": {"until": ["b"]}}, {"arguments": {}}, {"repeat": 1},
    ]  # fmt: skip
    keys = {
        request_key(
            instance(**(base | {name: x for name, x in change.items() if name in base})),
            **(how | {name: x for name, x in change.items() if name in how}),
        )
        for change in changes
    }
    assert len(keys) == len(changes)
    assert all(len(key) == 64 for key in keys)


KEYS = (
    "ae0b71eece459fa3ffb328d3341e41d1b4832d71a7d66b778f244c57b1c7e367",
    "97031f53fa57752a87579d74ec8209e59a994ddf9d9bbf64c565fffa99c4c745",
)


def test_a_key_stays_what_journals_hold() -> None:
    asked = instance("2 + 2 =", {"until": ["\n"], "do_sample": False}, task="t", doc_id=7, index=1)
    assert request_key(asked, "generate", None, asked.args[1]) == KEYS[0]
    assert request_key(asked, "loglikelihood", " 4", None, 2) == KEYS[1]


def test_a_change_of_the_request_is_another_request() -> None:
    store = MemoryStore()
    lm = engine_lm(Recorder(), store=store)
    base = {"prompt": "p", "second": {"until": ["a"]}}
    changes: list[dict[str, Any]] = [
        {},
        {"prompt": "q"},
        {"second": {"until": ["b"]}},
        {"doc_id": 1},
        {"index": 1},
        {"task": "other"},
    ]
    for change in changes:
        lm.generate_until([instance(**{**base, **change})])
    lm.loglikelihood([instance("p", "t", kind="loglikelihood")])
    lm.loglikelihood([instance("p", "u", kind="loglikelihood")])
    assert len(store.entries) == len(changes) + 2


def test_repeats_of_one_request_have_answers_and_seeds_of_their_own() -> None:
    recorder, store = Recorder(), MemoryStore()
    lm = engine_lm(recorder, store=store)
    lm.generate_until([instance("p", {})] * 3)
    assert len(store.entries) == 3
    assert len({one.seed for one in recorder.asked}) == 3


CHOICES = [
    instance("Which?", text, kind="loglikelihood", index=i, doc_id=4)
    for i, text in enumerate((" (A)", " (B)"))
]


def test_first_token_scoring_refuses_choices_that_share_their_first_token() -> None:
    recorder = Recorder()
    tokenizer = byte_tokenizer()
    shared_token = tokenizer.encode(" ")
    with pytest.raises(FdllmError, match="task 'sums', document 4") as raised:
        engine_lm(recorder, scoring="first-token").loglikelihood(CHOICES)
    assert str(shared_token) in str(raised.value)
    assert recorder.asked == []


@pytest.mark.parametrize(("scoring", "allow_invalid"), [("denoise", False), ("first-token", True)])
def test_choices_are_scored_in_order(scoring: Estimator, *, allow_invalid: bool) -> None:
    lm = engine_lm(Recorder(), scoring=scoring, allow_invalid=allow_invalid)
    assert lm.loglikelihood(CHOICES) == [(-0.0, True), (-1.0, False)]


def test_the_model_scores_a_target_the_same_through_the_harness() -> None:
    model, decoding = random_model(), Decoding()
    lm = EngineLM(run_of("sums", decoding, batch_size=2), model, NoReuse())
    pair = lm.encode_pair("Which?", " (A)", "here")
    (direct,) = fdllm.score(model, [pair], scoring="denoise", decoding=decoding)
    through = lm.loglikelihood(CHOICES)[0]
    assert through == (direct.loglikelihood, direct.is_greedy)
    assert lm._loglikelihood_tokens([(("Which?", " (A)"), *pair)]) == [through]  # noqa: SLF001


def test_a_target_that_leaves_no_token_is_refused() -> None:
    with pytest.raises(FdllmError, match="document 0: '' behind 'p' leaves no token"):
        engine_lm(Recorder()).loglikelihood([instance("p", "", kind="loglikelihood")])


def test_whole_documents_are_refused_by_the_estimator_that_scores_one_token() -> None:
    lm = engine_lm(Recorder(), scoring="first-token")
    with pytest.raises(FdllmError, match="likelihood of whole documents"):
        lm.loglikelihood_rolling([instance("p", "", kind="loglikelihood_rolling")])


def test_every_token_of_a_whole_document_is_scored_once() -> None:
    recorder = Recorder()
    lm = engine_lm(recorder, max_positions=64)
    text = "a document of more tokens than the model has positions, " * 3
    request = Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("sums", 0, 1))
    lm.loglikelihood_rolling([request])
    assert len(recorder.asked) > 2
    assert [t for one in recorder.asked for t in one.target_tokens] == lm.tok_encode(text)
    behind = [one.target_tokens[-1] for one in recorder.asked[:-1]]
    assert [one.tokens for one in recorder.asked] == [
        (lm.prefix_token_id,),
        *((token,) for token in behind),
    ]


def test_a_template_that_refuses_a_message_drops_nothing() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    with pytest.raises(FdllmError, match="roles system, user: no system"):
        engine_lm(Recorder(), tokenizer=tokenizer).apply_chat_template(
            [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        )

"""docs/protocol.md on real rows, through Qwen's vocabulary: what is sent under each preset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from checkups import fdllm
from fdllm.core.config import Decoding
from fdllm.errors import UsageError
from fdllm.presets.reader import load_preset
from hub.checkpoint import byte_tokenizer
from hub.lm import AnsweredLM, Recorder, run_of
from hub.rows import all_repositories, read_rows, repository
from hub.sentences import train_sentences
from hub.server import GRANTED, Hub

pytestmark = pytest.mark.slow

SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."
TASKS = ("gsm8k", "minerva_math", "ifeval", "mmlu", "gpqa_main_n_shot")
PRESETS = ("published", "ancestor", "none")
Sent = Callable[[str, str], list[dict[str, Any]]]


def chat(*turns: str, system: str = "You are a helpful assistant.") -> str:
    """Turns of a user and an assistant, as Qwen's template writes them."""
    roles = ("user", "assistant")
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for i, turn in enumerate(turns):
        text += f"<|im_start|>{roles[i % 2]}\n{turn}<|im_end|>\n"
    return f"{text}<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def gsm8k(shared: Path) -> list[dict[str, Any]]:
    """The real rows; no question holds the cue, so the second one is made to."""
    rows = read_rows(shared, "gsm8k_test.jsonl")
    rows[1] = rows[1] | {"question": f"Answer: that is the word. {rows[1]['question']}"}
    return rows


@pytest.fixture(scope="module")
def hub(shared: Path, gsm8k: list[dict[str, Any]]) -> Iterator[Hub]:
    train = read_rows(shared, "gsm8k_train.jsonl")
    changed = {"openai/gsm8k": repository({"main": {"train": train, "test": gsm8k}})}
    with Hub(all_repositories(shared) | changed) as running:
        yield running


@pytest.fixture(scope="module")
def sent(hub: Hub, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """What a run of a task would send under a preset, from ``fdllm prompts``."""
    home = tmp_path_factory.mktemp("home")
    train_sentences(home)
    model = ("--model", str(shared / "qwen_tokenizer"), "--limit", "2", "--json")
    known: dict[str, list[dict[str, Any]]] = {}

    def of(task: str, preset: str) -> list[dict[str, Any]]:
        if preset not in known:
            named = () if preset == "none" else ("--preset", preset)
            flags = ("--task", *TASKS, *model, *named)
            ended = fdllm("prompts", *flags, home=home, HF_ENDPOINT=hub.url, HF_TOKEN=GRANTED)
            assert (ended.code, ended.err) == (0, "")
            known[preset] = json.loads(ended.out)
        return [entry for entry in known[preset] if entry["task"].startswith(task)]

    return of


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(shared / "qwen_tokenizer")  # type: ignore[no-untyped-call]
    return found


# --- texts are generated ------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_gsm8k_is_asked_for_steps(sent: Sent, gsm8k: list[dict[str, Any]], preset: str) -> None:
    first = sent("gsm8k", preset)[0]
    assert first["prompt"] == chat(f"Question: {gsm8k[0]['question']}\n{SENTENCE}")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_cue_is_replaced_wherever_it_stands(
    sent: Sent, gsm8k: list[dict[str, Any]], preset: str
) -> None:
    """Under a preset also inside a question; by default the cue alone."""
    question = gsm8k[1]["question"]
    assert question.startswith("Answer:")
    if preset != "none":
        question = question.replace("Answer:", SENTENCE)
    second = sent("gsm8k", preset)[1]
    assert second["prompt"] == chat(f"Question: {question}\n{SENTENCE}")


@pytest.mark.parametrize("preset", PRESETS)
def test_minerva_math_is_asked_for_steps(sent: Sent, shared: Path, preset: str) -> None:
    rows = [r for r in read_rows(shared, "math_test.jsonl") if r["type"] == "Algebra"]
    first = next(e for e in sent("minerva_math", preset) if e["task"] == "minerva_math_algebra")
    assert first["prompt"] == chat(f"Problem:\n{rows[0]['problem']}\n\n{SENTENCE}")


@pytest.mark.parametrize("preset", PRESETS)
def test_ifeval_is_asked_as_it_stands(sent: Sent, shared: Path, preset: str) -> None:
    row = read_rows(shared, "ifeval.jsonl")[0]
    assert sent("ifeval", preset)[0]["prompt"] == chat(row["prompt"])


@pytest.mark.parametrize("preset", ["published", "ancestor"])
@pytest.mark.parametrize("task", ["gsm8k", "minerva_math", "ifeval"])
def test_strings_of_the_task_end_nothing_and_lengths_are_whole_blocks(
    sent: Sent, task: str, preset: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    entries = sent(task, preset)
    assert entries
    for entry in entries:
        assert entry["until"] == []
        assert entry["tokens"] == tokenizer.encode(entry["prompt"])
        length = len(entry["tokens"])
        # As the reference counts: 2048 // 32 + length // 32 blocks in all.
        assert length + entry["max_new_tokens"] == (2048 // 32 + length // 32) * 32
    assert {len(entry["tokens"]) % 32 for entry in entries} != {0}


def test_without_a_preset_the_task_says_where_a_text_ends(sent: Sent) -> None:
    assert sent("gsm8k", "none")[0]["until"] == ["Question:", "</s>", "<|im_end|>"]
    lengths = {task: sent(task, "none")[0]["max_new_tokens"] for task in ("gsm8k", "ifeval")}
    assert lengths == {"gsm8k": 2048, "ifeval": 1280}
    assert len({entry["task"] for entry in sent("mmlu", "none")}) == 57


def test_the_text_ends_at_one_token_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    untouched = Decoding(stop_token=(1, 2))

    def decoding(token: str | None, read: PreTrainedTokenizerFast = tokenizer) -> Decoding:
        run = run_of("gsm8k", untouched, stop_token=token, chat_template=False)
        return AnsweredLM(Recorder(), run, read, 512).decoding

    for name in ("published", "ancestor"):
        token = load_preset(name).evaluation_of("gsm8k")["stop_token"]
        assert decoding(token).stop_tokens == (151645,)
    assert decoding(None) == untouched
    with pytest.raises(UsageError, match=r"at the token '<\|end\|>', which the tokenizer of model"):
        decoding("<|end|>", byte_tokenizer())


# --- answers are scored -------------------------------------------------------------------------


def test_mmlu_is_asked_behind_five_turns(sent: Sent, shared: Path) -> None:
    rows = [r for r in read_rows(shared, "mmlu_test.jsonl") if r["subject"] == "anatomy"]

    def asked(row: dict[str, Any]) -> str:
        choices = "".join(f"{c}. {t}\n" for c, t in zip("ABCD", row["choices"], strict=True))
        return f"{row['question'].strip()}\n{choices}Answer:"

    examples = [part for row in rows[:5] for part in (asked(row), "ABCD"[row["answer"]])]
    about = "The following are multiple choice questions (with answers) about anatomy.\n\n"
    prompts = {e["prompt"] for e in sent("mmlu_anatomy", "published") if e["doc_id"] == 0}
    assert prompts == {chat(*examples, asked(rows[5]), system=about)}
    for preset in ("ancestor", "none"):
        prompts = {e["prompt"] for e in sent("mmlu_anatomy", preset) if e["doc_id"] == 0}
        assert prompts == {chat(asked(rows[5]), system=about)}


@pytest.mark.parametrize("preset", ["published", "ancestor"])
@pytest.mark.parametrize(("task", "letters"), [("mmlu", [" A", "A"]), ("gpqa", ["(A", " (A"])])
def test_targets_are_what_the_whole_text_has_behind_the_prompt(
    sent: Sent, tokenizer: PreTrainedTokenizerFast, preset: str, task: str, letters: list[str]
) -> None:
    entries = sent(task, preset)
    documents: dict[tuple[str, int], list[int]] = {}
    for entry in entries:
        assert entry["scoring"] == "first-token"
        ahead = tokenizer.encode(entry["prompt"])
        whole = tokenizer.encode(entry["prompt"] + entry["target"])
        assert entry["tokens"] == ahead
        assert ahead + entry["target_tokens"] == whole
        assert entry["prompt"].endswith("<|im_start|>assistant\n")
        assert len(whole) <= 4096
        documents.setdefault((entry["task"], entry["doc_id"]), []).append(entry["target_tokens"][0])
    assert {entry["target"][: len(letters[0])] for entry in entries} & set(letters)
    assert all(len(set(first)) == 4 for first in documents.values())


@pytest.mark.parametrize("task", ["mmlu", "gpqa"])
def test_without_a_preset_the_experiments_estimator_scores(sent: Sent, task: str) -> None:
    assert {entry["scoring"] for entry in sent(task, "none")} == {"denoise"}


def test_more_than_4096_tokens_are_refused(hub: Hub, shared: Path, tmp_path: Path) -> None:
    """Only where answers are scored; the limit is the published evaluation's own."""
    preset = tmp_path / "short.toml"
    preset.write_text("[evaluation]\nmax_prompt_tokens = 40\n")
    base = ("prompts", "--model", str(shared / "qwen_tokenizer"), "--limit", "1", "--json")
    ended = {
        task: fdllm(
            *base, "--task", task, "--preset", str(preset), home=tmp_path, HF_ENDPOINT=hub.url
        )
        for task in ("gsm8k", "mmlu")
    }
    assert ended["gsm8k"].code == 0, ended["gsm8k"].err
    assert ended["mmlu"].code == 1
    assert "and max_prompt_tokens allows 40; lower num_fewshot" in ended["mmlu"].err

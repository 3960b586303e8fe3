"""The embedded model's rows, tokenizer, task files and weights."""

from __future__ import annotations

import json
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from fdllm import tiny
from fdllm.tiny import vocabulary
from tiny_training import files, questions
from tiny_training.batches import BLOCK
from tiny_training.questions import Row, Split, Stage, TaskName

TASKS: tuple[TaskName, ...] = ("arithmetic", "choice", "sums")


@pytest.fixture(scope="module")
def tok() -> PreTrainedTokenizerBase:
    """The tokenizer that ships with the weights."""
    return AutoTokenizer.from_pretrained(tiny.FOLDER)  # type: ignore[no-any-return, no-untyped-call]


def total_of(expression: str) -> int:
    """The value of a chain or a sum."""
    return sum(int(term) for term in re.findall(r"[+-]?\d+", expression))


def test_import_brings_no_torch() -> None:
    code = "import sys, fdllm.tiny; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["arithmetic", "choice"])
def test_files_are_the_generators_rows(name: str, tmp_path: Path) -> None:
    questions.write_test_files(tmp_path)
    written = (tmp_path / f"{name}.jsonl").read_text()
    assert (tiny.TASKS / f"{name}.jsonl").read_text() == written
    assert len(written.splitlines()) == questions.NUM_ROWS["sums"]["test"]


@pytest.mark.parametrize("task", TASKS)
def test_no_two_held_out_rows_ask_for_the_same(task: TaskName) -> None:
    rows = {split: questions.held_out(task, split) for split in get_args(Split)}
    assert {split: len(rows[split]) for split in rows} == questions.NUM_ROWS[task]
    expressions = [row.expression for split in rows for row in rows[split]]
    assert len(set(expressions)) == len(expressions)


def test_without_the_exclusion_training_would_meet_test_rows() -> None:
    """So the exclusion is needed: the choice rows' space is small enough to be hit."""
    rng = random.Random(1)
    drawn = {questions.choice_row(rng).expression for _ in range(24_000)}
    assert {row.expression for row in questions.held_out("choice", "test")} & drawn


@pytest.mark.parametrize("task", ["arithmetic", "sums"])
def test_written_sums_are_worked_out_right(task: TaskName) -> None:
    most = questions.MAX_SUM if task == "sums" else questions.MAX_TOTAL
    for row in questions.held_out(task, "test"):
        *lines, last = row.answer.split("\n")
        assert last == f"#### {row.target}"
        assert int(row.target) == total_of(row.expression)
        assert len(lines) in (2, 3)
        for line in lines:
            left, right = line.split("=")
            assert total_of(left) == int(right)
            assert 0 <= int(right) <= most


def test_sums_are_added_in_an_order_that_the_question_does_not_give() -> None:
    in_order = []
    for row in questions.held_out("sums", "test"):
        first, *others = (line.split("=")[0].split("+") for line in row.answer.split("\n")[:-1])
        order = [*first, *(right for _, right in others)]
        asked = row.question.split("+")
        assert sorted(order) == sorted(asked)
        in_order.append(order == asked)
    assert 0.3 < np.mean(in_order) < 0.6


def test_last_steps_have_one_right_choice_and_it_is_no_giveaway() -> None:
    places = []
    for row, whole in zip(questions.last_steps(), questions.held_out("sums", "test"), strict=True):
        assert row.question == whole.question
        assert row.choices[row.answer] == whole.answer.split("\n")[-2]
        assert len(set(row.choices)) == questions.NUM_CHOICES
        sides = [choice.split("=") for choice in row.choices]
        assert len({left for left, _ in sides}) == 1, "they differ in the result alone"
        right = [total_of(left) == int(result) for left, result in sides]
        assert [i for i, yes in enumerate(right) if yes] == [row.answer]
        values = sorted(int(result) for _, result in sides)
        assert len(set(np.diff(values))) == 1, "uneven choices hint at the answer"
        places.append(values.index(int(sides[row.answer][1])))
        tokens = [vocabulary.encode(choice) for choice in row.choices]
        assert len(whole.prompt_ids) + max(map(len, tokens)) < BLOCK, "scored inside one block"
    assert min(np.bincount(places)) > len(places) / 8, "the right one stands out by its size"


def test_lettered_questions_have_one_right_option() -> None:
    for row in questions.held_out("choice", "test"):
        options = dict(re.findall(r"([A-D])\) (\d+)", row.question))
        assert list(options) == list(questions.LETTERS)
        right = [name for name, value in options.items() if int(value) == total_of(row.expression)]
        assert right == [row.target]
        assert row.answer == f"{row.target}) {row.expression}={options[row.target]}"


def test_rows_fit_two_blocks() -> None:
    rng = random.Random(2)
    for stage in get_args(Stage):
        for _ in range(2500):
            row = questions.training_row(rng, stage)
            assert len(row.prompt_ids) + len(row.answer_ids) <= questions.MAX_TOKENS
            assert stage == "mixed" or not row.question.startswith("What")


# --- tokenizer ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(tok: PreTrainedTokenizerBase, text: str) -> None:
    if any(token in text for token in vocabulary.SPECIAL_TOKENS):
        return
    ids = tok(text, add_special_tokens=True)["input_ids"]
    assert ids == vocabulary.encode(text)
    assert tok.decode(ids) == text
    assert vocabulary.decode(ids) == text


def test_rows_tokenise_as_in_training(tok: PreTrainedTokenizerBase) -> None:
    for task in TASKS:
        for row in questions.held_out(task, "test"):
            turns = [{"role": "user", "content": row.question}]
            text = tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert text == f"<|user|>{row.question}<|assistant|>"
            assert tok(text, add_special_tokens=False)["input_ids"] == row.prompt_ids
            turns.append({"role": "assistant", "content": row.answer})
            whole = tok.apply_chat_template(turns, tokenize=True)
            assert whole == row.prompt_ids + row.answer_ids
            assert tok.decode(row.answer_ids, skip_special_tokens=True) == row.answer


def test_special_tokens(tok: PreTrainedTokenizerBase) -> None:
    config = json.loads((tiny.FOLDER / "config.json").read_text())
    assert tok.eos_token_id == config["eos_token_id"] == vocabulary.END_ID
    assert tok.pad_token_id == config["pad_token_id"] == vocabulary.PAD_ID
    assert tok.mask_token_id == config["mask_token_id"] == vocabulary.MASK_ID
    assert len(tok) == config["vocab_size"]


def test_tokenizer_files_are_the_makers(tmp_path: Path) -> None:
    files.write_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_text() == (tiny.FOLDER / name).read_text()


# --- the harness --------------------------------------------------------------------------------


def oracle(rows: dict[str, Row], name: str, shift: int) -> Any:
    """A model of the harness that knows every answer; ``shift`` makes it wrong."""
    from lm_eval.api.instance import Instance  # noqa: PLC0415 - slow to import
    from lm_eval.api.model import LM  # noqa: PLC0415

    class Oracle(LM):  # type: ignore[misc]
        tokenizer_name = name

        def row(self, context: str) -> Row:
            assert context.startswith("<|user|>")
            assert context.endswith("<|assistant|>")
            return rows[context.removeprefix("<|user|>").removesuffix("<|assistant|>")]

        def apply_chat_template(
            self,
            chat_history: list[dict[str, str]],
            add_generation_prompt: bool = True,
        ) -> str:
            tok = AutoTokenizer.from_pretrained(tiny.FOLDER)  # type: ignore[no-untyped-call]
            return str(
                tok.apply_chat_template(
                    chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )

        def generate_until(self, requests: list[Instance]) -> list[str]:
            answers = [self.row(request.args[0]) for request in requests]
            assert all(request.args[1]["until"] == [] for request in requests)
            return [
                row.answer.replace(f"#### {row.target}", f"#### {int(row.target) + shift}")
                for row in answers
            ]

        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            out = []
            for request in requests:
                context, line = request.args
                left, result = line.split("=")
                assert total_of(self.row(context).question) == total_of(left)
                right = total_of(left) == int(result)
                out.append((0.0 if right != bool(shift) else -1.0, right))
            return out

        def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
            raise NotImplementedError(f"{len(requests)} requests of a kind no task here makes")

    return Oracle()


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (1, 0.0)])
@pytest.mark.parametrize(
    ("task", "metric"), [("arithmetic", "exact_match,strict-match"), ("choice", "acc,none")]
)
def test_tasks_run_offline_from_anywhere(
    task: str,
    metric: str,
    shift: int,
    expected: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval import simple_evaluate  # noqa: PLC0415 - slow to import
    from lm_eval.tasks import TaskManager  # noqa: PLC0415

    def refuse(*_: object) -> None:
        raise AssertionError("a task reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    name = f"tiny_{task}"
    assert name in tiny.TASK_NAMES
    rows = {row.question: row for row in questions.held_out("sums", "test")}
    found = simple_evaluate(
        oracle(rows, name, shift),
        tasks=[name],
        task_manager=TaskManager(include_path=str(tiny.TASKS), include_defaults=False),
        apply_chat_template=True,
        limit=100,
        bootstrap_iters=0,
    )
    assert found is not None
    assert found["n-samples"][name] == {"original": len(rows), "effective": 100}
    assert found["results"][name][metric] == expected
    assert not list(tmp_path.iterdir())


# --- weights ------------------------------------------------------------------------------------


def test_weights_are_small_and_bear_the_hubs_names() -> None:
    path = tiny.FOLDER / "model.safetensors"
    assert path.stat().st_size < 4_000_000
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        assert {str(file.get_tensor(name).dtype) for name in names} == {"torch.float16"}
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert name in names
    for name in ("self_attn.q_proj.bias", "self_attn.o_proj.weight", "mlp.gate_proj.weight"):
        assert f"model.layers.11.{name}" in names
    assert len(names) == 3 + 12 * 12

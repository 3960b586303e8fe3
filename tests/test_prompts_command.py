"""``fdllm prompts``: what a run would send, seen before it is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdllm.cli import main
from fdllm.evaluate.recording import text_hash

KEYS = ["task", "doc_id", "choice", "prompt", "tokens", "target", "target_tokens", "until",
        "max_new_tokens", "scoring"]  # fmt: skip


def prompts(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict[str, Any]]:
    assert main(["prompts", "--json", *flags]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(("task", "choices"), [("tiny_arithmetic", 1), ("tiny_choice", 4)])
def test_they_are_what_the_run_sends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, choices: int
) -> None:
    flags = ("--model", "tiny", "--task", task, "--limit", "3")
    code = main(["eval", *flags, "--config", "k1_first", "--results", str(tmp_path)])
    assert code == 0
    capsys.readouterr()
    entries = prompts(capsys, *flags)
    (journal,) = tmp_path.rglob("journal.jsonl")
    sent = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    answers = [line["entry"] for line in sent if "entry" in line]
    assert len(entries) == len(answers) == 3 * choices
    assert sorted(
        (one["doc_id"], one["choice"] or 0, text_hash(one["prompt"]), one["target"])
        for one in entries
    ) == sorted(
        (one["doc_id"], one["index"], one["prompt_hash"], one.get("target")) for one in answers
    )


def test_of_a_task_that_generates(capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = prompts(capsys, "--task", "tiny_arithmetic", "--limit", "2")
    assert list(first) == KEYS
    assert first["task"] == "tiny_arithmetic"
    assert (first["doc_id"], first["choice"], first["scoring"]) == (0, None, None)
    assert first["tokens"]
    assert (first["target"], first["target_tokens"]) == (None, [])
    assert (first["until"], first["max_new_tokens"]) == ([], 56)


def test_of_multiple_choice(capsys: pytest.CaptureFixture[str]) -> None:
    entries = prompts(capsys, "--task", "tiny_choice", "--limit", "1", "--scoring", "chain")
    assert [one["choice"] for one in entries] == [0, 1, 2, 3]
    assert len({one["target"] for one in entries}) == 4
    assert all(one["target_tokens"] and one["max_new_tokens"] == 0 for one in entries)
    assert {one["scoring"] for one in entries} == {"chain"}


def test_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "--task", "tiny_choice", "tiny_arithmetic", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "tiny_choice: 8 prompts" in out
    assert "tiny_arithmetic: 2 prompts" in out
    assert "scored by denoise" in out
    assert "choice 3: " in out


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        ((), 2, "--task gsm8k"),
        (("--task", "gsm8"), 2, "did you mean 'gsm8k'"),
        (("--task", "tiny_choice", "--model", "nowhere"), 2, "no model folder at 'nowhere'"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], code: int, says: str
) -> None:
    assert main(["prompts", *flags]) == code
    err = capsys.readouterr().err
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompts", "--task", "tiny_choice", "--model", str(tmp_path)]) == 1
    assert "has no tokenizer files" in capsys.readouterr().err

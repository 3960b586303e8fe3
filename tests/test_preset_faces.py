"""``--preset`` as a person types it: every command names it, or refuses one that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command import Command


@pytest.fixture
def command(fdllm: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("COLUMNS", "400")  # no line is folded at a long folder
    return fdllm


def test_every_face_names_the_preset(command: Command) -> None:
    asked = ("--task", "tiny_arithmetic", "--preset", "ancestor", "--limit", "5")
    assert command("sweep", "--executor", "local", *asked) == 0
    assert "00_baseline / tiny_arithmetic (limit 5, a smoke test) on " in command.out
    assert ", preset ancestor\n" in command.out
    assert command("status", "--json", *asked) == 0
    cells = json.loads(command.out)["cells"]
    assert {(cell["state"], cell["preset"]) for cell in cells} == {("done", "ancestor")}
    assert {Path(cell["folder"]).parent.name.partition("@")[0] for cell in cells} == {
        "tiny_arithmetic_limit_5+ancestor"
    }
    assert command("status", "--task", "tiny_arithmetic") == 0
    assert "0 of 9 done" in command.out
    assert "--limit 5 --preset ancestor" in command.out  # other records
    assert command("report", "--stdout", *asked) == 0
    assert ", preset ancestor, limit 5: SMOKE TEST" in command.out
    assert "declares 0.95" in command.out
    assert command("report", "--stdout", "--task", "tiny_arithmetic") == 1
    assert command("report", "--stdout", *asked[:2], "--preset", "published") == 1
    assert "and preset published under" in command.err


@pytest.mark.parametrize(
    "arguments",
    [("sweep", "--executor", "local"), ("eval", "--config", "k1_first"), ("status",), ("report",),
     ("doctor",), ("prefetch",), ("export",), ("prompts",), ("trace", "--config", "k1_first"),
     ("compare", "a", "b")],
)  # fmt: skip
def test_every_face_refuses_a_preset_that_is_none(
    command: Command, arguments: tuple[str, ...]
) -> None:
    model = () if arguments[0] != "compare" else ("--model", "tiny")
    (command.root / "results/00_baseline/tiny_choice").mkdir(parents=True)
    asked = ("--task", "tiny_choice", "--preset", "publishd", *model)
    assert command(*arguments, *asked) == 2
    assert "unknown preset 'publishd' (did you mean 'published'?)" in command.err
    assert len(command.err.strip().splitlines()) == 1

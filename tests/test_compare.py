"""``fdllm compare`` as a person types it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cells import flipped, make_cell, share, write_cell, write_study
from fdllm.cli import main
from fdllm.report.records import Record

RIGHT = share(1000, 800)
Compare = Callable[..., int]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """``fdllm compare …`` on records below ``tmp_path``; wide, so that no line is folded."""
    monkeypatch.delenv("FDLLM_MODEL", raising=False)
    monkeypatch.setenv("COLUMNS", "2000")

    def run(*arguments: str) -> int:
        try:
            return main(["compare", *arguments, "--results", str(tmp_path / "results")])
        except SystemExit as ended:
            return int(ended.code or 0)

    return run


def write(tmp_path: Path, *cells: Record) -> list[str]:
    """Records where runs would leave them; their folders."""
    return [str(write_cell(tmp_path / "results", cell).folder) for cell in cells]


def grid(tmp_path: Path, **cells: Any) -> None:
    write(tmp_path, *(make_cell(name, right) for name, right in cells.items()))


@pytest.mark.parametrize(
    ("right", "code", "strict", "verdict"),
    [
        (flipped(RIGHT, 5, 5), 0, 0, "SAME OR BETTER"),
        (flipped(RIGHT, 5, 90), 0, 0, "SAME OR BETTER"),
        (flipped(RIGHT, 80, 30), 1, 1, "WORSE"),
        (flipped(RIGHT, 55, 50), 2, 1, "CANNOT TELL"),
    ],
)
def test_the_verdict_is_an_exit_code(
    tmp_path: Path,
    compare: Compare,
    capsys: pytest.CaptureFixture[str],
    right: Any,
    code: int,
    strict: int,
    verdict: str,
) -> None:
    grid(tmp_path, k1_first=RIGHT, k2_middle=right)
    assert compare("k1_first", "k2_middle") == code
    assert f"{verdict}: k2_middle" in capsys.readouterr().out
    assert compare("k1_first", "k2_middle", "--strict") == strict


def test_the_margin_decides_between_same_and_cannot_tell(tmp_path: Path, compare: Compare) -> None:
    grid(tmp_path, k1_first=RIGHT, k2_middle=flipped(RIGHT, 55, 50))
    assert compare("k1_first", "k2_middle", "--margin", "5") == 0
    assert compare("k1_first", "k2_middle", "--margin", "0.1") == 2


@pytest.mark.parametrize("given", ["-1", "nan", "two"])
def test_a_margin_is_a_number_of_points(compare: Compare, given: str) -> None:
    assert compare("k1_first", "k2_middle", f"--margin={given}") == 2


def test_flips_both_ways_side_by_side(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * 900 + " so the answer is 41"
    right, wrong = share(30, 20), flipped(share(30, 20), 3, 2)
    a = make_cell("k1_first", right, outputs=[f"I say {i}" for i in range(30)])
    b = make_cell("k2_last", wrong, outputs=[long] + [f"I hold {i}" for i in range(1, 30)])
    write(tmp_path, a, b)
    compare("k1_first", "k2_last", "--flips", "2")
    out = capsys.readouterr().out
    assert "k1_first right, k2_last wrong: 3, 2 shown (--flips N)" in out
    assert "k1_first wrong, k2_last right: 2" in out
    assert "I say 0" in out
    assert "so the answer is 41" in out
    assert "x" * 500 not in out
    assert "Question 1?" in out
    assert "target 21" in out
    assert "I hold 21" in out
    assert "I hold 2 " not in out  # the third loss is not shown
    compare("k1_first", "k2_last", "--flips", "0")
    assert "I say" not in capsys.readouterr().out


def test_answers_that_flipped_are_whole_words_in_80_columns(
    tmp_path: Path,
    compare: Compare,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    word = "x" * 34
    answers = [f"{word} {word}"] * 30
    a = make_cell("k1_first", share(30, 20), outputs=answers)
    b = make_cell("k2_last", flipped(share(30, 20), 3, 2), outputs=answers)
    write(tmp_path, a, b)
    monkeypatch.setattr("fdllm.cli.compare_command.console", lambda _: Console(width=80))
    compare("k1_first", "k2_last", "--flips", "1")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.count(word) == 8


def test_json_says_the_same(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path, k1_first=RIGHT, k2_middle=flipped(RIGHT, 80, 30))
    assert compare("k1_first", "k2_middle", "--json") == 1
    data = json.loads(capsys.readouterr().out)
    (one,) = data["comparisons"]
    assert (data["exit_code"], one["verdict"], one["smoke_test"]) == (1, "worse", False)
    assert one["difference"]["value"] == pytest.approx(-0.05)
    assert len(one["losses"]) == 80


def test_all_tasks_that_both_have(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worst of them is the exit code."""
    grid(tmp_path, k1_first=RIGHT, k2_middle=RIGHT)
    worse = [
        make_cell("k1_first", RIGHT, task="humaneval"),
        make_cell("k2_middle", flipped(RIGHT, 90, 20), task="humaneval"),
        make_cell("k1_first", RIGHT, task="ifeval"),
    ]
    write(tmp_path, *worse)
    assert compare("k1_first", "k2_middle") == 1
    out = capsys.readouterr().out
    assert "gsm8k: " in out
    assert "humaneval: " in out
    assert "ifeval" not in out
    assert compare("k1_first", "k2_middle", "--task", "gsm8k") == 0


def test_a_limit_selects_and_is_called_a_smoke_test(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path,
        *(make_cell(name, share(10, 8), limit=10) for name in ("k1_first", "k2_middle")),
    )
    assert compare("k1_first", "k2_middle") == 2
    assert "gsm8k_limit_10/k1_first" in capsys.readouterr().err  # says what there is
    assert compare("k1_first", "k2_middle", "--limit", "10") == 2
    assert "SMOKE TEST, limit 10" in capsys.readouterr().out


def test_folders_of_any_experiment(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two versions of the code may be compared on purpose; what differs is said."""
    old, new = tmp_path / "old", tmp_path / "new"
    (a,) = write(old, make_cell("k2_middle", RIGHT))
    changed = {"source": "s2"}
    (b,) = write(new, make_cell("k2_middle", flipped(RIGHT, 4, 4), fields=changed))
    assert compare(a, b) == 0
    assert "differs: source" in capsys.readouterr().out
    assert compare(a, "k2_middle") == 2
    assert "one is a folder and one a config" in capsys.readouterr().err


def test_speed_is_a_pair_of_the_study(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [make_cell(name, RIGHT) for name in ("k1_first", "k1_last", "k2_middle", "k3_last")]
    written = [write_cell(tmp_path / "results", cell) for cell in cells]
    write_study(written, {"k2_middle": 0.8, "k3_last": 0.6})
    for a, b, ratio in (("k1_first", "k2_middle", 0.8), ("k2_middle", "k3_last", 0.75)):
        compare(a, b, "--json")
        data = json.loads(capsys.readouterr().out)
        (one,) = data["comparisons"]
        speed = data["speed"]
        assert (speed["task"], speed["a"], speed["b"]) == ("gsm8k", a, b)
        assert speed["low"] < speed["ratio"] < speed["high"]
        assert (speed["ratio"], speed["claim"]) == (pytest.approx(ratio, abs=0.01), "faster")
        assert (one["speed"], one["accuracy"]) == (speed, data["accuracy"])
        assert data["accuracy"]["verdict"] == "same-or-better"
    compare("k1_first", "k2_middle")
    out = capsys.readouterr().out
    assert "It is faster: 0.80" in out
    assert "Timing study of 1000 documents, 3 rounds of 4 configs in random order" in out


def test_without_a_study_there_is_no_speed(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    """However fast the runs were; and runs of two folders were never timed in turn."""
    fast = make_cell("k2_middle", RIGHT, seconds=np.full(1000, 0.1))
    folders = write(tmp_path, make_cell("k1_first", RIGHT), fast)
    compare("k1_first", "k2_middle", "--json")
    assert json.loads(capsys.readouterr().out)["speed"] is None
    compare("k1_first", "k2_middle")
    out = capsys.readouterr().out
    assert "Speed was not measured: fdllm timing --task gsm8k --experiment 00_baseline" in out
    other = write(tmp_path / "other", fast)
    compare(folders[0], other[0])
    assert "Speed is not compared: the two were not timed in turn" in capsys.readouterr().out


def test_a_damaged_study_is_named_where_the_answers_are_compared(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path, k1_first=RIGHT, k2_middle=RIGHT)
    path = tmp_path / "results" / "00_baseline" / "gsm8k" / "timing" / "study.json"
    path.parent.mkdir()
    path.write_text("{")
    assert compare("k1_first", "k2_middle") == 0
    said = capsys.readouterr().out
    assert "The timing study cannot be used (study.json is no JSON: " in said
    assert "): run fdllm timing --task gsm8k" in said


@pytest.mark.parametrize("strict", [False, True])
def test_configs_of_different_code_are_refused(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str], strict: bool
) -> None:
    """Nobody can tell then; and with --strict that counts as worse."""
    write(
        tmp_path,
        make_cell("k1_first", RIGHT),
        make_cell("k2_middle", RIGHT, fields={"source": "s2"}),
    )
    assert compare("k1_first", "k2_middle", *(["--strict"] if strict else [])) == (
        1 if strict else 2
    )
    assert "source" in capsys.readouterr().err


def test_a_broken_record_is_not_called_worse(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, b) = write(tmp_path, make_cell("k1_first", RIGHT), make_cell("k2_middle", RIGHT))
    with Path(b, "samples.jsonl").open("a") as file:
        file.write("{}\n")
    assert compare("k1_first", "k2_middle") == 2
    assert "k2_middle" in capsys.readouterr().err


def test_records_of_several_models_are_told_apart(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    grid(tmp_path, k1_first=RIGHT, k2_middle=RIGHT)
    task = tmp_path / "results" / "00_baseline" / "gsm8k"
    copy = task.with_name("gsm8k@other--model")
    os.renames(task, copy)
    grid(tmp_path, k1_first=RIGHT, k2_middle=flipped(RIGHT, 90, 0))
    assert compare("k1_first", "k2_middle") == 2
    assert "--model" in capsys.readouterr().err
    assert compare("k1_first", "k2_middle", "--model", "other/model") == 0


def test_nothing_to_compare_says_what_there_is(
    tmp_path: Path, compare: Compare, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("k1_first", "k2_middle") == 2
    assert "there are none: sweep first" in capsys.readouterr().err
    grid(tmp_path, k1_first=RIGHT)
    assert compare("k1_first", "k2_midle") == 2
    err = capsys.readouterr().err
    assert "'k2_midle'" in err
    assert "gsm8k/k1_first" in err

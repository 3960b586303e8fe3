"""Locked criteria as a user meets them: before a sweep, in status, in the tables, in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from checkups import of
from command import Command
from fdllm.doctor.checks_here import criteria as check
from fdllm.doctor.findings import Checkup
from helpers import ROOT

TASK = ("--task", "tiny_arithmetic")
FEW = "not decidable by 5 rows, needs 961"


def state(command: Command, old: str, new: str) -> None:
    """Edit the baseline's criteria."""
    path = command.root / "experiments/00_baseline/experiment.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edit_shows_wherever_a_verdict_stands_and_makes_nothing_stale(finished: Command) -> None:
    assert finished("status", *TASK) == 0
    assert f"! {FEW}" in finished.out
    assert "changed after" not in finished.out
    state(finished, "min_speedup = 1.15", "min_speedup = 1.05")
    assert set(finished.cells(*TASK).values()) == {"done"}
    for command in ("status", "sweep"):
        assert finished(command, *TASK) == 0
        assert f"! {FEW}" in finished.out
        assert "! criteria changed after 45 rows" in finished.out
    assert finished("report", *TASK) == 0
    for name in ("experiments/00_baseline/results.md", "results/00_baseline/report.html"):
        text = (finished.root / name).read_text()
        assert "tiny_arithmetic: criteria changed after 45 rows." in text
        assert f"tiny_arithmetic takes no part: {FEW}." in text
        assert "Nothing that is done takes part in a verdict." in text
    assert finished("report", "--check", *TASK) == 0, finished.out


def test_what_rows_cannot_decide_is_said_before_anything_runs(fdllm: Command) -> None:
    assert fdllm("sweep", "--dry-run", *TASK) == 0
    assert "takes no part" not in fdllm.err
    state(fdllm, "max_accuracy_drop = 0.02", "max_accuracy_drop = 0.01")
    assert fdllm("sweep", "--dry-run", *TASK) == 0
    assert (
        "note: tiny_arithmetic takes no part in the verdict: not decidable by 1,000 rows, "
        "needs 3,842\n"
    ) in fdllm.err
    assert fdllm("sweep", "--dry-run", *TASK, "--limit", "4") == 0
    assert "takes no part" not in fdllm.err, "a few rows decide nothing anyway"


@pytest.mark.parametrize("command", ["sweep", "eval", "report"])
def test_criteria_that_name_what_is_not_there_are_refused(finished: Command, command: str) -> None:
    state(finished, '"k2_middle"', '"k2_midle"')
    config = ("--config", "k1_first") if command == "eval" else ()
    assert finished(command, *TASK, *config) == 2
    assert "did you mean 'k2_middle'" in finished.err


def asked(tmp_path: Path, *tasks: str, limit: int | None = None) -> Checkup:
    one = of(tmp_path)
    sweep = one.sweep.model_copy(
        update={"experiment": "00_baseline", "tasks": tasks, "limit": limit}
    )
    return replace(one, root=ROOT, sweep=sweep)


def test_doctor_says_which_tasks_will_decide(tmp_path: Path) -> None:
    (found,) = check(asked(tmp_path, "gsm8k", "humaneval"))
    assert (found.name, found.state) == ("criteria humaneval", "warn")
    assert "not decidable by 164 rows, needs 961" in found.found
    (found,) = check(asked(tmp_path, "gsm8k"))
    assert (found.name, found.state) == ("criteria", "ok")
    assert list(check(asked(tmp_path, "humaneval", limit=10))) == []

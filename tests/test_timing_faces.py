"""``fdllm timing`` and ``fdllm sweep --timing``: what is taken, said and left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from command import Command
from fdllm.cli import studies
from fdllm.errors import FdllmError
from fdllm.record.lock import locked
from fdllm.timing import take_study
from fdllm.timing.wanted import study_paths, study_state, want_studies
from stubs import StubMachine, change_code, made_up_study, make_planner, make_sweep

TASK = ("--task", "tiny_arithmetic")


def test_a_study_is_printed_as_it_is_documented(fdllm: Command) -> None:
    assert fdllm("timing", *TASK, "--config", "k2_last", "--json") == 0
    found = json.loads(fdllm.out)
    pairs = {pair["b"]: pair for pair in found["pairs"]}
    assert list(pairs) == ["k1_middle", "k1_last", "k2_last"]
    assert {"task", "a", "b", "ratio", "low", "high", "claim"} <= set(pairs["k2_last"])
    assert (pairs["k2_last"]["task"], pairs["k2_last"]["a"]) == ("tiny_arithmetic", "k1_first")
    assert pairs["k2_last"]["claim"] == "none"
    assert (found["docs"], found["repeats"]) == (5, 3)
    assert found["floor"] > 0

    assert fdllm("timing", *TASK) == 0
    lines = fdllm.out.splitlines()
    assert max(map(len, lines[:-4])) <= 80
    assert "[too few documents]" in fdllm.out
    order = [line.split()[0] for line in lines if line.strip().startswith("k")]
    assert order[:2] == ["k1_middle", "k1_last"], "twins first"
    assert "no record to compare" in fdllm.out
    assert "study.json" in fdllm.out


def test_what_cannot_be_timed_is_refused(fdllm: Command) -> None:
    assert fdllm("timing", *TASK, "--config", "k1_last") == 2
    assert "nothing to time" in fdllm.err
    assert fdllm("timing", *TASK, "--docs", "0") == 2
    assert fdllm("timing", *TASK, "--config", "k9") == 2


def test_a_sweep_ends_in_a_study_and_takes_it_once(finished: Command) -> None:
    assert finished("sweep", *TASK, "--dry-run") == 0
    assert "skip 00_baseline / tiny_arithmetic / timing: done, 5 documents" in finished.out
    change_code(finished.root)
    assert finished("sweep", *TASK, "--dry-run") == 0
    assert "timing: stale, experiment of k1_first changed" in finished.out
    assert finished("sweep", *TASK, "--timing", "0", "--json") == 0
    assert json.loads(finished.out)["timing"] == []
    assert finished("sweep", *TASK, "--dry-run", "--json") == 0
    [due] = json.loads(finished.out)["timing"]
    assert (due["state"], due["would_run"]) == ("stale", True)
    assert finished("sweep", *TASK) == 0
    assert "timing: done, 5 documents" in finished.out
    assert finished("eval", *TASK, "--config", "k2_last", "--force") == 0
    assert "timing" not in finished.out


def test_a_sweep_of_one_config_keeps_the_others_in_its_study(finished: Command) -> None:
    assert finished("sweep", *TASK, "--config", "k2_last", "--dry-run") == 0
    assert "skip 00_baseline / tiny_arithmetic / timing: done" in finished.out


def test_a_task_with_a_cell_that_failed_has_no_study(fdllm: Command) -> None:
    fdllm.machine = StubMachine(count_reuse=False)
    assert fdllm("sweep", *TASK) == 1
    assert "timing: pending" in fdllm.out
    assert "not all of the task's cells are done" in fdllm.err


@pytest.fixture
def taking(fdllm: Command, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real :func:`studies.take` of one task; what it asks for is given."""
    monkeypatch.undo()
    monkeypatch.setenv("FDLLM_ROOT", str(fdllm.root))
    planner = make_planner(fdllm.root)
    [wanted] = want_studies(planner, make_sweep(fdllm.root))

    def take(study: Any) -> Any:
        monkeypatch.setattr(take_study, "take_study", study)
        return studies.take(planner, wanted, lambda _: None)  # type: ignore[arg-type, return-value]

    return planner, wanted, take


def test_why_a_study_failed_is_kept_until_it_is_taken(taking: Any) -> None:
    planner, wanted, take = taking

    def fails(*_: Any, **__: Any) -> Any:
        raise FdllmError("answers differ")

    with pytest.raises(FdllmError):
        take(fails)
    state = study_state(planner, wanted)
    assert (state.state, state.reason) == ("failed", "answers differ")
    take(lambda *_, **__: made_up_study(planner, wanted, 100))
    assert study_state(planner, wanted).state == "done"


def test_an_interrupted_study_leaves_nothing(
    taking: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    planner, wanted, take = taking

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take(interrupted)
    assert "nothing was kept" in capsys.readouterr().err
    assert study_state(planner, wanted).state == "pending"


@pytest.mark.usefixtures("impatient")
def test_two_do_not_take_one_study(taking: Any) -> None:
    planner, wanted, take = taking
    with locked(study_paths(planner, wanted)):
        assert study_state(planner, wanted).state == "running"
        with pytest.raises(FdllmError, match="is being taken by process"):
            take(lambda *_, **__: None)

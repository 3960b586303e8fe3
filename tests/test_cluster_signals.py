"""The warning ahead of a time limit: what is in flight is kept, and nothing else is begun."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fdllm.cluster.signals import WARNING, Terminated, terminable, warned
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.attempt import RunOutcome
from fdllm.evaluate.runner import Runner
from fdllm.evaluate.tasks import task_facts
from fdllm.plan import Planner, State
from fdllm.record.journal import read_journal, write_failure
from fdllm.record.paths import Layout
from fdllm.runs import Evaluating, ModelChoice, Run
from helpers import ROOT
from stubs import (
    NUM_DOCS,
    Notes,
    StubMachine,
    do_run,
    loading,
    make_planner,
    make_run,
    make_sweep,
    signal_at,
)


def do(root: Path, run: Run, machine: StubMachine, go_on: Callable[[], bool]) -> RunOutcome:
    return Runner(make_planner(root), Notes(), loading(machine), go_on).run(run)


def test_a_warned_run_keeps_what_is_in_flight_and_goes_on_later(root: Path) -> None:
    run = make_run(root)
    with warned() as go_on:
        outcome = do(root, run, signal_at(1, WARNING), go_on)
        assert not go_on()
    assert (outcome.state, outcome.num_computed) == (State.PARTIAL, 2)
    assert outcome.reason == f"asked to end early, 2 of {NUM_DOCS} requests kept"
    paths = make_planner(root).layout.run(run)
    assert not paths.failed.exists()
    assert make_planner(root).state(run).state is State.PARTIAL
    again = do_run(root, run)
    assert (again.state, again.num_computed) == (State.DONE, NUM_DOCS - 2)


def test_a_warning_ahead_of_the_model_loads_none(root: Path) -> None:
    with warned() as go_on:
        os.kill(os.getpid(), WARNING)
        outcome = Runner(make_planner(root), Notes(), lambda _: pytest.fail("loaded"), go_on).run(
            make_run(root)
        )
    assert (outcome.state, outcome.num_computed) == (State.PARTIAL, 0)


def test_a_warning_behind_the_last_answer_changes_nothing(root: Path) -> None:
    with warned() as go_on:
        outcome = do(root, make_run(root), signal_at(NUM_DOCS - 1, WARNING), go_on)
    assert outcome.state is State.DONE


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (WARNING, signal.SIGTERM)]
    with warned() as go_on, terminable():
        assert go_on()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (WARNING, signal.SIGTERM)] == before


def test_a_failure_is_the_state(root: Path) -> None:
    run = make_run(root)
    write_failure(make_planner(root).layout.run(run), "cancelled", "logs/slurm_1.log")
    state = make_planner(root).state(run)
    assert (state.state, state.reason, state.log) == (State.FAILED, "cancelled", "logs/slurm_1.log")


# --- the real engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> LoadedModel:
    return LoadedModel.load(ModelChoice(name="tiny", device="cpu"))


@pytest.mark.parametrize("task", ["tiny_arithmetic", "tiny_choice"])
def test_the_batch_in_flight_is_finished_and_nothing_is_computed_twice(
    task: str, machine: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    batch = 3
    asked = Evaluating(batch_size=batch, score_batch_size=batch)
    planner = Planner(ROOT, Layout.of(ROOT, tmp_path / "results"), task_facts)
    choice = ModelChoice(name="tiny")
    sweep = make_sweep(
        ROOT, tasks=(task,), configs=("k2_middle",), limit=8, model=choice, evaluating=asked
    )
    (run,) = planner.runs(sweep)
    journal = planner.layout.run(run).journal

    def go_on() -> bool:
        return not read_journal(journal).entries  # the warning comes with the first answer

    first = Runner(planner, Notes(), lambda _: machine, go_on).run(run)
    assert first.state is State.PARTIAL, first.reason
    kept = read_journal(journal).entries
    # All that was in flight: a row of each slot (every choice of its question), less than all.
    documents = {entry["doc_id"] for entry in kept.values()}
    assert len(documents) == batch
    second = Runner(planner, Notes(), lambda _: machine).run(run)
    assert second.state is State.DONE, second.reason
    assert second.summary is not None
    assert first.num_computed + second.num_computed == second.summary.num_requests

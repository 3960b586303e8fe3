"""What a planner tells of a run from its files: each rule alone, and which of two counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdllm.core.reuse import PeriodicReuse
from fdllm.plan import CellState, State
from fdllm.record.journal import Journal, write_failure
from fdllm.record.lock import locked
from fdllm.runs import Run
from fdllm.shard import Shard
from stubs import do_run, make_planner, make_run, make_sweep, paths_of

THREE = [Shard(i, 3) for i in range(3)]


def state(root: Path, run: Run, **named: Any) -> CellState:
    return make_planner(root).state(run, **named)


def answer(
    root: Path, run: Run, number: int, total: int | None, shard: Shard | None = None
) -> None:
    paths = paths_of(root, run).of_shard(shard)
    with Journal(paths.journal, make_planner(root).fingerprint(run), {"machine": "m"}) as journal:
        if total is not None:
            journal.set_total(total)
        for i in range(number):
            journal.put(f"{shard} {i}", {"num_tokens": 1, "seconds": 0.5})


# --- what stands where ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("experiment", "01_other"), ("task", "gsm8k"), ("config", "k1_last"), ("limit", 3)],
)
def test_a_record_of_another_run_is_invalid(root: Path, field: str, value: Any) -> None:
    run = make_run(root)
    do_run(root, run)
    path = paths_of(root, run).summary
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    found = state(root, run)
    assert found.state is State.INVALID
    assert found.reason.startswith("summary.json is of another run: ")
    assert str(value) in found.reason


def test_a_record_counts_more_than_a_failure_and_a_process_more_than_both(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    paths = paths_of(root, run)
    write_failure(paths, "an earlier attempt", None)
    done = state(root, run)
    assert (done.state, done.done, done.total, done.reason) == (State.DONE, 5, 5, "")
    assert done.summary is not None
    with locked(paths):
        running = state(root, run)
        assert running.state is State.RUNNING
        assert running.reason.startswith("process ")
        assert state(root, run, mine=True).state is State.DONE
    paths.summary.unlink()
    failed = state(root, run)
    assert (failed.state, failed.reason, failed.done, failed.total) == (
        State.FAILED, "an earlier attempt", 5, 5,
    )  # fmt: skip


@pytest.mark.parametrize("shard", THREE)
def test_a_shard_at_work_or_failed_is_named(root: Path, shard: Shard) -> None:
    run = make_run(root)
    for one in THREE:
        answer(root, run, 1, 2, one)
    part = paths_of(root, run).of_shard(shard)
    with locked(part):
        found = state(root, run)
        assert found.state is State.RUNNING
        assert found.reason.startswith(f"shard {shard.index + 1} of 3: process ")
    assert state(root, run).state is State.PARTIAL
    write_failure(part, "the disk is full", "a.log")
    found = state(root, run)
    assert (found.state, found.reason) == (
        State.FAILED, f"shard {shard.index + 1} of 3: the disk is full",
    )  # fmt: skip
    assert (found.log, found.done, found.total) == ("a.log", 3, 6)
    part.failed.write_text("no JSON")
    assert state(root, run).state is State.INVALID


@pytest.mark.parametrize(
    ("number", "total", "reason"),
    [
        (2, 5, "2 of 5 requests"),
        (2, None, "2 of ? requests"),
        (5, 5, "5 of 5 requests, the record is missing"),
    ],
)
def test_a_run_that_has_begun_says_how_far_it_is(
    root: Path, number: int, total: int | None, reason: str
) -> None:
    run = make_run(root)
    answer(root, run, number, total)
    found = state(root, run)
    assert (found.state, found.reason) == (State.PARTIAL, reason)
    assert (found.done, found.total) == (number, total)


def test_a_run_that_has_only_been_counted_is_pending(root: Path) -> None:
    run = make_run(root)
    answer(root, run, 0, 5)
    found = state(root, run)
    assert (found.state, found.reason) == (State.PENDING, "not run yet")
    assert (found.done, found.total) == (None, 5)


def test_answers_of_another_version_are_stale_and_a_damaged_journal_is_invalid(root: Path) -> None:
    run = make_run(root)
    answer(root, run, 2, 5)
    other = run.model_copy(update={"subset_size": 3})
    found = state(root, other)
    assert found.state is State.STALE
    assert found.reason.startswith("unfinished, and since then strategy: ")
    journal = paths_of(root, run).journal
    journal.write_bytes(b"damaged\n" + journal.read_bytes())
    assert state(root, run).state is State.INVALID


# --- what is asked for ----------------------------------------------------------------------------


def test_a_strategy_is_that_of_the_cell(root: Path) -> None:
    run = make_run(root, "k3_last")
    assert make_planner(root).strategy(run, 24) == PeriodicReuse(3, 12, 24)
    assert make_planner(root).strategy(run.model_copy(update={"subset_size": 5}), 24) == (
        PeriodicReuse(3, 19, 24)
    )


def test_tasks_and_configs_are_done_once_each_in_the_order_of_the_grid(root: Path) -> None:
    tasks = ("tiny_choice", "tiny_arithmetic", "tiny_choice")
    sweep = make_sweep(root, tasks=tasks, configs=("k2_last", "k1_first", "k2_last"), limit=4)
    found = [(run.task, run.cell.name, run.limit) for run in make_planner(root).runs(sweep)]
    assert found == [
        (task, config, 4)
        for task in ("tiny_choice", "tiny_arithmetic")
        for config in ("k1_first", "k2_last")
    ]


def test_overlaps_are_those_of_subsets_that_the_grid_has(root: Path) -> None:
    planner = make_planner(root)
    assert planner.overlaps(make_sweep(root)) == [("first", "middle", 1)]
    settings = root / "experiments/00_baseline/experiment.toml"
    settings.write_text(f"{settings.read_text()}\n[reuse]\nsubset_size = 6\n")
    pairs = make_planner(root).overlaps(make_sweep(root))
    assert pairs == [("first", "middle", 4), ("first", "last", 1), ("middle", "last", 3)]
    (root / "model/config.json").unlink()
    assert make_planner(root).overlaps(make_sweep(root)) == []


def test_a_model_is_looked_up_once_and_again_where_it_was_forgotten(root: Path) -> None:
    planner, choice = make_planner(root), make_sweep(root).model
    before = planner.model(choice)
    (root / "model/model.safetensors").write_bytes(b"others")
    assert planner.model(choice) == before
    planner.forget_model(choice)
    assert planner.model(choice) != before
    planner.forget_model(choice)
    planner.forget_model(choice)


def test_without_the_block_cache_only_what_reuses_in_a_refresh_is_applicable(root: Path) -> None:
    """Every step is a REFRESH then: cells of k=1 run, the others could only repeat them."""
    for config, params, applicable in (
        ("k1_first", {}, True),
        ("k2_first", {}, False),
        ("k3_last", {}, False),
        ("k2_first", {"refresh_reuse": True}, True),
    ):
        run = make_run(root, config)
        decoding = run.decoding.model_copy(update={"use_block_cache": False})
        found = state(root, run.model_copy(update={"decoding": decoding, "params": params}))
        assert (found.state is not State.NOT_APPLICABLE) == applicable, (config, params)
        assert ("without the block cache" in found.reason) != applicable


def test_a_damaged_journal_is_the_reason_although_the_last_attempt_failed_too(root: Path) -> None:
    run = make_run(root)
    answer(root, run, 2, 5)
    paths = paths_of(root, run)
    paths.journal.write_bytes(b"damaged\n" + paths.journal.read_bytes())
    write_failure(paths, "the disk is full", "a.log")
    found = state(root, run)
    assert (found.state, found.log) == (State.INVALID, "a.log")
    assert "journal.jsonl, line 1 does not fit its checksum" in found.reason

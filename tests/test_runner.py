"""One run, one record, whatever happens on the way."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fdllm.criteria import criteria_lock, criteria_text
from fdllm.errors import UsageError
from fdllm.evaluate.runner import Runner
from fdllm.experiment.settings import read_settings
from fdllm.plan import State
from fdllm.record.summary import read_summary
from fdllm.report.table import cell_checks
from fdllm.runs import ModelChoice, Run
from fdllm.shard import Shard
from stubs import (
    NUM_DOCS,
    Notes,
    StubMachine,
    change_code,
    do_run,
    interrupt,
    make_planner,
    make_root,
    make_run,
    make_sweep,
    paths_of,
    stop_at,
    without_times,
)

# --- the record ---------------------------------------------------------------------------------


def test_a_record_is_four_files_and_a_copy_for_git(root: Path) -> None:
    run = make_run(root)
    outcome = do_run(root, run)
    paths = paths_of(root, run)
    assert outcome.state is State.DONE
    assert outcome.num_computed == NUM_DOCS
    summary = read_summary(paths.summary)
    assert summary == outcome.summary
    assert summary.headline.model_dump() == {
        "metric": "exact_match,strict-match",
        "value": 0.4,
        "num_samples": 5,
        "num_correct": 2,
    }
    assert summary.strategy.layers == (4, 5, 6, 7)
    assert summary.layer_calls.reused == 5 * 3 * 4  # documents, reuse steps, layers
    assert summary.throughput.seconds == 2.5
    assert len(paths.samples.read_text().splitlines()) == NUM_DOCS
    assert json.loads(paths.results.read_text())["results"]
    assert paths.published.summary.read_text() == paths.summary.read_text()
    assert paths.published.columns.read_bytes() == paths.columns.read_bytes()
    assert not paths.holder.exists()


def test_a_scored_task_names_its_estimator_and_generates_nothing(root: Path) -> None:
    outcome = do_run(root, make_run(root, tasks=("tiny_choice",)))
    assert outcome.summary is not None
    assert outcome.summary.estimator == "denoise"
    assert outcome.summary.throughput.tokens_per_second is None
    assert outcome.summary.throughput.scored_tokens_per_second == 2.0
    assert outcome.summary.quality is None


def test_what_is_done_is_left_alone(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    before = paths_of(root, run).summary.stat().st_mtime_ns
    again = do_run(root, run, stop_at(0, RuntimeError("computed again")))
    assert again.state is State.DONE
    assert again.num_computed == 0
    assert paths_of(root, run).summary.stat().st_mtime_ns == before


def test_a_grid_shares_one_model(root: Path) -> None:
    planner, loads = make_planner(root), Counter[str]()

    def load(choice: ModelChoice) -> Any:
        loads[choice.name] += 1
        return StubMachine()

    runner = Runner(planner, Notes(), load)
    for run in planner.runs(make_sweep(root)):
        assert runner.run(run).state is State.DONE
    assert list(loads.values()) == [1]


def test_the_model_is_not_loaded_for_what_is_done(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)

    def load(_: ModelChoice) -> Any:
        pytest.fail("the model was loaded")

    assert Runner(make_planner(root), Notes(), load).run(run).state is State.DONE


def test_criteria_are_locked_from_the_first_row_and_staleness_is_not_theirs(root: Path) -> None:
    """Edited in the middle of a run: the record says how many rows had been answered by then."""
    run = make_run(root)
    settings = root / "experiments/00_baseline/experiment.toml"
    locks = [criteria_lock(criteria_text(read_settings(settings).criteria))]
    interrupt(root, run, 2)
    settings.write_text(settings.read_text().replace("min_speedup = 1.15", "min_speedup = 1.05"))
    locks.append(criteria_lock(criteria_text(read_settings(settings).criteria)))
    summary = do_run(root, run).summary
    assert summary is not None
    assert summary.provenance["criteria"] == {locks[0]: 2, locks[1]: NUM_DOCS - 2}
    texts = [session["criteria"] for session in summary.provenance["sessions"]]
    assert [criteria_lock(text) for text in texts] == locks
    settings.write_text(settings.read_text().partition("[criteria]")[0])
    assert make_planner(root).state(run).state is State.DONE


# --- guards -------------------------------------------------------------------------------------


def test_k2_that_reused_nothing_fails_and_says_why(root: Path) -> None:
    run = make_run(root)
    outcome = do_run(root, run, StubMachine(count_reuse=False))
    assert outcome.state is State.FAILED
    assert "reuse never acted (0 of" in outcome.reason
    assert "period k=2" in outcome.reason
    assert not paths_of(root, run).summary.exists()
    assert make_planner(root).state(run).state is State.FAILED


def test_a_few_rows_without_reuse_are_a_record_with_a_warning(root: Path) -> None:
    """``--limit 1`` may end before reuse has its turn (docs/algorithm.md section 4.8)."""
    run = make_run(root, limit=5)
    assert do_run(root, run, StubMachine(count_reuse=False)).state is State.DONE
    cell = make_planner(root).state(run)
    assert cell.state is State.DONE
    assert cell.reason.startswith("reuse never acted (0 of 360 layer calls saved in 25 DENOISE")
    assert cell.summary is not None
    [guard] = [guard for guard in cell.summary.guards if not guard.passed]
    assert (guard.name, guard.level) == ("reuse counters", "warning")
    assert cell_checks([cell])[0].text == f"k2_middle: {cell.reason}"


@pytest.mark.parametrize(("limit", "level"), [(None, None), (None, "warning"), (5, "error")])
def test_a_warning_is_for_a_few_rows_alone(
    root: Path, limit: int | None, level: str | None
) -> None:
    run = make_run(root, limit=limit)
    do_run(root, run)
    path = paths_of(root, run).summary
    record = json.loads(path.read_text())
    record["guards"][0] |= {"passed": False, "level": level}
    if level is None:
        del record["guards"][0]["level"]
    path.write_text(json.dumps(record))
    cell = make_planner(root).state(run)
    assert (cell.state, cell.reason) == (
        State.INVALID,
        "summary.json: guard failed: reuse counters",
    )


def test_k1_that_reused_anything_fails(root: Path) -> None:
    """An experiment whose strategy says it does not reuse, and does."""
    code = root / "experiments/00_baseline/generation_functions.py"
    code.write_text(
        "from dataclasses import dataclass\n"
        "from fdllm.core.reuse import PeriodicReuse\n"
        "@dataclass(frozen=True)\n"
        "class Liar(PeriodicReuse):\n"
        "    @property\n"
        "    def reuses(self):\n"
        "        return False\n"
        "def strategy(config):\n"
        "    return Liar(2, *config.bounds)\n"
    )
    for limit in (None, 5):
        outcome = do_run(root, make_run(root, "k1_first", limit=limit))
        assert outcome.state is State.FAILED
        assert "no reuse was asked for, yet 60 of" in outcome.reason


# --- what ends a run ----------------------------------------------------------------------------


def test_a_failure_is_one_line_with_a_log_and_the_next_attempt_goes_on(root: Path) -> None:
    run = make_run(root)
    outcome = do_run(root, run, stop_at(2, RuntimeError("out of memory\nand a long story")))
    assert outcome.reason == "RuntimeError: out of memory"
    assert outcome.log is not None
    assert "Traceback" in Path(outcome.log).read_text()
    again = do_run(root, run)
    assert again.state is State.DONE
    assert again.num_computed == NUM_DOCS - 2
    assert not paths_of(root, run).failed.exists()


def test_a_request_that_makes_no_sense_ends_the_sweep(root: Path) -> None:
    with pytest.raises(UsageError, match="no sense"):
        do_run(root, make_run(root), stop_at(0, UsageError("it makes no sense")))


def test_an_interrupt_keeps_what_was_computed(root: Path) -> None:
    run = make_run(root)
    interrupt(root, run, 3)
    assert not paths_of(root, run).failed.exists()
    assert do_run(root, run).num_computed == NUM_DOCS - 3


def test_a_resumed_record_equals_an_undisturbed_one(root: Path, tmp_path: Path) -> None:
    other = make_root(tmp_path / "other")
    run = make_run(root)
    interrupt(root, run, 3)
    resumed = do_run(root, run).summary
    whole = do_run(other, make_run(other)).summary
    assert resumed is not None
    assert whole is not None
    assert resumed.throughput == whole.throughput
    assert resumed.counts == whole.counts
    assert len(resumed.provenance["sessions"]) == 2
    assert paths_of(root, run).samples.read_bytes() == (
        paths_of(other, make_run(other)).samples.read_bytes()
    )


def test_a_finished_journal_needs_no_model_time(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    paths_of(root, run).summary.unlink()
    assert do_run(root, run).num_computed == 0
    assert make_planner(root).state(run).state is State.DONE


# --- earlier records ----------------------------------------------------------------------------


def superseded(root: Path, run: Run) -> list[str]:
    place = paths_of(root, run).folder.parent / ".superseded"
    return sorted(f"{p.parent.name.split('-')[0]}/{p.name}" for p in place.glob("*/*"))


def test_force_computes_anew_and_keeps_the_old_record(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    assert do_run(root, run, force=True).num_computed == NUM_DOCS
    kept = [f"k2_middle/{n}.json" for n in ("results", "summary")]
    assert set(kept) < set(superseded(root, run))
    assert "k2_middle/journal.jsonl" in superseded(root, run)


def test_force_interrupted_goes_on_without_force(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    machine = stop_at(2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        do_run(root, run, machine, force=True)
    assert make_planner(root).state(run).state is State.PARTIAL
    assert do_run(root, run).num_computed == NUM_DOCS - 2


def test_stale_is_computed_anew_and_kept_aside(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    change_code(root)
    assert do_run(root, run).num_computed == NUM_DOCS
    assert "k2_middle/summary.json" in superseded(root, run)
    assert make_planner(root).state(run).state is State.DONE


@pytest.mark.parametrize("name", ["summary.json", "samples.jsonl"])
def test_a_truncated_file_is_rebuilt_from_the_journal(root: Path, name: str) -> None:
    run = make_run(root)
    whole = do_run(root, run).summary
    path = paths_of(root, run).folder / name
    path.write_bytes(path.read_bytes()[:-30])
    outcome = do_run(root, run)
    assert outcome.num_computed == 0
    assert outcome.summary is not None
    assert whole is not None
    assert without_times(outcome.summary) == without_times(whole)
    assert f"k2_middle/{name}" in superseded(root, run)


@pytest.mark.parametrize("shard", [None, Shard(0, 2)])
def test_one_changed_digit_of_an_answer_never_becomes_a_record(
    root: Path, shard: Shard | None
) -> None:
    run = make_run(root)
    interrupt(root, run, 3)
    journal = paths_of(root, run).of_shard(shard).journal
    paths_of(root, run).journal.rename(journal)
    whole = journal.read_bytes()
    tokens = re.search(rb'"num_tokens": (\d)', whole)
    assert tokens is not None
    at = tokens.start(1)
    changed = whole[:at] + (b"2" if tokens[1] == b"1" else b"1") + whole[at + 1 :]
    journal.write_bytes(changed)
    number = whole.count(b"\n", 0, at) + 1
    found = make_planner(root).state(run)
    assert found.state is State.INVALID
    assert f"{journal.name}, line {number} does not fit its checksum" in found.reason
    outcome = do_run(root, run)
    assert outcome.state is State.FAILED
    assert "--force" in outcome.reason
    assert (outcome.num_computed, journal.read_bytes()) == (0, changed)
    assert make_planner(root).state(run).state is State.INVALID
    assert do_run(root, run, force=True).num_computed == NUM_DOCS
    assert f"k2_middle/{journal.name}" in superseded(root, run)


def test_a_record_is_not_moved_for_a_journal_that_cannot_be_gone_on_with(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    paths = paths_of(root, run)
    paths.samples.write_bytes(paths.samples.read_bytes()[:-30])
    paths.journal.write_bytes(b"damaged\n" + paths.journal.read_bytes())
    assert do_run(root, run).state is State.FAILED
    assert paths.summary.exists()
    assert superseded(root, run) == []


def test_answers_to_documents_that_are_gone_do_not_count(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    paths_of(root, run).summary.unlink()
    summary = do_run(root, run, StubMachine(num_docs=3)).summary
    assert summary is not None
    assert summary.num_requests == 3
    assert summary.throughput.seconds == 1.5

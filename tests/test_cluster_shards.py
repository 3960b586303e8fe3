"""A run that is split: each shard asks only its part, and the record is the unsharded run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdllm.errors import UsageError
from fdllm.evaluate.adapter import LoadedModel
from fdllm.evaluate.attempt import RunOutcome
from fdllm.evaluate.runner import Runner
from fdllm.evaluate.tasks import task_facts
from fdllm.plan import Planner, State
from fdllm.record.journal import read_journal
from fdllm.record.lock import locked
from fdllm.record.paths import Layout, RunPaths
from fdllm.record.summary import read_summary
from fdllm.runs import Evaluating, ModelChoice, Run
from fdllm.shard import Shard
from helpers import ROOT
from stubs import (
    NUM_DOCS,
    Notes,
    StubMachine,
    change_code,
    do_run,
    interrupt,
    loading,
    make_planner,
    make_root,
    make_run,
    make_sweep,
    paths_of,
    stop_at,
    without_times,
)

COUNT = 3


def do(root: Path, run: Run, machine: StubMachine | None = None, **how: Any) -> RunOutcome:
    return Runner(make_planner(root), Notes(), loading(machine)).run(run, **how)


def computed(root: Path) -> list[int]:
    return [int(line) for line in (root / "computed").read_text().split()]


def shard_all(root: Path, run: Run, count: int = COUNT) -> list[RunOutcome]:
    machine = StubMachine(computed=root / "computed")
    return [do(root, run, machine, shard=shard) for shard in Shard.all_of(count)]


# --- which documents ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("number", [0, 1, 5, 100])
def test_every_document_is_in_exactly_one_shard(number: int, count: int) -> None:
    parts = [shard.part(range(number)) for shard in Shard.all_of(count)]
    assert [item for part in parts for item in part] == list(range(number))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("index", "count"), [(0, 0), (-1, 3), (3, 3)])
def test_a_shard_that_does_not_exist(index: int, count: int) -> None:
    with pytest.raises(UsageError, match="no shard"):
        Shard(index, count)


def test_a_shard_is_numbered_from_one_for_people() -> None:
    assert (str(Shard(0, 3)), Shard(2, 3).suffix) == ("shard 1 of 3", ".shard-3-of-3")


# --- shards and their merging -------------------------------------------------------------------


def test_a_shard_answers_its_part_and_writes_no_record(root: Path) -> None:
    run = make_run(root)
    outcome = do(root, run, shard=Shard(1, COUNT))
    paths = paths_of(root, run)
    assert (outcome.state, outcome.num_computed, outcome.summary) == (State.DONE, 2, None)
    assert [e["doc_id"] for e in read_journal(paths.of_shard(Shard(1, COUNT)).journal).entries.values()] == [1, 2]  # fmt: skip  # noqa: E501
    assert not paths.summary.exists()
    assert not paths.journal.exists()
    state = make_planner(root).state(run)
    assert (state.state, state.done, state.total) == (State.PARTIAL, 2, None)


def test_merged_shards_equal_the_unsharded_run(root: Path, tmp_path: Path) -> None:
    run = make_run(root)
    assert {outcome.state for outcome in shard_all(root, run)} == {State.DONE}
    state = make_planner(root).state(run)
    assert (state.state, state.done, state.total) == (State.PARTIAL, NUM_DOCS, NUM_DOCS)
    merged = do(root, run, StubMachine(computed=root / "computed"), merge=COUNT)
    assert (merged.state, merged.num_computed) == (State.DONE, 0)
    assert sorted(computed(root)) == list(range(NUM_DOCS))

    other = make_root(tmp_path / "other")
    alone = do_run(other, make_run(other))
    assert merged.summary is not None
    assert alone.summary is not None
    assert _identical(merged, alone)
    ours, theirs = paths_of(root, run), paths_of(other, make_run(other))
    assert ours.samples.read_text() == theirs.samples.read_text()
    assert ours.results.read_text() == theirs.results.read_text()
    assert len(merged.summary.provenance["sessions"]) == COUNT
    assert not ours.shards()
    assert make_planner(root).state(run).state is State.DONE


def _identical(one: RunOutcome, other: RunOutcome) -> bool:
    assert one.summary is not None
    assert other.summary is not None
    pair = [without_times(o.summary) for o in (one, other) if o.summary is not None]
    for data in pair:  # the model's folder has another name
        data.pop("model")
        data["fingerprint"]["fields"].pop("model")
    return pair[0] == pair[1]


def test_a_merge_names_what_is_missing_and_computes_nothing(root: Path) -> None:
    run = make_run(root)
    machine = StubMachine(computed=root / "computed")
    do(root, run, machine, shard=Shard(0, COUNT))
    with pytest.raises(KeyboardInterrupt):
        do(root, run, stop_at(2, KeyboardInterrupt()), shard=Shard(1, COUNT))
    outcome = do(root, run, machine, merge=COUNT)
    assert outcome.state is State.FAILED
    assert "shard 2 of 3 has 1 of 2 requests; shard 3 of 3 has not begun" in outcome.reason
    assert computed(root) == [0]
    assert not paths_of(root, run).summary.exists()
    # The shards go on where they stopped, and then it merges.
    assert [o.num_computed for o in shard_all(root, run)] == [0, 1, 2]
    assert do(root, run, merge=COUNT).state is State.DONE


def test_a_merge_that_was_killed_begins_again(root: Path) -> None:
    run = make_run(root)
    shard_all(root, run)

    class Killed(StubMachine):
        def evaluate(self, *_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(root, run, Killed(), merge=COUNT)
    assert do(root, run, merge=COUNT).state is State.DONE
    assert len(read_journal(paths_of(root, run).journal).sessions) == COUNT


def test_a_local_run_takes_over_what_shards_have_answered(root: Path) -> None:
    run = make_run(root)
    do(root, run, shard=Shard(1, COUNT))
    outcome = do_run(root, run)
    assert (outcome.state, outcome.num_computed) == (State.DONE, NUM_DOCS - 2)


def test_shards_use_what_the_whole_run_has_answered(root: Path) -> None:
    run = make_run(root)
    interrupt(root, run, 2)
    assert [o.num_computed for o in shard_all(root, run)] == [0, 1, 2]
    assert do(root, run, merge=COUNT).state is State.DONE


def test_a_stale_record_outlives_the_shards_and_is_then_moved_aside(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    change_code(root)
    assert {outcome.state for outcome in shard_all(root, run)} == {State.DONE}
    assert make_planner(root).state(run).state is State.STALE
    assert do(root, run, merge=COUNT).state is State.DONE
    assert sorted(computed(root)) == list(range(NUM_DOCS))
    aside = paths_of(root, run).folder.parent / ".superseded"
    assert list(aside.glob("*/summary.json"))


def test_answers_of_another_version_are_no_part_of_a_merge(root: Path) -> None:
    run = make_run(root)
    shard_all(root, run)
    change_code(root)
    outcome = do(root, run, merge=COUNT)
    assert outcome.state is State.FAILED
    assert "0 of 5 requests are there" in outcome.reason
    assert "another version" in outcome.reason


@pytest.mark.usefixtures("impatient")
def test_a_shard_and_the_whole_run_exclude_each_other(root: Path) -> None:
    run = make_run(root)
    paths = paths_of(root, run)
    with locked(paths.of_shard(Shard(0, COUNT))):
        assert do(root, run).state is State.RUNNING
        assert make_planner(root).state(run).state is State.RUNNING
        assert do(root, run, shard=Shard(0, COUNT)).state is State.RUNNING
        assert do(root, run, shard=Shard(1, COUNT)).state is State.DONE
    with locked(paths):
        assert do(root, run, shard=Shard(0, COUNT)).state is State.RUNNING


def test_a_shard_that_fails_is_the_cells_reason(root: Path) -> None:
    run = make_run(root)
    do(root, run, stop_at(1, ValueError("broken")), shard=Shard(1, COUNT))
    state = make_planner(root).state(run)
    assert (state.state, state.reason) == (State.FAILED, "shard 2 of 3: ValueError: broken")
    assert do(root, run, shard=Shard(1, COUNT)).state is State.DONE
    assert make_planner(root).state(run).state is State.PARTIAL


def test_more_shards_than_documents(root: Path) -> None:
    run = make_run(root)
    assert {outcome.state for outcome in shard_all(root, run, 8)} == {State.DONE}
    assert do(root, run, merge=8).state is State.DONE


# --- the real model and the real harness --------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> LoadedModel:
    return LoadedModel.load(ModelChoice(name="tiny", device="cpu"))


@pytest.mark.parametrize(
    ("task", "score_batch_size"), [("tiny_arithmetic", 16), ("tiny_choice", 1), ("tiny_choice", 16)]
)
def test_the_embedded_model_sharded_and_whole(
    task: str,
    score_batch_size: int,
    machine: LoadedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def runner(name: str) -> tuple[Runner, Run, RunPaths]:
        planner = Planner(ROOT, Layout.of(ROOT, tmp_path / name), task_facts)
        sweep = make_sweep(
            ROOT,
            tasks=(task,),
            configs=("k2_middle",),
            limit=7,
            model=ModelChoice(name="tiny"),
            evaluating=Evaluating(score_batch_size=score_batch_size),
        )
        (run,) = planner.runs(sweep)
        return Runner(planner, Notes(), lambda _: machine), run, planner.layout.run(run)

    whole, run, expected = runner("whole")
    assert whole.run(run).state is State.DONE
    split, run, found = runner("split")
    for shard in Shard.all_of(COUNT):
        outcome = split.run(run, shard=shard)
        assert (outcome.state, outcome.num_computed > 0) == (State.DONE, True), outcome.reason
    assert split.run(run, merge=COUNT).state is State.DONE

    def samples(paths: RunPaths) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in paths.samples.read_text().splitlines()]
        assert len(rows) == 7
        # Time, and prompt blocks that documents of one process share: they are what it did.
        left_out = {"seconds", "counts", "forwards"}
        # Rows computed side by side change the last bits of a sum, so another batch does too.
        left_out |= (
            {"output", "filtered"} if score_batch_size > 1 and task == "tiny_choice" else set()
        )
        return [{k: v for k, v in row.items() if k not in left_out} for row in rows]

    def outputs(paths: RunPaths) -> list[Any]:
        return [json.loads(line)["output"] for line in paths.samples.read_text().splitlines()]

    assert samples(found) == samples(expected)
    if task == "tiny_choice":
        pairs = zip(outputs(found), outputs(expected), strict=True)
        assert all(ours == pytest.approx(theirs, abs=1e-4) for ours, theirs in pairs)
    ours, theirs = read_summary(found.summary), read_summary(expected.summary)
    assert ours.headline == theirs.headline
    assert ours.quality == theirs.quality
    assert ours.dataset == theirs.dataset
    assert ours.num_requests == theirs.num_requests

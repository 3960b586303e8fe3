"""Every state of a cell, with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fdllm.plan import State
from fdllm.runs import Evaluating, ModelChoice, Run
from fdllm.task_facts import TaskFacts
from helpers import move_hub
from stubs import StubMachine, change_code, do_run, facts, make_planner, make_run


def state_of(root: Path, run: Run) -> tuple[State, str]:
    cell = make_planner(root).state(run)
    return cell.state, cell.reason


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_pending_then_done(root: Path) -> None:
    run = make_run(root)
    assert state_of(root, run) == (State.PENDING, "not run yet")
    do_run(root, run)
    assert state_of(root, run) == (State.DONE, "")


def test_limits_are_different_runs(root: Path) -> None:
    do_run(root, make_run(root, limit=5))
    assert state_of(root, make_run(root, limit=5))[0] is State.DONE
    assert state_of(root, make_run(root))[0] is State.PENDING


def test_a_summary_alone_is_not_done(root: Path) -> None:
    run = make_run(root)
    paths = make_planner(root).layout.run(run)
    paths.folder.mkdir(parents=True)
    paths.summary.write_text("{}")
    state, reason = state_of(root, run)
    assert state is State.INVALID
    assert "version" in reason


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: p.summary.write_text(p.summary.read_text()[:-40]), "is no JSON: "),
        (lambda p: p.summary.write_text(""), "empty"),
        (lambda p: p.summary.write_text("[]"), "no object"),
        (lambda p: edit_json(p.summary, headline={}), "missing keys headline.metric"),
        (lambda p: edit_json(p.summary, extra=1), "unknown key 'extra'"),
        (lambda p: edit_json(p.summary, num_requests="5"), "'num_requests': Input should be a"),
        (
            lambda p: edit_json(p.summary, counts={"denoise": {}}),
            "'counts': denoise lacks",
        ),
        (
            lambda p: edit_json(p.summary, provenance={"sessions": [{"machine": 1}]}),
            "'provenance': 'sessions.0.machine': Input should be a valid string",
        ),
        (
            lambda p: edit_json(p.summary, provenance={"finished": "yesterday"}),
            "'provenance': 'finished': Invalid isoformat string: 'yesterday'",
        ),
        (lambda p: put_in_place(p.summary, os.mkfifo), "summary.json is a pipe, not a file"),
        (lambda p: put_in_place(p.summary, Path.mkdir), "summary.json is a folder, not a file"),
        (
            lambda p: put_in_place(p.summary, lambda path: path.symlink_to("gone")),
            "summary.json is a link that leads nowhere",
        ),
        (lambda p: edit_json(p.summary, version=99), "version 99"),
        (lambda p: edit_json(p.summary, task="gsm8k"), "another run"),
        (lambda p: edit_json(p.summary, files={}), "names no samples.jsonl"),
        (lambda p: p.results.unlink(), "results.json is missing"),
        (lambda p: p.samples.unlink(), "samples.jsonl is missing"),
        (
            lambda p: p.samples.write_text("".join(p.samples.read_text().splitlines(True)[:-2])),
            "samples.jsonl holds 3 of 5 samples",
        ),
    ],
)
def test_invalid_says_what_is_wrong(root: Path, damage: Any, reason: str) -> None:
    run = make_run(root)
    do_run(root, run)
    damage(make_planner(root).layout.run(run))
    state, said = state_of(root, run)
    assert state is State.INVALID
    assert reason in said


def put_in_place(path: Path, make: Any) -> None:
    path.unlink()
    make(path)


def test_stale_names_the_file_of_the_experiment(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    change_code(root)
    assert state_of(root, run) == (
        State.STALE,
        "experiment: experiments/00_baseline/generation_functions.py changed",
    )


def test_stale_names_the_file_of_the_source(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    summary = make_planner(root).layout.run(run).summary
    recorded = json.loads(summary.read_text())["fingerprint"]
    recorded["files"]["src/fdllm/core/sampler.py"] = "0"
    recorded["fields"]["source"] = "0"
    edit_json(summary, fingerprint=recorded)
    assert state_of(root, run) == (State.STALE, "source: src/fdllm/core/sampler.py changed")


def _stale(root: Path, now: Run) -> str:
    state, reason = state_of(root, now)
    assert state is State.STALE
    return reason


def test_stale_names_the_setting(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    settings = root / "experiments/00_baseline/experiment.toml"
    settings.write_text(settings.read_text().replace("threshold = 0.97", "threshold = 0.9"))
    assert _stale(root, make_run(root)) == "decoding: threshold=0.97 -> threshold=0.9"
    settings.write_text(settings.read_text().replace("threshold = 0.9", "threshold = 0.97"))
    assert state_of(root, make_run(root))[0] is State.DONE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"evaluating": Evaluating(num_fewshot=2)}, "num_fewshot: 0 -> 2"),
        ({"evaluating": Evaluating(chat_template=False)}, "chat_template: True -> False"),
        ({"evaluating": Evaluating(fewshot_seed=3)}, "fewshot_seed: 1234 -> 3"),
        ({"subset_size": 3}, "strategy: start=4 -> start=5"),
        ({"params": {"refresh_reuse": True}}, "refresh_reuse=False -> refresh_reuse=True"),
    ],
)
def test_stale_names_the_field(root: Path, change: dict[str, Any], reason: str) -> None:
    run = make_run(root)
    do_run(root, run)
    assert reason in _stale(root, run.model_copy(update=change))


def test_other_dtype_is_stale(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    other = run.model.model_copy(update={"dtype": "bfloat16"})
    assert _stale(root, run.model_copy(update={"model": other})) == "dtype: auto -> bfloat16"


def test_other_weights_and_other_definition_are_stale(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    changed = make_planner(root, lambda name: TaskFacts(facts(name).kind, "reworded"))
    assert changed.state(run).reason.startswith("task: ")
    (root / "model/model.safetensors").write_bytes(b"other weights")
    assert _stale(root, run).startswith("model: sha256:")


def test_what_cannot_change_an_output_is_outside(root: Path) -> None:
    run = make_run(root)
    do_run(root, run)
    model = run.model.model_copy(update={"device": "cuda:1"})
    batched = run.evaluating.model_copy(update={"batch_size": 8})
    other = run.model_copy(update={"model": model, "evaluating": batched})
    (root / "experiments/00_baseline/proposal.md").write_text("reworded")
    assert state_of(root, other)[0] is State.DONE


def test_the_estimator_matters_only_where_something_is_scored(root: Path) -> None:
    generated, scored = make_run(root), make_run(root, "k1_first", tasks=("tiny_choice",))
    do_run(root, generated)
    do_run(root, scored)
    once = Evaluating(scoring="first-token")
    assert state_of(root, generated.model_copy(update={"evaluating": once}))[0] is State.DONE
    assert "scoring: denoise -> first-token" in _stale(
        root, scored.model_copy(update={"evaluating": once})
    )


def cached(home: Path, commit: str) -> None:
    """A Hub model's commit in a cache, as its main branch."""
    place = home / "hub" / "models--org--name"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"num_hidden_layers": 12}))
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs/main").write_text(commit)


def test_what_this_machine_does_not_know_is_not_held_against_a_record(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login node without the checkpoint still shows finished cells as done."""
    cached(tmp_path, "a" * 40)
    move_hub(monkeypatch, tmp_path)
    run = make_run(root).model_copy(update={"model": ModelChoice(name="org/name")})
    do_run(root, run)
    assert state_of(root, run)[0] is State.DONE
    move_hub(monkeypatch, tmp_path / "empty")
    assert state_of(root, run)[0] is State.DONE
    cached(tmp_path, "b" * 40)
    move_hub(monkeypatch, tmp_path)
    assert _stale(root, run).startswith("revision: ")


def test_nothing_is_recorded_of_a_model_that_cannot_be_told(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record would stay done whatever became of the weights."""
    move_hub(monkeypatch, tmp_path / "elsewhere")
    run = make_run(root).model_copy(update={"model": ModelChoice(name="org/name")})
    outcome = do_run(root, run)
    assert (outcome.state, outcome.num_computed) == (State.FAILED, 0)
    assert "revision and strategy cannot be told" in outcome.reason
    paths = make_planner(root).layout.run(run)
    assert not paths.summary.exists()
    assert not paths.journal.exists()


@pytest.mark.parametrize("field", ["revision", "strategy"])
def test_what_a_record_does_not_know_equals_nothing(root: Path, field: str) -> None:
    run = make_run(root)
    do_run(root, run)
    path = make_planner(root).layout.run(run).summary
    record = json.loads(path.read_text())
    record["fingerprint"]["fields"][field] = None
    path.write_text(json.dumps(record))
    assert f"{field}: unknown in the record" in _stale(root, run)


def test_failed_has_the_reason_and_the_log(root: Path) -> None:
    run = make_run(root)

    def fail(doc: int) -> None:
        if doc == 2:
            raise RuntimeError("out of memory")

    do_run(root, run, StubMachine(before=fail))
    cell = make_planner(root).state(run)
    assert (cell.state, cell.reason) == (State.FAILED, "RuntimeError: out of memory")
    assert cell.done == 2
    assert cell.log is not None
    assert "out of memory" in Path(cell.log).read_text()

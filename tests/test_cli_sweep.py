"""``fdllm sweep`` and ``fdllm validate``: what they compute, print, and refuse."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from command import Command, summary_of
from fdllm.cli.progress import GridProgress
from fdllm.errors import MissingError
from fdllm.evaluate.attempt import RunOutcome
from fdllm.plan import State
from fdllm.runs import Cell, Run
from stubs import NUM_DOCS, StubMachine

TASK = ("--task", "tiny_arithmetic")


def test_sweep_computes_the_grid_and_shows_the_table(fdllm: Command) -> None:
    assert fdllm("sweep", *TASK) == 0
    assert "9 of 9 done" in fdllm.out
    assert "A/A: " in fdllm.out
    assert "40.0 % " in fdllm.out
    assert "FLOPs" in fdllm.out
    assert "[9/9] 00_baseline / tiny_arithmetic / k3_last" in fdllm.err
    assert "left in the grid" in fdllm.err
    assert fdllm.loads == 1


def test_a_second_sweep_has_nothing_to_do(finished: Command) -> None:
    assert finished("sweep", *TASK) == 0
    assert "nothing to do: all 9 runs are done" in finished.out
    assert finished.loads == 0


def test_sweep_computes_only_what_is_missing(finished: Command) -> None:
    summary_of(finished.root, "k2_last").unlink()
    path = summary_of(finished.root, "k3_first")
    path.write_text(path.read_text()[:-50])
    assert finished("sweep", *TASK, "--dry-run") == 0
    lines = finished.out.splitlines()
    assert len(lines) == 11
    assert sum(line.startswith("run ") for line in lines) == 2
    assert "k2_last: goes on: 5 of 5 requests, the record is missing" in finished.out
    assert "k3_first: invalid: summary.json is no JSON: " in finished.out
    assert "skip 00_baseline / tiny_arithmetic / k1_first: done" in finished.out
    assert lines[-1] == "would run 2 of 9; nothing was run"
    assert finished("sweep", *TASK) == 0
    assert "[2/2]" in finished.err


@pytest.mark.parametrize(
    ("force", "num_runs"),
    [
        (("--force",), 9),
        (("--force", "k2_middle"), 1),
        (("--force", "k1_first", "k2_middle", "k3_last"), 3),
        (("--config", "k1_first", "--force"), 1),
    ],
)
def test_force(finished: Command, force: tuple[str, ...], num_runs: int) -> None:
    assert finished("sweep", *TASK, *force, "--dry-run") == 0
    assert finished.out.count("forced") == num_runs
    assert finished("sweep", *TASK, *force) == 0
    assert f"[{num_runs}/{num_runs}]" in finished.err
    assert f"{NUM_DOCS} computed" in finished.err
    aside = list(finished.root.glob("results/00_baseline/*/.superseded/*"))
    assert len(aside) == num_runs


def test_force_beside_config_forces_only_what_it_names(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first")
    fdllm("sweep", *TASK, "--config", "k1_first", "k1_last", "--force", "k2_last", "--dry-run")
    reasons = {
        line.split(": ")[0].split()[-1]: line.split(": ")[1] for line in fdllm.out.splitlines()[:-1]
    }
    assert reasons == {
        "k1_first": "done",
        "k1_last": "not run yet",
        "k2_last": "forced",
        "timing": "pending, not taken yet",
    }


def test_repeatable_flags_in_both_forms(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first", "--config", "k2_last", "--dry-run")
    assert "would run 2 of 2" in fdllm.out
    fdllm("sweep", *TASK, "--config", "k1_first", "k2_last", "--dry-run")
    assert "would run 2 of 2" in fdllm.out
    fdllm("sweep", "--task", "tiny_choice", "--task", "tiny_arithmetic", "--dry-run")
    assert "would run 18 of 18" in fdllm.out


def test_a_failed_run_does_not_stop_the_others(fdllm: Command) -> None:
    def fail(run: Any, doc: int) -> str:
        if run.cell.name == "k2_first":
            raise RuntimeError("a bad day")
        return f"{run.cell.k}: {doc}"

    fdllm.machine = StubMachine(answer=fail)
    assert fdllm("sweep", *TASK) == 1
    assert "8 of 9 done" in fdllm.out
    assert "k2_first failed: RuntimeError: a bad day" in fdllm.out
    assert "the same command tries again" in fdllm.out
    assert "Traceback" not in fdllm.out + fdllm.err
    fdllm.machine = StubMachine()
    assert fdllm("sweep", *TASK) == 0


def test_status_flag_runs_nothing(fdllm: Command) -> None:
    assert fdllm("sweep", *TASK, "--status") == 0
    assert fdllm.out.count("· k") == 9
    assert "all 9: pending, not run yet" in fdllm.out
    assert "timing: pending, not taken yet" in fdllm.out
    assert fdllm.loads == 0


def test_slurm_says_that_it_is_not_there(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fdllm("sweep", *TASK, "--executor", "slurm") == 1
    assert "needs sbatch" in fdllm.err
    assert "--executor local" in fdllm.err


def test_limit_is_part_of_the_identity(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--limit", "5")
    assert "smoke test" in fdllm.out
    assert set(fdllm.cells(*TASK, "--limit", "5").values()) == {"done"}
    assert set(fdllm.cells(*TASK).values()) == {"pending"}
    fdllm("status", *TASK)
    assert "other records: --task tiny_arithmetic" in fdllm.out
    assert "--limit 5" in fdllm.out
    fdllm("sweep", *TASK, "--status", "--json")
    assert json.loads(fdllm.out)["counts"]["pending"] == 9, "and nothing but JSON"


def test_another_results_folder(fdllm: Command, tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    assert fdllm("sweep", *TASK, "--results", str(place)) == 0
    assert not (fdllm.root / "results").exists()
    assert not (fdllm.root / "artifacts").exists()
    assert set(fdllm.cells(*TASK, "--results", str(place)).values()) == {"done"}


def test_twins_that_differ_are_a_failure(fdllm: Command) -> None:
    fdllm.machine = StubMachine(
        answer=lambda run, doc: "other" if (run.cell.name, doc) == ("k1_last", 3) else f"{doc}"
    )
    assert fdllm("sweep", *TASK) == 1
    assert "k1_last are one computation, yet " in fdllm.out


def test_identical_cells_are_flagged(fdllm: Command) -> None:
    """Nine identical cells once counted as nine results."""
    fdllm.machine = StubMachine(answer=lambda _, doc: f"{doc}")
    assert fdllm("sweep", *TASK) == 0
    assert "so the reuse may never have reached this task" in " ".join(fdllm.out.split())


def test_no_figures_over_mixed_machines(finished: Command) -> None:
    path = summary_of(finished.root, "k2_last")
    data = json.loads(path.read_text())
    data["provenance"]["sessions"][0]["machine"] = "another GPU"
    path.write_text(json.dumps(data))
    finished("sweep", *TASK)
    shown = " ".join(finished.out.split())
    assert "no figures: these records do not belong into one table" in shown
    assert "40.0 %" not in finished.out
    assert finished("report", *TASK) == 1
    assert "machine differs" in finished.err
    assert "k2_last: another GPU" in finished.err


def test_validate_is_offline_and_says_what_is_next(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert fdllm("validate", *TASK, "--task", "tiny_choice") == 0
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    assert "18 of 18 done" in fdllm.out
    assert "limit 10" in fdllm.out
    assert "validation passed" in fdllm.out
    assert "nox -s sweep -- --task mmlu" in fdllm.out
    assert fdllm("validate", *TASK, "--task", "tiny_choice") == 0
    assert "nothing to do: all 18 runs are done" in fdllm.out


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_lines_in_a_log_and_bars_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("fdllm.cli.progress._QUIET_S", 0.0)
    out = io.StringIO()
    run = Run(experiment="00_baseline", task="tiny_choice", cell=Cell.of(2, "last"))
    with GridProgress(2, Console(file=out, force_terminal=terminal, width=120)) as progress:
        progress.start(run)
        progress.begin(3, 1)
        progress.note("a note")
        progress.advance({})
        progress.end(RunOutcome(run, State.FAILED, "a bad day"))
    lines = [line.strip() for line in out.getvalue().splitlines()]
    told = [
        "[1/2] 00_baseline / tiny_choice / k2_last",
        "1 of 3 requests are answered already",
        "a note",
        "2 of 3 requests, 0 s left in this run",
        "00_baseline / tiny_choice / k2_last: failed: a bad day; about 0 s left in the grid",
    ]
    if not terminal:
        assert lines == told
        return
    assert told[2] in out.getvalue()
    assert "k2_last: failed: a bad day" in out.getvalue()
    assert "left in" not in out.getvalue()
    assert "1/3" in out.getvalue()


def test_what_a_task_lacks_is_missed_once(fdllm: Command) -> None:
    def answer(run: Run, doc: int) -> str:
        if run.task == "tiny_arithmetic":
            raise MissingError("its data are not here")
        return f"{run.cell.k}: {doc}"

    fdllm.machine = StubMachine(answer=answer)
    assert fdllm("sweep", *TASK, "tiny_choice", "--timing", "0") == 1
    assert fdllm.err.count("its data are not here") == 1
    assert "8 other runs not tried" in fdllm.err
    states = fdllm.cells(*TASK)
    assert (states.pop("k1_first"), set(states.values())) == ("failed", {"pending"})
    assert set(fdllm.cells("--task", "tiny_choice").values()) == {"done"}


def test_a_model_that_is_not_there_is_missed_once(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any) -> StubMachine:
        raise MissingError("no such model here")

    monkeypatch.setattr("fdllm.cli.sweep.load_model", load)
    assert fdllm("sweep", *TASK) == 1
    assert fdllm.err.count("no such model here") == 1
    assert "8 other runs not tried" in fdllm.err
    assert set(fdllm.cells(*TASK).values()) == {"pending"}

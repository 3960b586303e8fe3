"""The command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fdllm.cli import main, main_eval
from fdllm.cli.request import choose_model
from fdllm.config import DEFAULT_MODEL, ModelChoice
from fdllm.errors import FdllmError, UsageError
from fdllm.plan import State
from helpers import ROOT
from stubs import NUM_DOCS, StubMachine, make_root

TASK = ("--task", "tiny_arithmetic")


class Command:
    """``fdllm`` in a checkout of its own, with a model that answers at once."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.machine = StubMachine()
        self.loads = 0
        self.out = self.err = ""
        self._capsys = capsys

    def __call__(self, *arguments: str) -> int:
        """Run one command on the stub; afterwards ``out`` and ``err`` hold what it printed."""
        model = ["--model", str(self.root / "model")]
        plain = arguments[0] == "new" or "--model" in arguments
        return self.raw(*arguments, *([] if plain else model))

    def raw(self, *arguments: str) -> int:
        """Run one command as it stands."""
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def cells(self, *arguments: str) -> dict[str, Any]:
        """State by config."""
        assert self("status", "--json", *arguments) == 0
        return {cell["config"]: cell["state"] for cell in json.loads(self.out)["cells"]}

    def load(self, _: ModelChoice, __: int | None) -> StubMachine:
        """Stands in for loading a checkpoint."""
        self.loads += 1
        return self.machine


@pytest.fixture
def fdllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    root = make_root(tmp_path / "root")
    command = Command(root, capsys)
    monkeypatch.setenv("FDLLM_ROOT", str(root))
    monkeypatch.delenv("FDLLM_MODEL", raising=False)
    monkeypatch.setattr("fdllm.cli.execute.load_machine", command.load)
    return command


def summary_of(root: Path, config: str, task: str = "tiny_arithmetic") -> Path:
    (path,) = root.glob(f"results/00_baseline/{task}@*/{config}/summary.json")
    return path


# --- sweep --------------------------------------------------------------------------------------


def test_sweep_computes_the_grid_and_shows_the_table(fdllm: Command) -> None:
    assert fdllm("sweep", *TASK) == 0
    assert "9 of 9 done" in fdllm.out
    assert "A/A: k1_first = k1_middle = k1_last in all 5 samples" in fdllm.out
    assert "40.0 % [11.8, 76.9]" in fdllm.out  # Wilson, 2 of 5
    assert "layer calls saved" in fdllm.out
    assert "[9/9] 00_baseline / tiny_arithmetic / k3_last" in fdllm.err
    assert "left in the grid" in fdllm.err
    assert fdllm.loads == 1


def test_a_second_sweep_has_nothing_to_do(fdllm: Command) -> None:
    fdllm("sweep", *TASK)
    fdllm.loads = 0
    assert fdllm("sweep", *TASK) == 0
    assert "nothing to do: all 9 runs are done" in fdllm.out
    assert fdllm.loads == 0


def test_sweep_computes_only_what_is_missing(fdllm: Command) -> None:
    fdllm("sweep", *TASK)
    summary_of(fdllm.root, "k2_last").unlink()
    path = summary_of(fdllm.root, "k3_first")
    path.write_text(path.read_text()[:-50])
    assert fdllm("sweep", *TASK, "--dry-run") == 0
    lines = fdllm.out.splitlines()
    assert len(lines) == 10
    assert sum(line.startswith("run ") for line in lines) == 2
    assert "k2_last: goes on: 5 of 5 requests, the record is missing" in fdllm.out
    assert "k3_first: invalid: summary.json is truncated" in fdllm.out
    assert "skip 00_baseline / tiny_arithmetic / k1_first: done" in fdllm.out
    assert lines[-1] == "would run 2 of 9; nothing was run"
    assert fdllm("sweep", *TASK) == 0
    assert "[2/2]" in fdllm.err


@pytest.mark.parametrize(
    ("force", "num_runs"),
    [
        (("--force",), 9),
        (("--force", "k2_middle"), 1),
        (("--force", "k1_first", "k2_middle", "k3_last"), 3),
        (("--config", "k1_first", "--force"), 1),
    ],
)
def test_force(fdllm: Command, force: tuple[str, ...], num_runs: int) -> None:
    fdllm("sweep", *TASK)
    assert fdllm("sweep", *TASK, *force, "--dry-run") == 0
    assert fdllm.out.count("forced") == num_runs
    assert fdllm("sweep", *TASK, *force) == 0
    assert f"[{num_runs}/{num_runs}]" in fdllm.err
    assert f"{NUM_DOCS} computed" in fdllm.err
    aside = list(fdllm.root.glob("results/00_baseline/*/.superseded/*"))
    assert len(aside) == num_runs


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
    assert fdllm.out.count("pending") == 9
    assert fdllm.loads == 0


def test_slurm_says_that_it_is_not_there(fdllm: Command) -> None:
    assert fdllm("sweep", *TASK, "--executor", "slurm") == 1
    assert "not built yet" in fdllm.err


def test_limit_is_part_of_the_identity(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--limit", "5")
    assert "smoke test" in fdllm.out
    assert set(fdllm.cells(*TASK, "--limit", "5").values()) == {"done"}
    assert set(fdllm.cells(*TASK).values()) == {"pending"}
    fdllm("status", *TASK)
    assert "other records: --task tiny_arithmetic" in fdllm.out
    assert "--limit 5" in fdllm.out


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
    assert "are one computation, yet 1 of 5 samples differ" in fdllm.out
    assert "row 3: k1_first against k1_last" in fdllm.out


def test_identical_cells_are_flagged(fdllm: Command) -> None:
    """Nine identical cells once counted as nine results."""
    fdllm.machine = StubMachine(answer=lambda _, doc: f"{doc}")
    assert fdllm("sweep", *TASK) == 0
    assert "k3_last agree in every output: did the reuse reach this task?" in fdllm.out


def test_no_figures_over_mixed_machines(fdllm: Command) -> None:
    fdllm("sweep", *TASK)
    path = summary_of(fdllm.root, "k2_last")
    data = json.loads(path.read_text())
    data["provenance"]["sessions"][0]["machine"] = "another GPU"
    path.write_text(json.dumps(data))
    fdllm("sweep", *TASK)
    assert "no figures: these records do not belong into one table" in " ".join(fdllm.out.split())
    assert "40.0 %" not in fdllm.out
    assert fdllm("report", *TASK) == 1
    assert "machine differs" in fdllm.err
    assert "k2_last: another GPU" in fdllm.err


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


# --- eval ---------------------------------------------------------------------------------------


def test_eval_is_one_run(fdllm: Command) -> None:
    assert fdllm("eval", *TASK, "--config", "k2_middle") == 0
    assert "1 of 1 done" in fdllm.out
    assert main_eval(["--help-me"]) if False else True
    assert fdllm("eval", *TASK, "--config", "k2_middle", "--force") == 0
    assert "5 computed" in fdllm.err


@pytest.mark.parametrize(
    "arguments",
    [TASK, ("--config", "k1_first"), (*TASK, "--config", "k1_first", "k2_first"), ()],
)
def test_eval_needs_one_task_and_one_config(fdllm: Command, arguments: tuple[str, ...]) -> None:
    assert fdllm("eval", *arguments) == 2
    assert "one run needs one --task and one --config" in fdllm.err


def test_eval_alone_is_the_eval_command(fdllm: Command) -> None:
    arguments = [*TASK, "--config", "k1_last", "--model", str(fdllm.root / "model"), "--json"]
    assert main_eval(arguments) == 0
    assert fdllm.cells(*TASK)["k1_last"] == "done"


# --- status and report --------------------------------------------------------------------------


def test_status_json(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first", "k2_first")
    assert fdllm("status", "--json", *TASK) == 0
    data = json.loads(fdllm.out)
    assert set(data) == {"version", "counts", "cells"}
    assert set(data["counts"]) == {state.value for state in State}
    assert data["counts"]["done"] == 2
    assert data["counts"]["pending"] == 7
    first = data["cells"][0]
    assert set(first) == {
        "experiment", "task", "limit", "config", "model", "state", "reason", "done", "total",
        "log", "folder", "headline", "throughput", "saved_share",
    }  # fmt: skip
    assert first["headline"]["value"] == 0.4
    assert first["throughput"]["tokens_per_second"] > 0
    assert data["cells"][1]["headline"] is None


def test_status_is_the_same_from_sweep(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first")
    fdllm("status", "--json", *TASK)
    status = fdllm.out
    fdllm("sweep", "--status", "--json", *TASK)
    assert fdllm.out == status


def test_report_writes_results(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--task", "tiny_choice")
    fdllm("sweep", *TASK, "--limit", "5")
    assert fdllm("report", "--task", "tiny_arithmetic", "tiny_choice") == 0
    text = (fdllm.root / "experiments/00_baseline/results.md").read_text()
    assert "| k2_middle | 40.0 % [11.8, 76.9] |" in text
    assert "limit 5: SMOKE TEST" in text
    assert "estimator denoise" in text
    assert "A/A: k1_first = k1_middle = k1_last in all 5 samples" in text
    assert "| k2_middle | 4-7 | 0 | 5 | 25 | 0 | 300 | 60 |" in text
    assert "overlap on 12 layers" in text


def test_report_without_records(fdllm: Command) -> None:
    assert fdllm("report", *TASK) == 1
    assert "has no records of model" in fdllm.err
    assert "Nothing has been run yet" in (
        ROOT / "experiments/_template/results.md"
    ).read_text(encoding="utf-8")


def test_report_names_what_is_missing(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first")
    fdllm("report", *TASK, "--stdout")
    assert "Not in the table" in fdllm.out
    assert "- k3_last: pending (not run yet)" in fdllm.out


def test_new(fdllm: Command) -> None:
    assert fdllm("new", "adaptive_skip", "--from", "00_baseline") == 0
    assert "01_adaptive_skip" in fdllm.out
    assert fdllm("sweep", "--experiment", "01_adaptive_skip", *TASK, "--dry-run") == 0
    assert "would run 9 of 9" in fdllm.out
    assert fdllm("new", "00_baseline") == 2
    assert "exists already" in fdllm.err


# --- what makes no sense ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("sweep", "--task", "gsm8"), "unknown task 'gsm8' (did you mean 'gsm8k'?)"),
        (("sweep", *TASK, "--config", "k2_midle"), "did you mean 'k2_middle'?"),
        (("sweep", *TASK, "--force", "k9_last"), "unknown config 'k9_last'"),
        (("sweep", "--experiment", "00_base"), "did you mean '00_baseline'?"),
        (("status", "--task", "mmlux"), "did you mean 'mmlu'?"),
        (("report", "--task", "mmlux"), "did you mean 'mmlu'?"),
        (("sweep", *TASK, "--limit", "0"), "must be a whole number, 1 or more; got '0'"),
        (("sweep", *TASK, "--limit", "ten"), "got 'ten'"),
        (("sweep", *TASK, "--lmit", "10"), "unknown argument '--lmit' (did you mean '--limit'?)"),
        (("sweep", *TASK, "--scoring", "exact"), "invalid choice: 'exact'"),
        (("sweep", *TASK, "--dtype", "int8"), "invalid choice: 'int8'"),
        (("sweep", *TASK, "--executor", "pbs"), "invalid choice: 'pbs'"),
        (("sweep", *TASK, "--model", "./nowhere"), "no model folder at './nowhere'"),
        (("eval", *TASK, "--config", "k2_middel"), "did you mean 'k2_middle'?"),
        (("new", "Bad Name"), "is no name for an experiment"),
        (("swep",), "invalid choice: 'swep'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    fdllm: Command, arguments: tuple[str, ...], error: str
) -> None:
    assert fdllm(*arguments) == 2
    assert error in fdllm.err
    assert len(fdllm.err.splitlines()) == 1
    assert fdllm.out == ""
    assert fdllm.loads == 0


def test_a_results_folder_that_cannot_be_written(fdllm: Command) -> None:
    (fdllm.root / "results").write_text("in the way")
    assert fdllm("sweep", *TASK) == 1
    assert "cannot write" in fdllm.err
    assert "Traceback" not in fdllm.err


def test_debug_shows_the_traceback(fdllm: Command) -> None:
    assert fdllm("sweep", "--task", "gsm8", "--debug") == 2
    assert "Traceback" in fdllm.err


def test_a_model_that_cannot_be_loaded_ends_the_sweep(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise FdllmError("checkpoint lacks 1 of 2 shards")

    monkeypatch.setattr("fdllm.cli.execute.load_machine", load)
    assert fdllm("sweep", *TASK) == 1
    assert fdllm.err.splitlines()[-1] == "fdllm sweep: checkpoint lacks 1 of 2 shards"
    assert set(fdllm.cells(*TASK).values()) == {"pending"}


def test_the_model_follows_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDLLM_MODEL", raising=False)
    assert choose_model(None, ["tiny_choice"]) == "tiny"
    assert choose_model(None, ["gsm8k", "mmlu"]) == DEFAULT_MODEL
    assert choose_model(None, []) == DEFAULT_MODEL
    assert choose_model("tiny", ["gsm8k"]) == "tiny"
    with pytest.raises(UsageError, match="name one with --model"):
        choose_model(None, ["gsm8k", "tiny_choice"])
    monkeypatch.setenv("FDLLM_MODEL", "org/other")
    assert choose_model(None, ["tiny_choice"]) == "org/other"


# --- interrupted --------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_says_what_is_kept(fdllm: Command, sent: signal.Signals, code: int) -> None:
    def before(doc: int) -> None:
        if doc == 2:
            os.kill(os.getpid(), sent)

    fdllm.machine = StubMachine(before=before, delay_s=0.05)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert fdllm("sweep", *TASK) == code
    said = "interrupted: 0 of 9 runs done, 2 of 5 requests of k1_first kept; the same command goes"
    assert said in fdllm.err
    assert "Traceback" not in fdllm.err
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    fdllm.machine = StubMachine()
    assert fdllm("sweep", *TASK) == 0


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    env = os.environ | {"PYTHONPATH": str(ROOT / "src"), "FDLLM_ROOT": str(root)}
    code = "import sys; from fdllm.cli import main; sys.exit(main(['status', '--model', 'tiny']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors

"""The command line: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from command import Command
from fdllm import __version__
from fdllm.cli import main_eval, output
from fdllm.cli.main import commands
from fdllm.cli.request import choose_model
from fdllm.errors import FdllmError, UsageError
from fdllm.plan import State
from fdllm.runs import DEFAULT_MODEL
from helpers import ROOT
from stubs import StubMachine, make_root

TASK = ("--task", "tiny_arithmetic")


# --- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["eval", "sweep"])
def test_a_gpu_that_is_not_there_is_never_nothing_to_do(
    fdllm: Command, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = (command, *TASK, "--config", "k1_first")
    local = () if command == "eval" else ("--executor", "local")
    assert fdllm(*asked, *local) == 0
    assert fdllm(*asked, *local, "--device", "cpu") == 0
    assert fdllm(*asked, *local, "--device", "cuda") == 2
    assert fdllm.err.strip().endswith(
        "device 'cuda' asks for a GPU and torch sees none; use --device cpu"
    )
    assert fdllm(*asked, *local, "--device", "gpu") == 2
    assert "'gpu'" in fdllm.err


# --- eval ---------------------------------------------------------------------------------------


def test_eval_is_one_run(fdllm: Command) -> None:
    assert fdllm("eval", *TASK, "--config", "k2_middle") == 0
    assert "1 of 1 done" in fdllm.out
    assert fdllm("eval", *TASK, "--config", "k2_middle", "--force") == 0
    assert "5 computed" in fdllm.err


@pytest.mark.parametrize(
    "arguments",
    [TASK, ("--config", "k1_first"), (*TASK, "--config", "k1_first", "k2_first"), ()],
)
def test_eval_needs_one_task_and_one_config(fdllm: Command, arguments: tuple[str, ...]) -> None:
    assert fdllm("eval", *arguments) == 2
    assert "one run needs one --task and one --config" in fdllm.err


def test_eval_alone_is_the_eval_command(fdllm: Command, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TASK, "--config", "k1_last", "--model", str(fdllm.root / "model"), "--json"]
    assert main_eval(arguments) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    assert (cell["config"], cell["state"]) == ("k1_last", "done")


def test_a_laptop_does_not_start_the_published_model_unasked(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    one = (*TASK, "--config", "k1_first")
    wide = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}
    kind = {"model_type": "Fast_dLLM_Qwen", "hidden_act": "silu"}
    (fdllm.root / "model/config.json").write_text(json.dumps(wide | heads | kind))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert fdllm("sweep", *one) == 2
    assert "has 7.6 billion parameters and this machine no GPU: 4 hours on a CPU" in fdllm.err
    assert "try --model tiny" in fdllm.err
    assert fdllm("timing", *TASK) == 2
    assert "days on a CPU" in fdllm.err
    assert fdllm("profile", *TASK) == 2
    assert "4 days on a CPU" in fdllm.err
    assert "try --model tiny; --device cpu" in fdllm.err
    assert fdllm.loads == 0
    assert fdllm("sweep", *one, "--dry-run") == 0
    assert fdllm("sweep", *one, "--limit", "2") == 0  # minutes
    assert fdllm("eval", *one, "--device", "cpu") == 0
    for config, name, value in (
        ("k2_first", "torch.cuda.is_available", lambda: True),
        ("k3_first", "os.environ", os.environ | {"SLURM_JOB_ID": "7"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            assert fdllm("eval", *TASK, "--config", config) == 0


# --- status and report --------------------------------------------------------------------------


def test_status_json(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first", "k2_first")
    assert fdllm("status", "--json", *TASK) == 0
    data = json.loads(fdllm.out)
    assert set(data) == {"version", "counts", "cells", "timing"}
    assert set(data["counts"]) == {state.value for state in State}
    assert data["counts"]["done"] == 2
    assert data["counts"]["pending"] == 7
    first = data["cells"][0]
    assert set(first) == {
        "experiment", "task", "limit", "config", "model", "state", "reason", "done", "total",
        "log", "folder", "headline", "metrics", "throughput", "saved_share", "job", "preset",
    }  # fmt: skip
    assert first["headline"]["value"] == 0.4
    assert first["throughput"]["tokens_per_second"] > 0
    assert data["cells"][1]["headline"] is None


def test_json_is_all_that_stands_in_the_output(fdllm: Command) -> None:
    for _ in range(2):  # computed, and nothing to do
        assert fdllm("sweep", *TASK, "--json") == 0
        assert json.loads(fdllm.out)["counts"]["done"] == 9
    assert fdllm("sweep", *TASK, "--json", "--dry-run", "--force", "k2_last") == 0
    (cell,) = json.loads(fdllm.out)["cells"]
    assert (cell["would_run"], cell["why"]) == (True, "forced")


def test_status_is_the_same_from_sweep(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first")
    fdllm("status", "--json", *TASK)
    status = fdllm.out
    fdllm("sweep", "--status", "--json", *TASK)
    assert fdllm.out == status


def test_status_has_accuracies_and_counts_as_the_manual_does(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first", "k2_first")
    assert fdllm("status", *TASK) == 0
    assert re.search(r"✓ k1_first +done +5 +40.0 % \[", fdllm.out)
    assert re.search(r"· k3_last +pending", fdllm.out)
    assert "Completed: 2 / 9" in fdllm.out.splitlines()
    assert "pending, not run yet" in fdllm.out


def test_status_of_nothing_named_shows_what_there_is(fdllm: Command) -> None:
    """A sweep of the embedded model is no empty grid of the published one."""
    assert fdllm.raw("status") == 0
    assert "0 of 54 done" in fdllm.out  # nothing is there, so what there might be
    for limit in ((), ("--limit", "5")):
        fdllm.raw("sweep", *TASK, "--config", "k1_first", *limit)
    assert fdllm.raw("status") == 0
    assert "tiny_arithmetic (all rows) on tiny" in fdllm.out
    assert "tiny_arithmetic (limit 5, a smoke test) on tiny" in fdllm.out
    assert f"nothing yet on {DEFAULT_MODEL}: gsm8k, minerva_math, mmlu" in fdllm.out
    assert "2 of 18 done" in fdllm.out
    assert "other records" not in fdllm.out
    assert fdllm.raw("status", "--json") == 0
    assert json.loads(fdllm.out)["counts"]["done"] == 2


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["status", "sweep"])
def test_tables_fit_the_terminal(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch, command: str, columns: int
) -> None:
    fdllm("sweep", *TASK)
    terminal = output._Console(width=columns, stderr=False)  # noqa: SLF001 - the one that is drawn on
    for module in ("show", "status_table"):
        monkeypatch.setattr(f"fdllm.cli.{module}.console", lambda: terminal)
    assert fdllm(command, *TASK) == 0
    table = [line for line in fdllm.out.splitlines() if re.search("k[123]_(first|middle)  ", line)]
    assert len(table) == 6
    # A path is never broken, and a temporary folder may have any length.
    drawn = [line for line in fdllm.out.splitlines() if not line.startswith("/")]
    assert max(map(len, drawn)) <= columns
    assert all("40.0 % [" in line and "done" in line for line in table)
    if command == "sweep":
        told = "left out for room: repetitive, truncated"
        assert (told in " ".join(fdllm.out.split())) == (columns == 80)


def test_report_writes_results(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--task", "tiny_choice")
    fdllm("sweep", *TASK, "--limit", "5")
    assert fdllm("report", "--task", "tiny_arithmetic", "tiny_choice") == 0
    text = (fdllm.root / "experiments/00_baseline/results.md").read_text()
    assert "| k2_middle | 40.0 % " in text
    assert "limit 5" in text
    assert "denoise" in text
    assert "A/A: " in text
    assert "| k2_middle | 4-7 | 0 | 5 | 25 | 0 | 300 | 60 |" in text


def test_report_without_records(fdllm: Command) -> None:
    assert fdllm("report", *TASK) == 1
    assert "has no records of model" in fdllm.err
    assert "Nothing has been run yet" in (ROOT / "experiments/_template/results.md").read_text(
        encoding="utf-8"
    )


def test_report_names_what_is_missing(fdllm: Command) -> None:
    fdllm("sweep", *TASK, "--config", "k1_first")
    fdllm("report", *TASK, "--stdout")
    assert "k3_last: pending" in fdllm.out


def test_new(fdllm: Command) -> None:
    assert fdllm("new", "adaptive_skip", "--from", "00_baseline") == 0
    assert "01_adaptive_skip" in fdllm.out
    assert fdllm("sweep", "--experiment", "01_adaptive_skip", *TASK, "--dry-run") == 0
    assert "would run 9 of 9" in fdllm.out
    assert fdllm("new", "00_baseline") == 2
    assert "exists already" in fdllm.err


def test_code_in_a_new_folder_needs_settings_and_a_number(fdllm: Command) -> None:
    """As the manual begins an experiment; each answer is the one step that is missing."""
    experiments = fdllm.root / "experiments"
    code = (experiments / "00_baseline/generation_functions.py").read_text(encoding="utf-8")
    for name in ("skip", "21_skip"):
        (experiments / name).mkdir()
        (experiments / name / "generation_functions.py").write_text(code, encoding="utf-8")
    assert fdllm("status", *TASK, "--experiment", "skip") == 2
    assert "mv experiments/skip experiments/NN_skip" in fdllm.err
    assert fdllm("status", *TASK, "--experiment", "21_skip") == 2
    _, _, step = fdllm.err.strip().rpartition(": ")
    assert step == "cp experiments/00_baseline/experiment.toml experiments/21_skip/"
    subprocess.run(step.split(), cwd=fdllm.root, check=True)
    assert fdllm("sweep", *TASK, "--experiment", "21_skip", "--dry-run") == 0
    assert "would run 9 of 9" in fdllm.out


def test_nothing_asked_is_helped(fdllm: Command) -> None:
    assert fdllm.raw() == 2
    assert "Usage: fdllm" in fdllm.err
    assert "one run: one task, one config" in fdllm.err


@pytest.mark.parametrize("command", [(), *([name] for name in commands())])
def test_help_fits_80_columns(
    fdllm: Command, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert fdllm.raw(*command, "--help") == 0
    assert "--help" in fdllm.out
    assert max(map(len, fdllm.out.splitlines())) <= 80


def test_the_version_of_the_package(fdllm: Command) -> None:
    assert fdllm.raw("--version") == 0
    told = (sys.executable, "-m", "fdllm", "--version")
    said = subprocess.run(told, check=True, capture_output=True, text=True)
    assert said.stdout == fdllm.out == f"fdllm {__version__}\n"


def test_a_completion_script_is_made_of_every_flag(
    fdllm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert fdllm.raw("completion", "bash") == 2
    assert "pip install shtab" in fdllm.err

    def complete(parser: argparse.ArgumentParser, shell: str) -> str:
        return f"{shell}: {parser.format_help()}"

    monkeypatch.setitem(sys.modules, "shtab", SimpleNamespace(complete=complete))
    assert fdllm.raw("completion", "zsh") == 0
    assert fdllm.out.startswith("zsh: Usage: fdllm")
    assert "sweep" in fdllm.out


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
        (("calibrate", "--taks", "x"), "unknown argument '--taks' (did you mean '--task'?)"),
        (("calibrate", *TASK), "the following arguments are required: --strategy"),
        (("sweep", *TASK, "--scoring", "exact"), "invalid choice: 'exact'"),
        (("sweep", *TASK, "--dtype", "int8"), "invalid choice: 'int8'"),
        (("sweep", *TASK, "--executor", "pbs"), "invalid choice: 'pbs'"),
        (("sweep", *TASK, "--model", "./nowhere"), "no model folder at './nowhere'"),
        (("eval", *TASK, "--config", "k2_middel"), "did you mean 'k2_middle'?"),
        (("new", "Bad Name"), "is no name for an experiment"),
        (("swep",), "invalid choice: 'swep' (did you mean 'sweep'?); it is one of eval, "),
        (("sweep", *TASK, "--dtype", "floa32"), "did you mean 'float32'?"),
        (("status", *TASK, "--shards", "2"), "takes no '--shards', others do; see fdllm status -"),
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

    monkeypatch.setattr("fdllm.cli.sweep.load_model", load)
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
